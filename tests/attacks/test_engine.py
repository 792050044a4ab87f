"""The parts under AutoAttack, one by one: sizes of attacks and batches, steps, calls in the background."""

import os
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import models
from robustjax.attacks import _autoattack as autoattack_lib
from robustjax.attacks import autoattack
from robustjax.attacks.engine import lanes, threads
from robustjax.attacks.engine import sizes as sizes_lib
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.search import Search, advance
from robustjax.attacks.engine.threads import Background, each
from robustjax.types import InputError


class State(NamedTuple):
    """Steps taken, the data of their keys, and the best points."""

    count: jax.Array
    drawn: jax.Array
    best: Best


# (norm, version) -> attack -> evaluations, targets, restarts, passes of each evaluation. APGD evaluates its start, in
# l1 that of each of three phases; a gradient counts as two passes; FAB of 9 wrong classes takes the gradients of all.
PUBLISHED = {
    ("linf", "standard"): {
        "apgd-ce": (101, 1, 1, 3), "apgd-t": (101, 9, 1, 3), "fab-t": (100, 9, 1, 4), "square": (5000, 1, 1, 1),
    },
    ("l1", "standard"): {
        "apgd-ce": (103, 1, 5, 3), "apgd-t": (103, 5, 1, 3), "fab-t": (100, 9, 1, 4), "square": (5000, 1, 1, 1),
    },
    ("l2", "plus"): {
        "apgd-ce": (101, 1, 5, 3), "apgd-dlr": (101, 1, 5, 3), "fab": (100, 1, 5, 20), "square": (5000, 1, 1, 1),
        "apgd-t": (101, 9, 1, 3), "fab-t": (100, 9, 1, 4),
    },
    ("linf", "rand"): {"apgd-ce": (101, 1, 1, 60), "apgd-dlr": (101, 1, 1, 60)},
}  # fmt: skip


@pytest.mark.parametrize(("norm", "version"), PUBLISHED)
def test_every_attack_of_a_version_has_the_published_size(norm, version):
    eot_samples = 20 if version == "rand" else 0
    found = {}
    for name in autoattack_lib.attack_names(version):
        stage = autoattack_lib._stage(name, norm, version, (0.0, 1.0), eot_samples, 9)
        found[name] = (stage.search.num_steps, stage.num_targets, stage.num_restarts, stage.cost)
        options = stage.search.options
        assert (options.norm, options.eot_samples, options.targeted) == (norm, eot_samples, name == "fab-t")
    assert found == PUBLISHED[norm, version] and list(found) == list(PUBLISHED[norm, version])
    # With three classes there are two to aim at.
    assert autoattack_lib._stage("apgd-t", norm, version, (0.0, 1.0), 0, 2).num_targets == 2


def test_a_batch_has_the_largest_size_of_which_fewer_slots_stay_empty_than_the_next_one_has():
    for num_lanes, counts in ((1, (64, 49, 48, 13, 12, 1)), (2, (128, 97, 96, 25, 24, 1))):
        assert [sizes_lib.Sizes((64, 16, 4)).first(count, num_lanes) for count in counts] == [64, 64, 16, 16, 4, 4]


def test_a_batch_of_a_heavy_network_has_no_empty_slots_and_is_one_unless_there_are_too_many_images():
    sizes = sizes_lib.Sizes((32, 16), any_size=True)
    assert [sizes.first(count, 2) for count in (0, 1, 5, 32, 33, 50, 200)] == [1, 1, 5, 32, 17, 25, 32]


@pytest.mark.parametrize(
    ("heavy", "size", "count", "passes", "then"),
    [
        (False, 64, 16, 1500, 16), (False, 64, 16, 1499, 64), (False, 64, 17, 5000, 64), (False, 16, 3, 5000, 16),
        (True, 32, 16, 1500, 16), (True, 32, 16, 1499, 32), (True, 32, 5, 889, 5), (True, 32, 5, 888, 32),
        (True, 6, 5, 20_000, 6), (True, 6, 5, 24_000, 5), (True, 6, 6, 24_000, 6),
    ],
)  # fmt: skip
def test_a_batch_is_made_smaller_where_that_saves_enough(heavy, size, count, passes, then):
    assert sizes_lib.Sizes((64, 16), any_size=heavy).smaller(size, count, passes) == then


