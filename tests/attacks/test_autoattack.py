"""AutoAttack as a whole: closed forms, networks known to be broken, and the driver's bookkeeping."""

import copy
import pickle
import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustjax.attacks import AutoAttackResult, autoattack
from robustjax.attacks.engine import lanes
from robustjax.attacks.engine import threads as threads_lib
from robustjax.attacks.engine import verify as verify_lib
from robustjax.attacks.engine.candidates import Candidates
from robustjax.attacks.engine.verify import Acceptance, is_correct, is_valid
from robustjax.types import InputError

quick = partial(autoattack, batch_size=16)


@pytest.mark.parametrize("norm", toys.NORMS)
def test_standard_breaks_exactly_what_lies_within_epsilon(norm, key):
    distances, labels = toys.linear_distances(norm)
    distances = np.where(distances > 1e-3, distances, np.inf)  # closer ones drown in rounding
    epsilon = np.where(np.arange(16) % 2 == 0, 0.98, 1.02) * np.where(np.isfinite(distances), distances, 0.0)
    result = quick(toys.linear, key, toys.IMAGES, labels, epsilon=epsilon, norm=norm)
    expected = (np.arange(16) % 2 == 0) | ~np.isfinite(distances)
    np.testing.assert_array_equal(result.robust, expected)
    np.testing.assert_array_equal(is_correct(toys.linear(result.images), labels), expected)
    assert bool(jnp.all(is_valid(toys.IMAGES, result.images, epsilon=epsilon, norm=norm)))
    np.testing.assert_array_equal(result.images[expected], toys.IMAGES[expected])
    assert list(result.by_attack) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    flags = np.stack(list(result.by_attack.values()))
    assert np.all(flags[1:] <= flags[:-1]) and np.array_equal(flags[-1], result.robust)


def test_a_certified_network_is_never_broken_inside_its_radius(key):
    distances, labels = toys.voronoi_distances()
    inside = quick(toys.nearest_centre, key, toys.IMAGES, labels, epsilon=0.99 * distances, norm="l2", version="plus")
    assert inside.robust.all() and len(inside.by_attack) == 6
    outside = quick(toys.nearest_centre, key, toys.IMAGES, labels, epsilon=1.02 * distances, norm="l2")
    assert not outside.robust.any()


def killing(images):
    """No gradient anywhere."""
    return jax.lax.stop_gradient(toys.binary(images))


def quantised(images):
    """Pixels rounded to 20 levels: the gradient is 0 almost everywhere."""
    return toys.binary(jnp.round(images * 20) / 20)


def saturated(images):
    """Logits 1e4 apart, whose softmax is 1 and 0."""
    return 1e5 * toys.binary(images)


@pytest.mark.parametrize("network", [killing, quantised, saturated])
def test_standard_breaks_what_only_hides_its_gradients(network, key):
    distances, _ = toys.binary_distances("linf")
    labels = jnp.argmax(network(toys.IMAGES), axis=1)
    result = quick(network, key, toys.IMAGES, labels, epsilon=1.5 * distances + 0.05)
    assert not result.robust.any()
    # Square finds what the others leave, and they are not credited with it.
    assert network is not killing or all(result.by_attack[name].any() for name in ("apgd-ce", "apgd-t", "fab-t"))


def noisy(images, key):
    """The sign of the score is right in 7 of 10 draws, and so is the gradient's."""
    sign = jnp.where(jax.random.bernoulli(key, 0.7, (images.shape[0], 1)), 1.0, -1.0)
    return sign * toys.binary(images)


def test_rand_breaks_what_hides_behind_noise_and_judges_by_fresh_draws(key):
    distances, labels = toys.binary_distances("linf")
    order = np.argsort(distances)[8:]  # the others are so near that draws decide
    images, labels, distances = toys.IMAGES[order], labels[order], distances[order]
    broken = quick(noisy, key, images, labels, epsilon=1.2 * distances, version="rand")
    assert list(broken.by_attack) == ["apgd-ce", "apgd-dlr"]
    assert broken.robust.sum() <= 1
    # Inside the radius three draws of ten are wrong, and among many steps some get more: none may count.
    assert quick(noisy, key, images, labels, epsilon=0.9 * distances, version="rand").robust.sum() >= 7


