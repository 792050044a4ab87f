"""The attacks that are run on the examples, jitted and in batches of one size."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks.engine.search import likeliest_wrong
from robustjax.evaluation.verdict import probes
from robustjax.evaluation.verdict.examples import Examples, margin
from robustjax.evaluation.verdict.goals import LOSSES, Goal, Networks, Plant
from robustjax.types import Key


class Trial(Examples):
    """Attacks on examples; :meth:`submit` verifies their images."""

    @functools.cached_property
    def _ranked(self) -> np.ndarray:
        """The wrong classes of each example, the likeliest first, int32 [N, K - 1]."""
        return np.asarray(likeliest_wrong(jnp.asarray(self.logits), jnp.asarray(self.labels), self.num_classes - 1)).T

    def goal(
        self,
        rows: np.ndarray,
        *,
        view: str,
        loss: str,
        logits_weight: float = 1.0,
        heads_weight: float = 0.0,
        target: int = 0,
        plant: Plant | None = None,
    ) -> Goal:
        """What an attack maximizes for some examples.

        Args:
            rows: of the examples.
            view, loss, logits_weight, heads_weight: as of :class:`goals.Goal`, by their names.
            target: the rank of the wrong class to aim at.
            plant: of these examples, in place of the network's logits; the labels are then 0.
        """
        nothing = Plant(np.zeros((len(rows), self.num_classes), np.float32), np.zeros(len(rows), np.float32))
        return Goal(
            jnp.int32(self.networks.views().index(view)), jnp.int32(LOSSES.index(loss)), jnp.float32(logits_weight),
            jnp.float32(heads_weight), self._ranked[rows, min(target, self.num_classes - 2)],
            jnp.bool_(plant is not None), nothing if plant is None else plant,
        )  # fmt: skip

    def _run(self, name: str, rows: np.ndarray, attack: Callable[[np.ndarray], Any]) -> np.ndarray:
        """Runs a jitted attack, indices -> images, on some examples; the share of draws misclassified, float32 [N]."""
        started = time.perf_counter()
        points = self.over(rows, attack) if len(rows) else self.images[:0]
        share = self.submit(name, rows, points)
        self.timed(name, rows, started, share)
        return share

    def apgd(
        self,
        name: str,
        rows: np.ndarray,
        *,
        view: str,
        networks: Networks | None = None,
        num_draws: int | None = None,
        num_steps: int | None = None,
        **goal: Any,
    ) -> np.ndarray:
        """APGD on a goal; the share of draws misclassified, float32 [N].

        Args:
            name: of the attack.
            rows: of the examples.
            view: whose gradient it follows.
            networks: which has this view; by default this trial's.
            num_draws: in each gradient, of a stochastic network; by default the budget's.
            num_steps: by default the budget's.
            **goal: as of :meth:`goal`.
        """
        attack = self._apgd_of(
            self.labels, lambda some: self.goal(some, view=view, **goal), view, networks, num_draws, num_steps
        )
        return self._run(name, rows, attack)

    def planted_apgd(
        self,
        rows: np.ndarray,
        plant: Plant,
        *,
        view: str,
        loss: str,
        networks: Networks | None = None,
        num_draws: int | None = None,
    ) -> np.ndarray:
        """The same attack on heads of the examples' own; its images, which count for no verdict.

        Args:
            rows: of the examples.
            plant: of all examples, [N, ...].
            view, loss, networks, num_draws: as of :meth:`apgd`.
        """

        def goal(some: np.ndarray) -> Goal:
            return self.goal(some, view=view, loss=loss, plant=Plant(plant.weights[some], plant.threshold[some]))

        attack = self._apgd_of(np.zeros_like(self.labels), goal, view, networks, num_draws)
        return self.over(rows, attack) if len(rows) else self.images[:0]

    def _apgd_of(
        self, labels: np.ndarray, goal: Callable[[np.ndarray], Goal], view: str, networks: Networks | None,
        num_draws: int | None, num_steps: int | None = None,
    ) -> Callable[[np.ndarray], Any]:  # fmt: skip
        key, networks = self.key(), (self.networks if networks is None else networks).only(view)
        eot_samples = (num_draws or self.eot_samples) if self.stochastic else 0
        return lambda some: probes.apgd(
            networks, key, some, self.images[some], labels[some], goal(some), jnp.float32(self.epsilon),
            num_steps=num_steps or self.budget.num_steps, eot_samples=eot_samples, norm=self.norm, bounds=self.bounds,
        )  # fmt: skip

    def targeted(self, name: str, rows: np.ndarray, *, view: str) -> np.ndarray:
        """APGD towards the likeliest wrong classes one after the other, each on what the former left."""
        share = np.zeros(len(self.images), np.float32)
        for target in range(min(self.budget.num_targets, self.num_classes - 1)):
            rows = self.left(rows, share)
            share = np.maximum(share, self.apgd(name, rows, view=view, loss="targeted", target=target))
        return share

    def square(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Square, on half of the draws that a gradient takes; the share of draws misclassified, float32 [N]."""
        key = self.key()
        return self._run(
            name, rows,
            lambda some: probes.square(
                self.networks.direct, key, some, self.images[some], self.labels[some], jnp.float32(self.epsilon),
                num_queries=self.budget.num_queries, eot_samples=-(-self.eot_samples // 2), norm=self.norm,
                bounds=self.bounds,
            ),
        )  # fmt: skip

    def hopskipjump(self, name: str, rows: np.ndarray) -> np.ndarray:
        """HopSkipJump, from random points and an image of another class; the share misclassified, float32 [N]."""
        key, start = self.key(), self._of_other_classes()
        return self._run(
            name, rows,
            lambda some: probes.hopskipjump(
                self.networks.direct, key, some, self.images[some], start[some], self.labels[some],
                jnp.float32(self.epsilon), num_queries=self.budget.num_decisions, norm=self.norm, bounds=self.bounds,
            ),
        )  # fmt: skip

    def _of_other_classes(self) -> np.ndarray:
        """For each example the next one of another class, itself where there is none."""
        start = self.images.copy()
        for label in np.unique(self.labels):
            others = np.flatnonzero(self.labels != label)
            own = np.flatnonzero(self.labels == label)
            if len(others):
                start[own] = self.images[others[np.searchsorted(others, own) % len(others)]]
        return start

    def random_search(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Random points of the ball; the share of draws misclassified, float32 [N]."""
        points = self._points_of(self.key(), self.budget.num_random)
        return self._run(name, rows, lambda some: points(some).strongest)

    def random_points(self, rows: np.ndarray, num_points: int, *, key: Key | None = None, **options: Any) -> Any:
        """:class:`probes.RandomPoints` of the balls of some examples.

        Args:
            rows: of the examples.
            num_points: of each.
            key: of the draws; by default a new one.
            **options: ``weights`` of the logits, of all examples, [N, K]; ``epsilon``, radius of the balls, by default
                the verdict's; ``most``, change of a pixel.
        """
        return self.over(rows, self._points_of(self.key() if key is None else key, num_points, **options))

    def _points_of(
        self, key: Key, num_points: int, *, weights: np.ndarray | None = None, epsilon: float | None = None,
        most: float = np.inf,
    ) -> Callable[[np.ndarray], probes.RandomPoints]:  # fmt: skip
        margins = margin(self.logits, self.labels)
        weights = np.zeros((len(self.images), self.num_classes), np.float32) if weights is None else weights
        return lambda some: probes.random_search(
            self.networks.direct, jax.random.fold_in(key, int(some[0])), self.images[some], self.labels[some],
            margins[some], weights[some], jnp.float32(self.epsilon if epsilon is None else epsilon), jnp.float32(most),
            jnp.int32(num_points), stochastic=self.stochastic, norm=self.norm, bounds=self.bounds,
        )  # fmt: skip

    def gradient_at(self, rows: np.ndarray, points: np.ndarray, loss: str, *key: Key) -> tuple[np.ndarray, np.ndarray]:
        """A loss [n] of the network and its input gradient [n, H, W, C], which may be not finite, in one draw.

        Args:
            rows: of the examples.
            points: of these examples, [n, H, W, C].
            loss: by its name.
            *key: of a stochastic network.
        """
        every = self.images.copy()
        every[rows] = points
        record = self.over(
            rows, self._recorded_pgd_of(every, loss, *(key or (self._draws_key,)), num_draws=1, frozen=True)
        )
        return record.loss[:, 0], record.gradient

    def recorded_pgd(
        self,
        name: str,
        rows: np.ndarray,
        *,
        step_size: float,
        num_steps: int,
        epsilon: float | None = None,
        num_draws: int | None = None,
        frozen: bool = False,
    ) -> tuple[np.ndarray, probes.RecordedPGD[np.ndarray]]:
        """Recorded PGD on cross-entropy; the share of draws misclassified, float32 [N], and the record.

        Args:
            name, rows, epsilon: as in :meth:`submit`.
            step_size: in units of epsilon.
            num_steps: at most ``probes.MAX_STEPS``.
            num_draws: in each gradient, of a stochastic network; by default the budget's.
            frozen: use one draw throughout.
        """
        started, key = time.perf_counter(), self.key()
        radius = self.epsilon if epsilon is None else epsilon
        record = self.over(
            rows,
            lambda some: self._recorded_pgd_of(
                self.images, "ce", jax.random.fold_in(key, int(some[0])), epsilon=radius, step_size=step_size * radius,
                num_steps=num_steps, num_draws=num_draws or self.eot_samples, frozen=frozen,
            )(some),
        )  # fmt: skip
        record = probes.RecordedPGD(
            record.images, record.gradient, *(values[:, : num_steps + 1] for values in record[2:])
        )
        share = self.submit(name, rows, record.images, epsilon=radius)
        if radius <= self.epsilon:
            self.seen[rows] |= record.misclassified[:, -1]
        self.timed(name, rows, started, share)
        return share, record

    def _recorded_pgd_of(
        self, points: np.ndarray, loss: str, key: Key, *, epsilon: float = 0.0, step_size: float = 0.0,
        num_steps: int = 0, num_draws: int, frozen: bool,
    ) -> Callable[[np.ndarray], probes.RecordedPGD[Any]]:  # fmt: skip
        networks = self.networks.only("direct")
        return lambda some: probes.recorded_pgd(
            networks, key, points[some], self.labels[some], self.goal(some, view="direct", loss=loss),
            jnp.float32(epsilon), jnp.float32(step_size), jnp.int32(num_steps), jnp.int32(num_draws),
            jnp.bool_(frozen), stochastic=self.stochastic, norm=self.norm, bounds=self.bounds,
        )  # fmt: skip

    def whole_box(self) -> float:
        """A radius within which every image of the box lies."""
        low, high = map(np.asarray, self.bounds)
        order = {"linf": np.inf, "l2": 2, "l1": 1}[self.norm]
        return float(np.linalg.norm(np.broadcast_to(high - low, self.images.shape[1:]).ravel(), order))
