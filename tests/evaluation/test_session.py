"""Going on where an evaluation was stopped, on a network whose every answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.data import Dataset
from robustjax.evaluation.protocol import runner, session
from robustjax.evaluation.protocol.protocols import CLEAN, Protocol, Threat
from robustjax.evaluation.protocol.store import open_store
from robustjax.runtime import sharding

LEVELS = np.arange(5, 255, 25, dtype=np.uint8)
DATASET = Dataset("levels", LEVELS.reshape(10, 1, 1, 1), (LEVELS > 127).astype(np.int32), 2, ("dark", "light"))


class Killed(BaseException):
    """Like a signal, nothing that anybody catches."""


def network(variables, images):
    score = variables * (images.mean(axis=(1, 2, 3)) - 0.5)
    return jnp.stack([-score, score], axis=1)


def drawing(logits_fn, key, images, labels, *, epsilon):
    return jnp.clip(images + epsilon * jax.random.uniform(key, images.shape, minval=-1.0), 0.0, 1.0)


def tasks(folder, epsilon=0.3):
    protocols = {"clean": CLEAN, "drawing": Protocol(drawing, {"epsilon": epsilon}, num_steps=1, passes=3)}
    return [
        session.Task(name, protocol, open_store(folder, name, {"epsilon": epsilon}))
        for name, protocol in protocols.items()
    ]


def run(folder, *, most=99, epsilon=0.3, num_examples=10, counted=None, **options):
    """The outcomes, killed before unit number `most`."""
    part = DATASET._replace(images=DATASET.images[:num_examples], labels=DATASET.labels[:num_examples])
    ran = [] if counted is None else counted

    class Counting(runner.Runner):
        def run_unit(self, protocol, key, index, progress):
            if len(ran) == most:
                raise Killed
            ran.append((protocol.num_steps, index))
            return super().run_unit(protocol, key, index, progress)

    made = Counting(
        jax.tree_util.Partial(network, jnp.float32(1.0)), part.images, part.labels, threat=Threat("linf", epsilon),
        batch_size=4, layout=sharding.layout(),
    )  # fmt: skip
    return list(session.outcomes(made, tasks(folder, epsilon), key=jax.random.key(0), **options))


def same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.right, other.right)
        np.testing.assert_array_equal(one.predictions, other.predictions)
        np.testing.assert_array_equal(one.adversarial, other.adversarial)


def test_killed_at_any_batch_it_goes_on_and_ends_the_same(tmp_path, capsys):
    whole = run(tmp_path / "whole")
    assert 0 < whole[1].robust.sum() < 10
    assert "estimated time for what is left: 1 s, compilation apart" in capsys.readouterr().out
    for most in (0, 1, 3, 5):
        folder, ran = tmp_path / str(most), []
        with pytest.raises(Killed):
            run(folder, most=most)
        same(run(folder, counted=ran), whole)
        assert len(ran) == 6 - most
        capsys.readouterr()
        same(run(folder, most=0), whole)
        assert capsys.readouterr().out == "every batch is stored already, and nothing is run again\n"


def test_what_is_run_beside_stored_attacks_is_named(tmp_path, capsys):
    run(tmp_path, beside="adaptive attacks")
    assert "estimated time for what is left: 1 s, compilation and adaptive attacks apart" in capsys.readouterr().out
    run(tmp_path, most=0, beside="adaptive attacks")
    said = "every batch is stored already, and nothing but adaptive attacks is run again\n"
    assert capsys.readouterr().out == said


def test_more_examples_run_only_what_is_missing(tmp_path):
    ran = []
    few = run(tmp_path, num_examples=7)
    more = run(tmp_path, counted=ran)
    assert sorted(ran) == [(0, 1), (0, 2), (1, 1), (1, 2)]  # the half-full batch and the one after it
    same(run(tmp_path / "apart"), more)
    np.testing.assert_array_equal(more[1].right[:7], few[1].right)
    again = []
    same(run(tmp_path, num_examples=7, counted=again), few)
    assert not again  # fewer examples are in what is there


def test_other_settings_do_not_mix(tmp_path):
    run(tmp_path)
    ran = []
    run(tmp_path, epsilon=0.2, counted=ran)
    assert len(ran) == 6


def test_a_damaged_batch_is_named_and_run_again(tmp_path, capsys):
    whole = run(tmp_path)
    path = tasks(tmp_path)[1].store.folder / "00001.batch"
    path.write_bytes(path.read_bytes()[:-5])
    ran = []
    same(run(tmp_path, counted=ran), whole)
    assert ran == [(1, 1)]
    assert f"warning: {path} is damaged; it is run again" in capsys.readouterr().out


def test_the_quickest_attack_is_timed_first_and_its_batch_is_kept(tmp_path):
    ran = []
    run(tmp_path, counted=ran)
    assert ran == [(1, 0), (0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]


def test_an_attack_draws_the_same_whatever_runs_beside_it():
    three, four = jax.random.key(3), jax.random.key(4)
    key = session.attack_key(three, "pgd20")
    assert key == session.attack_key(three, "pgd20")
    assert key != session.attack_key(three, "pgd100") and key != session.attack_key(four, "pgd20")