@pytest.mark.parametrize("eot_samples", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_attacks_that_move_nothing_leave_the_clean_majority(eot_samples, key):
    """Each draw is right with a probability of 0.6, whatever the image."""

    def deaf(images, key):
        right = jax.random.bernoulli(key, 0.6, (images.shape[0], 1))
        return jnp.where(right, 1.0, -1.0) * jnp.array([[1.0, 0.0, 0.0]]) + 1e-3 * toys.linear(images)[:, :3]

    labels = np.zeros(16, np.int32)
    attack = partial(quick, deaf, key, toys.IMAGES, labels, epsilon=1e-6, version="rand", eot_samples=eot_samples)
    result = attack()
    assert result.robust.all() and all(robust.all() for robust in result.by_attack.values())
    np.testing.assert_array_equal(result.images, toys.IMAGES)
    found = result.acceptance["worst_case"]
    assert found == result.acceptance["clean"] and found.num_draws == 200
    assert found.majority == 1.0 and found.worst == 0.0 and abs(found.expected - 0.6) < 0.03
    assert found.interval_95[0] < 0.6 < found.interval_95[1] and found.majority_interval_95[0] < 1.0
    # Few draws are wrong about a fifth of the images; the attacks still change nothing.
    few = attack(num_draws=5)
    right = np.mean(few.robust)
    clean = quick(deaf, key, toys.IMAGES, labels, epsilon=0.0, version=["apgd-ce"], eot_samples=2, num_draws=5)
    assert right < 1 and np.array_equal(few.robust, clean.robust)


def test_what_one_attack_finds_in_few_draws_is_left_to_the_later_ones(key):
    """Half of the images are misclassified in six of ten draws: later attacks still get them."""

    def network(images, key):
        sign = jnp.where(jax.random.bernoulli(key, 0.6, (images.shape[0], 1)), 1.0, -1.0)
        return sign * toys.binary(images)

    distances, labels = toys.binary_distances("linf")
    epsilon = np.where(np.arange(16) % 2 == 0, 1.3, 0.5) * distances
    seen = []
    result = quick(
        network, key, toys.IMAGES, labels, epsilon=epsilon, version=["apgd-ce", "apgd-t"], eot_samples=4,
        progress=lambda name, done, count: seen.append(count),
    )  # fmt: skip
    np.testing.assert_array_equal(result.robust, np.arange(16) % 2 == 1)
    assert min(seen) >= 15, "an image leaves the queue only if all draws misclassify it"
    flags = list(result.by_attack.values())
    assert np.all(flags[1] <= flags[0]) and np.array_equal(flags[1], result.robust)
    np.testing.assert_array_equal(result.images[1::2], toys.IMAGES[1::2])
    assert not np.any(is_correct(toys.binary(result.images[::2]), labels[::2]))


def test_the_strongest_candidates_are_kept():
    kept = Candidates(np.zeros((2, 1, 1, 1), np.float32), 2)
    for number, (share, loss) in enumerate([(0.5, 1.0), (0.2, 9.0), (0.5, 2.0), (0.4, 0.0), (0.5, 1.0)]):
        point = np.full((1, 1, 1, 1), number + 1, np.float32)
        kept.add("abcde"[number], np.array([1]), point, np.float32([share]), np.float32([loss]))
    assert sorted(kept.points[:, 1].ravel()) == [1.0, 3.0] and sorted(kept.attack[:, 1]) == ["a", "c"]  # ties stay
    assert np.all(kept.share[:, 0] == -1) and kept.attack[:, 0].tolist() == [None] * 2 and not kept.points[:, 0].any()
    assert kept.strongest().attack.tolist() == [None, "c"]
    before = kept.strongest(["a", "b"])
    assert before.attack.tolist() == [None, "a"] and before.points.ravel().tolist() == [0.0, 1.0]
    assert kept.strongest([]).share.tolist() == [-1.0, -1.0] and not kept.strongest([]).points.any()
    # Other draws rank anew, and do not make candidates of what is none.
    kept.choose(lambda points: np.where(points.ravel() == 1.0, 0.9, 0.3))
    assert kept.strongest().attack.tolist() == [None, "a"] and kept.share[:, 0].tolist() == [-1.0, -1.0]


def test_more_attacks_are_no_more_chances():
    """A network whose every image is right in half of the draws, independently: each point has a chance of its own."""
    rng, count = np.random.default_rng(0), 2000
    images = np.zeros((count, 1), np.float32)
    kept = Candidates(images, 3)
    coins = lambda: rng.binomial(21, 0.5, count).astype(np.float32) / 21  # noqa: E731
    for attack in range(30):
        kept.add(str(attack), np.arange(count), images + attack, coins())
    assert np.mean(kept.strongest().share >= 0.5) > 0.99  # by the draws on which they were found
    kept.choose(lambda points: coins())
    assert np.mean(kept.strongest().share >= 0.5) > 0.8  # by those that chose among three
    assert abs(np.mean(coins() >= 0.5) - 0.5) < 0.05  # by those that decide


def test_in_a_prompt_a_result_is_a_line():
    robust = np.array([True, True, False, False])
    found = AutoAttackResult(np.zeros((4, 2, 2, 1)), robust, {"apgd-ce": robust | True, "square": robust})
    told = "50.00% of 4 images are robust: 100.00% after apgd-ce, 50.00% after square"
    assert (str(found), repr(found)) == (told, f"<AutoAttackResult: {told}>")
    assert str(found._replace(robust=robust[:0])) == "no image"


def test_a_result_unpacks_into_three_and_keeps_its_draws_beside_them():
    acceptance = {"clean": Acceptance(20, 0.7, (0.2, 0.9), 0.75, 0.5, (0.3, 0.95), (0.1, 0.85))}
    found = AutoAttackResult(np.zeros((1, 2, 2, 1)), np.array([True]), {"square": np.array([False])}, acceptance)
    copies = [found, pickle.loads(pickle.dumps(found)), copy.copy(found), copy.deepcopy(found)]
    copies += [found._replace(robust=found.robust), jax.device_get(found), jax.tree.map(np.copy, found)]
    if hasattr(copy, "replace"):  # Python 3.13
        copies.append(copy.replace(found, robust=found.robust))
    for same in copies:
        images, robust, by_attack = same
        assert len(same) == 3 and same[2] is by_attack and same[-2] is robust
        assert (images.shape, robust.tolist(), list(by_attack)) == ((1, 2, 2, 1), [True], ["square"])
        assert same.acceptance == acceptance
    assert found._replace(acceptance={}).acceptance == {}

    class Named(AutoAttackResult):
        pass

    assert type(Named(*found, acceptance)._replace(robust=found.robust)) is Named


def test_misclassified_images_are_not_attacked(key):
    distances, labels = toys.linear_distances("linf")
    wrong = labels.at[:5].set((labels[:5] + 1) % toys.NUM_CLASSES)
    result = quick(toys.linear, key, toys.IMAGES, wrong, epsilon=0.5 * distances, version=["apgd-ce"])
    np.testing.assert_array_equal(result.robust, np.arange(16) >= 5)
    np.testing.assert_array_equal(result.images, toys.IMAGES)


def test_neither_more_images_nor_other_weights_compile_anything_again(key):
    traces = 0

    def network(weights, images):
        nonlocal traces
        traces += 1
        return jnp.tanh(images.reshape(images.shape[0], -1) @ weights) @ toys.READOUT

    many = jnp.concatenate([toys.IMAGES, toys.IMAGES[:, ::-1], toys.IMAGES[:, :, ::-1]])
    weights = toys.HIDDEN
    counts = []
    for images, scale in ((toys.IMAGES, 1.0), (many, 1.0), (many, 0.5)):
        logits_fn = jax.tree_util.Partial(network, scale * weights)
        labels = jnp.argmax(logits_fn(images), axis=1)
        before = traces
        quick(logits_fn, key, images, labels, epsilon=0.02, version=["apgd-ce", "square"])
        counts.append(traces - before)
    # Once each for the clean pass, the count of its operations, the check, and the two attacks.
    assert counts[0] <= 5 and counts[1:] == [0, 0]


def test_results_do_not_depend_on_the_batch_size(key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)
    attack = partial(autoattack, toys.smooth, key, toys.IMAGES, labels, epsilon=0.03, version=["apgd-t", "square"])
    small, large = attack(batch_size=4), attack(batch_size=16)
    assert 0 < large.robust.sum() < 16
    for name in large.by_attack:
        np.testing.assert_array_equal(small.by_attack[name], large.by_attack[name])
    np.testing.assert_allclose(small.images, large.images, atol=1e-5)


def test_devices_share_the_batches_and_change_nothing(key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)
    attack = partial(autoattack, toys.smooth, key, toys.IMAGES, labels, epsilon=0.03, version=["apgd-t", "square"])
    alone, seen = attack(batch_size=16), []
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    shared = attack(batch_size=16, sharding=split, progress=lambda *report: seen.append(report))
    assert 0 < alone.robust.sum() < 16
    for name in alone.by_attack:
        np.testing.assert_array_equal(shared.by_attack[name], alone.by_attack[name])
    np.testing.assert_allclose(shared.images, alone.images, atol=1e-5)
    names, done, robust = zip(*seen, strict=True)
    assert names[0] == "apgd-t" and (names[-1], robust[-1]) == ("square", alone.robust.sum())
    assert list(done) == sorted(done) and done[0] >= 0 and done[-1] == 1.0
    explicit = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))  # the axes that make_mesh makes
    np.testing.assert_array_equal(attack(batch_size=16, sharding=explicit).images, shared.images)
    with pytest.raises(InputError, match="batch_size must be a multiple of the 4 devices, got 6"):
        attack(batch_size=6, sharding=split)
    with pytest.raises(InputError, match=r"sharding must be a jax\.sharding\.NamedSharding or None, got 'batch'"):
        attack(batch_size=4, sharding="batch")