def test_gradients_of_a_stochastic_network_are_means_of_the_published_number_of_draws():
    assert autoattack_lib.RAND_EOT_SAMPLES == 20


def test_the_worst_case_of_a_network_that_draws_is_what_all_attacks_left(key):
    def network(images, key):
        score = jnp.sum(images - 0.4, axis=(1, 2, 3))
        return jnp.stack([score, -score], axis=1)

    images, labels = np.full((4, 2, 2, 1), 0.5, np.float32), np.zeros(4, np.int32)
    found = autoattack(
        network, key, images, labels, epsilon=np.array([0.05, 0.2, 0.2, 0.2]), norm="linf", version=["apgd-ce"],
        eot_samples=2, batch_size=4,
    )  # fmt: skip
    np.testing.assert_array_equal(found.robust, [True, False, False, False])
    assert found.acceptance["clean"].expected == 1.0 and found.acceptance["worst_case"].expected == 0.25
    assert found.acceptance["worst_case"].num_draws == 200  # as documented


@pytest.mark.parametrize(("stops_early", "taken"), [(False, 5), (True, 2)])
def test_so_many_steps_are_taken_each_with_a_key_of_its_own(stops_early, taken):
    """Both examples are misclassified from the second step on."""
    key = jax.random.key(3)

    def step(options, logits_fn, key, problem, state):
        count = state.count + 1
        drawn = state.drawn.at[state.count].set(jax.random.key_data(key))
        share = jnp.where(count >= jnp.array([1, 2]), 1.0, 0.5)
        return State(count, drawn, state.best._replace(share=share))

    state = State(jnp.int32(0), jnp.zeros((7, 2), jnp.uint32), Best.none(jnp.zeros((2, 1, 1, 1))))
    search = Search(None, step, 5, None, stops_early)
    state = advance(search, None, key, None, state, 5)
    expected = np.zeros((7, 2), np.uint32)
    expected[:taken] = [jax.random.key_data(jax.random.fold_in(key, i)) for i in range(taken)]
    assert state.count == taken
    np.testing.assert_array_equal(state.drawn, expected)


def test_a_look_at_calls_in_the_background_waits_for_nothing_and_what_never_began_is_no_error():
    held, called = threading.Event(), []
    with Background() as background:
        background.begin(held.wait, 20.0)
        background.begin(called.append, "never")
        began = time.monotonic()
        background.check()
        assert time.monotonic() - began < 5.0
        timer = threading.Timer(0.2, held.set)
        timer.start()
    timer.join()
    assert held.is_set() and not called


def test_what_a_call_in_the_background_raised_is_raised_by_a_look_or_in_the_end():
    def fails():
        raise ValueError("of the call")

    background = Background()
    with pytest.raises(ValueError, match="of the call"), background:
        background.begin(fails)
    with pytest.raises(ValueError, match="of the call"):
        background.check()


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_results_of_several_threads_are_in_order_and_the_first_call_is_alone(num_lanes):
    running, at_once, done_before = [], [], []

    def call(i):
        running.append(i)
        done_before.append((i, len(running)))
        time.sleep(0.02 if i % 2 else 0.05)
        at_once.append(len(running))
        running.remove(i)
        return -i

    assert each(call, list(range(7)), num_lanes) == [-i for i in range(7)]
    assert done_before[0] == (0, 1)
    assert at_once[0] == 1
    assert max(at_once) == num_lanes
    assert each(call, [], num_lanes) == []


def test_what_a_call_in_a_thread_raised_is_raised():
    def call(i):
        if i == 4:
            raise ValueError("four")
        return i

    with pytest.raises(ValueError, match="four"):
        each(call, list(range(7)), 2)


