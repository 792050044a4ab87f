"""A network on trial: attacks run in batches of one shape, and none is believed before its images are judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.evaluation.verdict import probes
from robustjax.evaluation.verdict.probes import LOSSES, Goal, Networks
from robustjax.types import Key


class Budget(NamedTuple):
    """How much is spent.

    Attributes:
        autoattack: run `attacks.autoattack` as published; otherwise its APGD and Square in the sizes below.
        num_steps: of APGD.
        num_targets: wrong classes that targeted APGD aims at.
        num_queries: of Square.
        num_random: random points.
        pgd_steps: of the recorded PGD.
        num_measured: examples on which the costlier red flags are measured.
        eot_samples: draws in a gradient, of a stochastic network.
        judged_draws: fresh draws on which success against a stochastic network is judged.
        curve: draws in a gradient at which the convergence of EOT is measured.
    """

    autoattack: bool
    num_steps: int
    num_targets: int
    num_queries: int
    num_random: int
    pgd_steps: int
    num_measured: int
    eot_samples: int
    judged_draws: int
    curve: tuple[int, ...]


BUDGETS = {
    "quick": Budget(False, 50, 3, 1000, 200, 80, 512, 4, 20, (1, 2, 4, 8, 16)),
    "full": Budget(True, 100, 9, 5000, 10000, 160, 512, 20, 100, (1, 2, 4, 8, 16, 32, 64)),
}


class Trial:
    """The examples, and what attacks did to them so far.

    Attributes:
        logits: float32 [N, K], of the images as they are, averaged over draws.
        share: float32 [N], of draws in which they are misclassified as they are; `correct` where fewer than half are.
        broken: attack's name -> bool [N], in the order in which they ran. A success is an image inside ball and box
            that half or more of so many fresh draws misclassify, in a float32 forward pass apart from the attack.
        seconds: what took how long, compilation included.
        seen: bool [N], misclassified along a recorded ascent.
        strongest: float32 [N, H, W, C], the image that was misclassified in most draws, of all attacks.
        valid: whether each image that an attack returned was inside ball and box.
    """

    def __init__(
        self,
        networks: Networks,
        key: Key,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        epsilon: float,
        norm: str,
        bounds: geometry.Bounds,
        stochastic: bool,
        budget: Budget,
        batch_size: int,
        report: Callable[[str], None],
    ):
        self.networks, self.images, self.labels = networks, images, labels
        self.epsilon, self.norm, self.bounds = epsilon, norm, bounds
        self.stochastic, self.budget, self.report = stochastic, budget, report
        self.eot_samples = budget.eot_samples if stochastic else 0
        self.judged_draws = budget.judged_draws if stochastic else 0
        self._key, self._num_keys, self._batch_size = key, 0, min(batch_size, len(images))
        self.broken: dict[str, np.ndarray] = {}
        self.seconds: dict[str, float] = {}
        self.valid: list[np.ndarray] = []
        self.seen = np.zeros(len(images), bool)
        self.strongest, self._strongest_share = images.copy(), np.full(len(images), -1.0, np.float32)
        _, self.share, self.logits = self.classified(np.arange(len(images)), images)
        self.correct = self.share < 0.5
        wrong = np.where(np.arange(self.logits.shape[1]) == labels[:, None], -np.inf, self.logits)
        self._ranked = np.argsort(-wrong, axis=1, kind="stable")[:, :-1].astype(np.int32)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    def key(self) -> Key:
        """A fresh one."""
        self._num_keys += 1
        return jax.random.fold_in(self._key, self._num_keys)

    def network_keys(self) -> tuple[Key, ...]:
        """What the network is called with besides images."""
        return (self.key(),) if self.stochastic else ()

    def goal(self, rows: np.ndarray, *, view: str, loss: str, own: float = 1.0, heads: float = 0.0, target: int = 0):
        """What is climbed, for some examples; `target` is the rank of the wrong class to aim at."""
        return Goal(
            jnp.int32(self.networks.views().index(view)), jnp.int32(LOSSES.index(loss)), jnp.float32(own),
            jnp.float32(heads), self._ranked[rows, min(target, self.num_classes - 2)],
        )  # fmt: skip

    def over(self, rows: np.ndarray, program: Callable[[np.ndarray], Any]) -> Any:
        """The program's results for some examples, [len(rows), ...], in batches of one size."""
        parts = []
        for start in range(0, len(rows), self._batch_size):
            some = rows[start : start + self._batch_size]
            results = program(np.resize(some, self._batch_size))
            parts.append(jax.tree.map(lambda values, some=some: np.asarray(values)[: len(some)], results))
        return jax.tree.map(lambda *values: np.concatenate(values), *parts)

    def classified(
        self, rows: np.ndarray, points: np.ndarray, *, network: Any = None, epsilon: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images of some examples: whether valid, the share of fresh draws misclassified, and mean logits."""
        place = np.zeros(len(self.images), int)
        place[rows] = np.arange(len(rows))
        key = self.key()
        return self.over(
            rows,
            lambda some: probes.classify(
                self.networks.direct if network is None else network, jax.random.fold_in(key, int(some[0])),
                self.images[some], points[place[some]], self.labels[some],
                jnp.float32(self.epsilon if epsilon is None else epsilon),
                num_draws=self.judged_draws, norm=self.norm, bounds=self.bounds,
            ),
        )  # fmt: skip

    def standing(self, *names: str) -> np.ndarray:
        """Indices of the examples that are correct as they are and not broken by these attacks (by default, by any)."""
        broken = [self.broken[name] for name in names or self.broken]
        return np.flatnonzero(self.correct & ~np.logical_or.reduce([np.zeros_like(self.correct), *broken]))

    def submit(self, name: str, rows: np.ndarray, points: np.ndarray, *, epsilon: float | None = None) -> np.ndarray:
        """Judges an attack's images; returns which examples it broke, bool [N].

        They count for the verdict under `name` unless the radius is larger than the one on trial.
        """
        broken = np.zeros(len(self.images), bool)
        radius = self.epsilon if epsilon is None else epsilon
        if len(rows):
            valid, share, _ = self.classified(rows, points, epsilon=radius)
            self.valid.append(valid)
            broken[rows] = valid & (share >= 0.5) & self.correct[rows]
            if radius <= self.epsilon:
                stronger = valid & (share > self._strongest_share[rows])
                self.strongest[rows[stronger]] = points[stronger]
                self._strongest_share[rows[stronger]] = share[stronger]
        if radius <= self.epsilon:
            self.broken[name] = self.broken.get(name, np.zeros_like(broken)) | broken
        return broken

    def timed(self, name: str, rows: np.ndarray, started: float, broken: np.ndarray) -> None:
        """Books an attack's time and tells who listens."""
        seconds = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.report(f"{name}: broke {int(broken.sum())} of {len(rows)} examples in {seconds:.1f} s")

    def apgd(self, name: str, rows: np.ndarray, *, epsilon: float | None = None, **goal: Any) -> np.ndarray:
        """APGD towards a goal; which examples it broke, bool [N]."""
        started, key = time.perf_counter(), self.key()
        radius = self.epsilon if epsilon is None else epsilon
        points = self.images[:0] if not len(rows) else self.over(
            rows,
            lambda some: probes.apgd(
                self.networks, key, some, self.images[some], self.labels[some], self.goal(some, **goal),
                jnp.float32(radius), num_steps=self.budget.num_steps, eot_samples=self.eot_samples, norm=self.norm,
                bounds=self.bounds,
            ),
        )  # fmt: skip
        broken = self.submit(name, rows, points, epsilon=radius)
        self.timed(name, rows, started, broken)
        return broken

    def targeted(self, name: str, rows: np.ndarray, *, view: str, epsilon: float | None = None) -> np.ndarray:
        """APGD towards the likeliest wrong classes one after the other, each on what the former left."""
        broken = np.zeros(len(self.images), bool)
        for target in range(min(self.budget.num_targets, self.num_classes - 1)):
            left = rows[~broken[rows]]
            broken |= self.apgd(name, left, epsilon=epsilon, view=view, loss="targeted", target=target)
        return broken

    def square(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Square; which examples it broke, bool [N]."""
        started, key = time.perf_counter(), self.key()
        points = self.images[:0] if not len(rows) else self.over(
            rows,
            lambda some: probes.square(
                self.networks.direct, key, some, self.images[some], self.labels[some], jnp.float32(self.epsilon),
                num_queries=self.budget.num_queries, eot_samples=self.eot_samples, norm=self.norm, bounds=self.bounds,
            ),
        )  # fmt: skip
        broken = self.submit(name, rows, points)
        self.timed(name, rows, started, broken)
        return broken

    def random_search(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Random points of the ball; which examples they broke, bool [N]."""
        started, key = time.perf_counter(), self.key()
        points = self.images[:0] if not len(rows) else self.over(
            rows,
            lambda some: probes.random_search(
                self.networks.direct, jax.random.fold_in(key, int(some[0])), self.images[some], self.labels[some],
                jnp.float32(self.epsilon), jnp.int32(self.budget.num_random), stochastic=self.stochastic,
                norm=self.norm, bounds=self.bounds,
            ),
        )  # fmt: skip
        broken = self.submit(name, rows, points)
        self.timed(name, rows, started, broken)
        return broken

    def ascend(
        self,
        name: str,
        rows: np.ndarray,
        *,
        step_size: float,
        num_steps: int,
        epsilon: float | None = None,
        num_draws: int | None = None,
        frozen: bool = False,
    ) -> tuple[np.ndarray, probes.Ascent]:
        """Recorded PGD on cross-entropy, its step in units of epsilon; which examples it broke, bool [N]."""
        started, key = time.perf_counter(), self.key()
        radius = self.epsilon if epsilon is None else epsilon
        ascent = self.over(
            rows,
            lambda some: probes.ascend(
                self.networks, jax.random.fold_in(key, int(some[0])), self.images[some], self.labels[some],
                self.goal(some, view="direct", loss="ce"), jnp.float32(radius), jnp.float32(step_size * radius),
                jnp.int32(num_steps), jnp.int32(num_draws or self.eot_samples), jnp.bool_(frozen),
                stochastic=self.stochastic, norm=self.norm, bounds=self.bounds,
            ),
        )  # fmt: skip
        broken = self.submit(name, rows, ascent.images, epsilon=radius)
        if radius <= self.epsilon:
            self.seen[rows] |= ascent.broken[:, -1]
        self.timed(name, rows, started, broken)
        return broken, ascent

    def whole_box(self) -> float:
        """A radius that reaches from any image in the box to any other."""
        side, size = self.bounds[1] - self.bounds[0], self.images[0].size
        return side * {"linf": 1.0, "l2": size**0.5, "l1": float(size)}[self.norm]