def test_a_mesh_that_is_set_around_the_call_changes_nothing(key):
    """Its Explicit axes are not those on which the batches are, and neither key nor weights stay on them."""
    smooth = lambda hidden, images: jnp.tanh(images.reshape(len(images), -1) @ hidden) @ toys.READOUT  # noqa: E731
    labels = np.argmax(toys.smooth(toys.IMAGES), axis=1)

    def attack(**options):
        return autoattack(
            jax.tree_util.Partial(smooth, toys.HIDDEN + 0.0), jax.random.fold_in(key, 0), toys.IMAGES, labels,
            epsilon=0.03, version=["apgd-ce", "apgd-t"], batch_size=16, **options,
        )  # fmt: skip

    mesh = jax.make_mesh((4,), ("data",))
    outside = attack()
    with jax.set_mesh(mesh):
        for sharding in (None, NamedSharding(mesh, PartitionSpec("data"))):
            inside = attack(sharding=sharding)
            np.testing.assert_allclose(inside.images, outside.images, atol=1e-5)
        coarse = jax.tree_util.Partial(smooth, toys.HIDDEN + 0.0)
        np.testing.assert_array_equal(attack(sharding=sharding, bfloat16_fn=coarse).robust, outside.robust)
        assert jax.sharding.get_abstract_mesh().axis_types == (AxisType.Explicit,)
    assert 0 < outside.robust.sum() < 16