@pytest.mark.parametrize(("heavy", "then"), [(False, 16), (True, 13)])
def test_a_batch_with_few_images_left_goes_on_in_a_smaller_one_with_these(heavy, then, key, monkeypatch):
    sizes = []
    advance = lanes._advance

    def counted(search, bounds, network, key, at, *rest):
        sizes.append(len(at))
        return advance(search, bounds, network, key, at, *rest)

    monkeypatch.setattr(lanes, "_advance", counted)
    monkeypatch.setattr(sizes_lib, "LEAST_PASSES_TO_SHRINK", 1)
    monkeypatch.setattr(threads, "most_lanes", lambda *_, **__: 1)
    bright = np.where(np.arange(64) % 5 == 0, 0.6, 0.505).astype(np.float32)  # 13 are out of reach
    images = np.tile(bright[:, None, None, None], (1, 1, 2, 1))
    network = lambda images: jnp.pad(images.mean(axis=(1, 2, 3))[:, None] - 0.5, ((0, 0), (0, 1)))  # noqa: E731
    if heavy:
        monkeypatch.setattr(sizes_lib, "HEAVY", 1.0)
    options = {"epsilon": 0.01, "version": ["apgd-ce"], "batch_size": 64}
    result = autoattack(network, key, images, np.zeros(64, np.int32), **options)
    np.testing.assert_array_equal(result.robust, bright > 0.55)
    assert sizes[0] == 64 and set(sizes[1:]) == {then}


@pytest.mark.parametrize(
    ("name", "shape", "heavy"), [("small_cnn", (28, 28, 1), False), ("resnet18", (32, 32, 3), True)]
)
def test_what_a_network_computes_for_an_image_says_whether_it_is_heavy(name, shape, heavy):
    module, images = models.create(name), jnp.zeros((1, *shape))
    variables = jax.tree.map(
        lambda each: jnp.zeros(each.shape, each.dtype), jax.eval_shape(module.init, jax.random.key(0), images)
    )
    network = jax.tree_util.Partial(lambda images: module.apply(variables, images).logits)
    assert sizes_lib.is_heavy(network, images, ()) is heavy
    assert sizes_lib.sizes_of(32, 1, heavy=heavy) == ((32, 16), heavy)
    assert sizes_lib.sizes_of(64, 4, heavy=heavy) == ((64, 16), False)
    assert sizes_lib.sizes_of(510, 1, heavy=heavy).common == (510, 128, 32, 16)


class Labelled:
    """Outputs that are no pytree."""

    def __init__(self, logits):
        self.logits = logits


def _of_sixteen(images):
    return jnp.reshape(images, (16, 4))[:, :2]


@pytest.mark.parametrize(
    "network",
    [_of_sixteen, lambda images: jnp.squeeze(images[:, 0, 0, :2]), lambda images: Labelled(images[:, 0, 0, :2])],
    ids=["for sixteen images", "squeezed", "no pytree"],
)
def test_a_network_that_cannot_take_a_single_image_is_called_with_the_common_sizes(network, key, monkeypatch):
    monkeypatch.setattr(sizes_lib, "HEAVY", 0.0)
    monkeypatch.setattr(threads, "most_lanes", lambda *_, **__: 1)
    images = np.tile(np.array([0.505, 0.5, 0.5, 0.5], np.float32), (1, 1, 1, 1))
    options = {"epsilon": 0.01, "version": ["apgd-ce"], "batch_size": 16, "quicken": False}
    assert not autoattack(network, key, images, np.zeros(1, np.int32), **options).robust.any()


def test_a_network_that_raises_is_blamed_whatever_it_would_take(key):
    def network(images):
        return images.reshape(-1, 5)

    with pytest.raises(InputError, match="logits_fn must take images"):
        autoattack(network, key, np.zeros((1, 2, 2, 1), np.float32), np.zeros(1, np.int32), epsilon=0.01)


def test_a_system_that_does_not_tell_its_cores_has_one(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for told, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda told=told: told)
        assert threads.cores() == cores
