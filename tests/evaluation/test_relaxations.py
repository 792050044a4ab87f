"""The judge reads the network: what its program hides is found, relaxed and attacked, with nothing declared."""

import json

import jax
import jax.numpy as jnp
import pytest
import verdict_toys as toys

from robustjax.evaluation import Hints, judge
from robustjax.evaluation.verdict import trust
from robustjax.ops import bpda


def network(prepare):
    """A network trained on adversarial images, behind a preparation of its images."""
    params = toys.trained(toys.EPSILON)
    return lambda images: toys.mlp(params, prepare(images))


def cut(images):
    return jnp.round(3.0 * images) / 3.0


def detached(images):
    return jax.lax.stop_gradient(images)


@jax.custom_jvp
def lying(images):
    return jnp.clip(images, 0.0, 1.0)


lying.defjvp(lambda primals, tangents: (lying(*primals), -tangents[0]))


# Name -> (what the images pass, the function that the report must name).
BROKEN = {"quantised": (cut, "(cut)"), "detached": (detached, "(detached)"), "lying rule": (lying, "(<lambda>)")}


@pytest.fixture(scope="module")
def honest():
    return judge(network(lambda images: images), toys.KEY, *toys.digits()[1], epsilon=toys.EPSILON)


@pytest.fixture(scope="module", params=toys.marked(BROKEN, slow={"detached", "lying rule"}))
def broken(request):
    """A name and a verdict, nothing declared."""
    prepare, _ = BROKEN[request.param]
    return request.param, judge(network(prepare), toys.KEY, *toys.digits()[1], epsilon=toys.EPSILON)


def test_without_hints_as_much_is_found_as_with(broken, honest):
    name, own = broken
    known = honest  # the same function, but for the one that is quantised
    if name == "quantised":
        hints = Hints(surrogate_fn=network(bpda(cut, lambda images: images)))
        known = judge(network(cut), toys.KEY, *toys.digits()[1], epsilon=toys.EPSILON, hints=hints)
    assert own.worst_case <= known.worst_case + 0.011
    assert {"again:apgd-ce", "again:apgd-t"} <= set(own.misclassified_by)  # though the relaxed gradient helped
    assert own.flags["relaxation_helps"].status == "fail"


def test_the_report_names_the_line(broken):
    name, own = broken
    (finding,) = own.findings
    assert "test_relaxations.py:" in finding.where and finding.where.endswith(BROKEN[name][1])
    (remedy,) = own.remedies
    assert remedy.hidden == remedy.num_images > 0 and remedy.misclassified > 0
    page, data = trust.markdown(own), json.loads(json.dumps(trust.to_json(own)))
    assert "## What the network's program hides" in page and finding.where in page
    assert data["findings"][0]["where"] == finding.where and data["remedies"][0]["hidden"] == remedy.hidden
    assert finding.where in own.flags["relaxation_helps"].explanation


def test_an_honest_network_is_accused_of_nothing_and_nothing_is_run_for_it(honest):
    verdict = honest
    assert verdict.findings == () and verdict.remedies == () and verdict.flags["relaxation_helps"].status == "na"
    assert not [name for name in verdict.misclassified_by if name.startswith("relaxed")]
    assert {"again:apgd-ce", "again:apgd-t"} <= set(verdict.misclassified_by)
    assert not [name for name, flag in verdict.flags.items() if flag.status in ("warn", "fail")]
    assert "What the network's program hides" not in trust.markdown(verdict)


def test_a_finding_that_hides_nothing_accuses_of_nothing():
    # The images have sixteen levels: rounding to them where an attack is far from half a level changes little, but
    # here the rounded part is a hundredth of what counts.
    images, labels = toys.digits()[1]
    faint = network(lambda images: images + 0.01 * jnp.round(16.0 * images) / 16.0)
    verdict = judge(faint, toys.KEY, images, labels, epsilon=toys.EPSILON)
    assert [finding.kind for finding in verdict.findings] == ["step"]
    assert verdict.flags["relaxation_helps"].status == "pass"
    assert verdict.remedies[0].hidden == 0


@pytest.mark.slow
def test_a_random_network_is_attacked_through_what_it_hides_over_draws():
    images, labels = toys.digits()[1]
    params = toys.trained(toys.EPSILON)

    def noisy(images, key):
        return toys.mlp(params, cut(images + 0.02 * jax.random.normal(key, images.shape)))

    verdict = judge(noisy, toys.KEY, images, labels, epsilon=toys.EPSILON, hints=Hints(stochastic=True))
    assert {finding.kind for finding in verdict.findings} == {"random", "step"}
    assert verdict.flags["relaxation_helps"].status == "fail" and verdict.worst_case < verdict.clean


@pytest.mark.slow
def test_a_loop_that_takes_gradients_is_left_out_for_a_transfer():
    images, labels = toys.digits()[1]

    def away(x):
        """Ends on the nearest of five levels, by steps whose own gradient vanishes."""
        pull = jax.grad(lambda y: jnp.sum((jnp.round(4.0 * y) / 4.0 - y) ** 2))
        return jax.lax.fori_loop(0, 3, lambda i, c: jnp.round(4.0 * (c - 0.5 * pull(c))) / 4.0, x)

    verdict = judge(network(away), toys.KEY, images, labels, epsilon=toys.EPSILON)
    assert {finding.kind for finding in verdict.findings} == {"inner_optimisation", "step"}
    assert verdict.flags["relaxation_helps"].status == "fail"