@pytest.fixture
def in_lanes(monkeypatch):
    """AutoAttack as on a machine of so many cores, with 16 images to each lane."""

    def attack(num_lanes, *arguments, **options):
        monkeypatch.setattr(threads_lib, "cores", lambda: num_lanes)
        used = []
        monkeypatch.setattr(threads_lib, "merged", lambda given: used.append(len(given)) or merged(given))
        result = autoattack(*arguments, batch_size=16 * num_lanes, **options)
        assert num_lanes in used
        return result

    merged = threads_lib.merged
    return attack


MANY = jnp.concatenate([toys.IMAGES, toys.IMAGES[:, ::-1], toys.IMAGES[:, :, ::-1]])


def test_lanes_change_nothing(in_lanes, key):
    labels, seen = jnp.argmax(toys.smooth(MANY), axis=1), []
    attack = partial(in_lanes, epsilon=0.03, version=["apgd-t", "fab-t", "square"])
    alone = attack(1, toys.smooth, key, MANY, labels)
    together = attack(2, toys.smooth, key, MANY, labels, progress=lambda *report: seen.append(report))
    assert 0 < alone.robust.sum() < len(MANY)
    for name in alone.by_attack:
        np.testing.assert_array_equal(together.by_attack[name], alone.by_attack[name])
    np.testing.assert_allclose(together.images, alone.images, atol=1e-5)
    names, done, robust = zip(*seen, strict=True)
    assert list(done) == sorted(done) and done[0] >= 0 and done[-1] == 1.0
    assert (names[-1], robust[-1]) == ("square", alone.robust.sum())


def test_noise_in_lanes_depends_on_the_seed_alone(in_lanes, key):
    def uneven(images, key):
        """Other lanes' looks take other times, from turn to turn."""
        jax.debug.callback(lambda: time.sleep(rng.uniform(0, 2e-4)))
        return toys.smooth(images) + 0.05 * jax.random.normal(key, (images.shape[0], toys.NUM_CLASSES))

    rng = np.random.default_rng(0)
    labels = jnp.argmax(toys.smooth(MANY), axis=1)
    attack = partial(in_lanes, 2, uneven, images=MANY, labels=labels, epsilon=0.03, version=["apgd-ce"], eot_samples=3)
    first, again, other = (attack(key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert 0 < first.robust.sum() < len(MANY)
    np.testing.assert_array_equal(first.robust, again.robust)
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("culprit", ["lane", "caller"])
def test_an_error_ends_all_lanes_and_reaches_the_caller(culprit, in_lanes, key, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    labels = jnp.argmax(toys.smooth(MANY), axis=1)
    options, threads = {"epsilon": 0.03, "version": ["apgd-t", "square"]}, threading.active_count()
    if culprit == "lane":
        monkeypatch.setattr(lanes.Driver, "_rows", fail)
    else:
        options["progress"] = fail
    with pytest.raises(KeyboardInterrupt):
        in_lanes(2, toys.smooth, key, MANY, labels, **options)
    assert threading.active_count() == threads


def test_a_compilation_in_the_background_that_fails_is_reported(in_lanes, key, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory left to compile")

    monkeypatch.setattr(lanes.Driver, "compile", fail)
    labels = jnp.argmax(toys.smooth(MANY), axis=1)
    with pytest.raises(RuntimeError, match="no memory left to compile"):
        in_lanes(2, toys.smooth, key, MANY, labels, epsilon=0.03, version=["apgd-ce", "apgd-t", "square"])


def test_lanes_give_the_same_images_whatever_the_machine_does(in_lanes, key):
    def uneven(images):
        jax.debug.callback(lambda: time.sleep(rng.uniform(0, 2e-4)))
        return toys.smooth(images)

    rng = np.random.default_rng(0)
    labels = jnp.argmax(toys.smooth(MANY), axis=1)
    first, again = (in_lanes(2, uneven, key, MANY, labels, epsilon=0.03, version=["apgd-t"]) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)


def test_settings_that_threads_would_not_see_keep_to_one_lane(monkeypatch):
    monkeypatch.setattr(threads_lib, "cores", lambda: 8)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    most_lanes = partial(threads_lib.most_lanes, least=16)
    assert most_lanes(64, None) == 4 and most_lanes(32, None) == 2 and most_lanes(8, None) == 1
    assert most_lanes(64, NamedSharding(mesh, PartitionSpec("data"))) == 1
    for setting in (jax.default_matmul_precision("float32"), jax.debug_nans(True), jax.set_mesh(mesh)):
        with setting:
            assert most_lanes(64, None) == 1


def test_a_broken_image_costs_nothing_more(key):
    passes = []

    def counting(images):
        jax.debug.callback(lambda: passes.append(images.shape[0]))
        return toys.linear(images)

    distances, labels = toys.linear_distances("linf")
    labels = jnp.tile(labels, 8)
    images = jnp.tile(toys.IMAGES, (8, 1, 1, 1))
    spent = []
    for factor in (1.5, 0.9):
        passes.clear()
        quick(counting, key, images, labels, epsilon=np.tile(factor * distances, 8), version=["apgd-t", "fab-t"])
        jax.effects_barrier()
        spent.append(sum(passes))
    assert spent[1] > 128 * 4 * (101 + 2 * 100)
    assert spent[0] < spent[1] / 10


@pytest.mark.parametrize("lie", ["is_valid", "is_correct"])
def test_nothing_counts_that_does_not_stand_a_second_look(lie, key, monkeypatch):
    distances, labels = toys.linear_distances("linf")
    monkeypatch.setattr(verify_lib, lie, lambda first, *rest, **options: jnp.full(first.shape[:1], lie == "is_correct"))
    network = lambda images: toys.linear(images)  # noqa: E731  # a new one, so that it is compiled with the patch
    result = quick(network, key, toys.IMAGES, labels, epsilon=2 * distances, version=["apgd-ce"])
    assert result.robust.all() and np.array_equal(result.images, toys.IMAGES)


def test_two_classes_another_box_and_images_that_are_not_square(key):
    distances, labels = toys.binary_distances("linf")
    wide = lambda images: toys.binary(images / 4.0 + 0.5)  # noqa: E731
    images = 4.0 * (toys.IMAGES - 0.5)
    epsilon = np.where(np.arange(16) < 8, 4.4, 3.6) * distances
    result = quick(wide, key, images, labels, epsilon=epsilon, bounds=(-2.0, 2.0))
    np.testing.assert_array_equal(result.robust, np.arange(16) >= 8)


def test_the_bar_shows_images_left_and_accuracy(key, capsys, monkeypatch):
    distances, labels = toys.linear_distances("linf")
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
        quick(toys.linear, key, toys.IMAGES, labels, epsilon=2 * distances, version=["apgd-t"], progress=True)
        printed = capsys.readouterr().out
        assert "0 images left, accuracy 0.00%" in printed and ("ETA" in printed) == terminal
    quick(toys.linear, key, toys.IMAGES, labels, epsilon=2 * distances, version=["apgd-t"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "quick"}, "version must be one of standard, plus, rand, fast"),
        ({"version": ["pgd"]}, "version must be one of"),
        ({"version": []}, "version must be one of"),
        ({"norm": "l7"}, "norm must be one of"),
        ({"epsilon": -0.1}, "epsilon must be a number >= 0"),
        ({"epsilon": np.zeros(3)}, "epsilon must be a number >= 0, or one for each of 16"),
        ({"images": 255 * toys.IMAGES}, r"images must be finite pixels in bounds \[0.0, 1.0\]"),
        ({"images": toys.IMAGES.at[0, 0, 0, 0].set(jnp.nan)}, "images must be finite pixels in bounds"),
        ({"images": toys.IMAGES[0]}, "images must be floats"),
        ({"labels": jnp.zeros(3, jnp.int32)}, r"labels must be integers \[16\]"),
        ({"labels": jnp.full(16, 5, jnp.int32)}, "labels must be classes 0 to 4"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"logits_fn": lambda images: images}, r"logits_fn must return float logits \[16, K\] with K >= 2"),
    ],
)
def test_wrong_input_is_one_clear_line(change, message, key):
    arguments = {
        "logits_fn": toys.linear, "key": key, "images": toys.IMAGES, "labels": jnp.zeros(16, jnp.int32),
        "epsilon": 0.1, **change,
    }  # fmt: skip
    with pytest.raises(InputError, match=message) as caught:
        quick(arguments.pop("logits_fn"), *(arguments.pop(name) for name in ("key", "images", "labels")), **arguments)
    assert "\n" not in str(caught.value)
