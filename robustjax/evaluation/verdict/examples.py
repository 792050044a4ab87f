"""The examples under attack: every image that an attack returns is verified, and classified on common draws.

Of a stochastic network all images are classified on the same draws while attacks go on, an example always at the same
place of the same batch: attacks are compared under equal noise, and an attack that changes nothing changes no outcome.
These draws say which examples the next attack is run on, and never the verdict: :meth:`Examples.decide` does, on draws
that come after all attacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks._autoattack import NUM_CANDIDATES
from robustjax.attacks.engine import threads
from robustjax.attacks.engine.candidates import Candidates
from robustjax.attacks.engine.sizes import SHRINK
from robustjax.attacks.engine.verify import has_no_maximum, is_misclassified
from robustjax.evaluation.verdict import probes
from robustjax.evaluation.verdict.budgets import Budget
from robustjax.evaluation.verdict.goals import Networks
from robustjax.statistics import wilson_interval
from robustjax.types import Key


class Decision(NamedTuple):
    """What holds of each example after all attacks.

    Attributes:
        clean: bool [N], correctly classified as given.
        after_ensemble: bool [N], still so under AutoAttack's attacks.
        robust: bool [N], still so under all attacks.
        won_by: the attack whose image is misclassified; "clean" where the example is misclassified as given; None
            where it is robust.
        adversarial: float32 [N, H, W, C], the strongest valid image of each example.
        clean_share, share: float32 [N], share of draws in which the example as given, and the strongest image, is
            misclassified.
    """

    clean: np.ndarray
    after_ensemble: np.ndarray
    robust: np.ndarray
    won_by: list[str | None]
    adversarial: np.ndarray
    clean_share: np.ndarray
    share: np.ndarray


class Examples:
    """The examples, and what attacks did to them so far.

    Attributes:
        correct: bool [N], correctly classified as given; of a stochastic network by majority of draws.
        attacked: bool [N], those that attacks are run on: all but those misclassified beyond doubt as given.
        logits: float32 [N, K], of the images as given, averaged over draws.
        shares: attack's name -> float32 [N], in the order in which they ran: the share of draws in which the attack's
            images are misclassified, in a float32 forward pass apart from the attack; 0 for images outside ball or box,
            and for examples that it was not run on. Of a deterministic network the share is 0 or 1.
        seconds: attack's name -> wall time, compilation included.
        seen: bool [N], misclassified at some step of a recorded PGD.
        valid: whether each image that an attack returned was inside ball and box.
        nonfinite: bool [N], whose logits were NaN or infinite, as given or under an attack.
        candidates: the strongest images.
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
        heavy: bool = False,
    ):
        self.networks, self.images, self.labels = networks, images, labels
        self.epsilon, self.norm, self.bounds = epsilon, norm, bounds
        self.stochastic, self.budget, self.report = stochastic, budget, report
        self.eot_samples = budget.eot_samples if stochastic else 0
        self.num_draws = budget.num_draws if stochastic else 0
        self._key, self._num_keys, self._batch_size = key, 0, min(batch_size, len(images))
        # Few images of a heavy network are computed in a smaller batch. Any other is compiled for one size.
        self._sizes = [self._batch_size]
        while heavy and self._sizes[-1] >= SHRINK**2:
            self._sizes.append(-(-self._sizes[-1] // SHRINK))
        self._draws_key = self.key()
        self._least_certain = _least_certain(self.num_draws)
        self.shares: dict[str, np.ndarray] = {}
        self.seconds: dict[str, float] = {}
        self.valid: list[np.ndarray] = []
        self.seen = np.zeros(len(images), bool)
        self.candidates = Candidates(images, NUM_CANDIDATES if stochastic else 1)
        self._of_ensemble = self.candidates.strongest()
        _, share, self.logits = self.classified(np.arange(len(images)), images)
        self.nonfinite = has_no_maximum(self.logits)
        self.correct, self.attacked = ~is_misclassified(share), ~self.certainly_misclassified(share)

    @property
    def measured(self) -> np.ndarray:
        """The examples on which the costlier red flags are measured."""
        budget = self.budget
        return np.flatnonzero(self.correct)[: budget.num_measured_by_draws if self.stochastic else budget.num_measured]

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    def key(self) -> Key:
        """Returns a new PRNG key."""
        self._num_keys += 1
        return jax.random.fold_in(self._key, self._num_keys)

    def network_keys(self) -> tuple[Key, ...]:
        """The arguments of the network after the images."""
        return (self.key(),) if self.stochastic else ()

    def over(self, rows: np.ndarray, program: Callable[[np.ndarray], Any]) -> Any:
        """The program's results for some examples, [len(rows), ...], in batches of few sizes.

        On a CPU several batches are computed at the same time.
        """

        def results(some: np.ndarray) -> Any:
            padded = program(np.resize(some, min(size for size in self._sizes if size >= len(some))))
            return jax.tree.map(lambda values: np.asarray(values)[: len(some)], padded)

        batches = [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        parts = threads.each(results, batches, threads.most_lanes(self._batch_size, None, least=1))
        return jax.tree.map(lambda *values: np.concatenate(values), *parts)

    def classified(
        self,
        rows: np.ndarray,
        points: np.ndarray,
        *,
        key: Key | None = None,
        network: Any = None,
        epsilon: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classifies images of some examples, an example always at the same place of the same batch.

        Args:
            rows: of the examples.
            points: their images.
            key: of the draws; by default that of the draws common to all attacks.
            network: by default the one under evaluation.
            epsilon: radius in which images are valid; by default that of the verdict.

        Returns:
            Whether each is valid, the share of draws misclassified, and the mean logits.
        """
        key = self._draws_key if key is None else key
        everything = self.images.copy()
        everything[rows] = points
        every_row = np.arange(len(self.images))
        batches = every_row[np.isin(every_row // self._batch_size, rows // self._batch_size)]
        valid, share, logits = self.over(
            batches,
            lambda some: probes.classify(
                self.networks.direct if network is None else network,
                jax.random.fold_in(key, int(some[0])), self.images[some], everything[some], self.labels[some],
                jnp.float32(self.epsilon if epsilon is None else epsilon),
                num_draws=self.num_draws, norm=self.norm, bounds=self.bounds,
            ),
        )  # fmt: skip
        place = np.searchsorted(batches, rows)
        num_draws = max(self.num_draws, 1)
        share = np.rint(share * num_draws) / num_draws  # exact, for a tie must be one
        return valid[place], share[place].astype(np.float32), logits[place]

    def certainly_misclassified(self, share: np.ndarray) -> np.ndarray:
        """Where the share of draws misclassified is so large that chance alone does not explain a majority.

        Other examples go on being attacked. Of a deterministic network this is plain misclassification.
        """
        return share >= self._least_certain

    def strongest_share(self, *names: str) -> np.ndarray:
        """The largest share of draws misclassified under these attacks (by default, all), float32 [N]."""
        zeros = np.zeros(len(self.images), np.float32)
        return np.max([zeros, *(self.shares[name] for name in names or self.shares)], axis=0)

    def remaining(self, *names: str) -> np.ndarray:
        """Indices of the examples to attack that these attacks (by default, all) left."""
        return np.flatnonzero(self.attacked & ~self.certainly_misclassified(self.strongest_share(*names)))

    def left(self, rows: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Those of some examples that an attack left."""
        return rows[~self.certainly_misclassified(share[rows])]

    def submit(self, name: str, rows: np.ndarray, points: np.ndarray, *, epsilon: float | None = None) -> np.ndarray:
        """Verifies an attack's images; returns the share of draws misclassified, float32 [N], 0 for other examples.

        They count for the verdict under ``name`` unless the radius is larger than the verdict's.
        """
        shares = np.zeros(len(self.images), np.float32)
        radius = self.epsilon if epsilon is None else epsilon
        if len(rows):
            valid, share, logits = self.classified(rows, points, epsilon=radius)
            self.valid.append(valid)
            shares[rows] = np.where(valid, share, 0.0)
            if radius <= self.epsilon:
                self.nonfinite[rows] |= valid & has_no_maximum(logits)
                # Of points that are misclassified in as many draws, the one that is by the larger margin; of a
                # deterministic network the first.
                loss = margin(logits, self.labels[rows])[valid] if self.stochastic else None
                self.candidates.add(name, rows[valid], points[valid], share[valid], loss)
        if radius <= self.epsilon:
            self.shares[name] = np.maximum(self.shares.get(name, np.zeros_like(shares)), shares)
        return shares

    def timed(self, name: str, rows: np.ndarray, started: float, share: np.ndarray) -> None:
        """Records an attack's time and reports what it did."""
        seconds = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        count = int(np.sum(is_misclassified(share[rows])))
        self.report(f"{name}: {count} of {len(rows)} examples misclassified, {seconds:.1f} s")

    def end_ensemble(self) -> None:
        """Marks the end of AutoAttack's attacks: the strongest images so far are theirs."""
        self._of_ensemble = self.candidates.strongest()

    def decide(self) -> Decision:
        """Classifies examples and strongest images on draws that no attack has seen and that nothing was chosen by.

        Of a stochastic network two sets of fresh draws serve, each common to all images: the first chooses the
        strongest candidate of each example, the second decides, so that only one image of each is put to the test and
        more attacks are not more chances. An example misclassified beyond doubt as given was not attacked, and counts
        as misclassified.
        """
        every, choice, final = np.arange(len(self.images)), self.key(), self.key()
        if self.stochastic:
            keys = jax.random.split(choice, -(-self.budget.num_choosing // self.num_draws))
            self.candidates.choose(
                lambda points: np.mean([self.classified(every, points, key=key)[1] for key in keys], axis=0)
            )
        points, _, attack = self.candidates.strongest()
        of_ensemble, _, attack_of_ensemble = self._of_ensemble
        clean_share, ensemble_share, share = (
            self.classified(every, images, key=final)[1] for images in (self.images, of_ensemble, points)
        )
        clean = self.attacked & ~is_misclassified(clean_share)
        robust = clean & ~is_misclassified(share)
        after_ensemble = robust | (clean & ~is_misclassified(ensemble_share))
        won_by = np.where(after_ensemble, attack, attack_of_ensemble)
        won_by[~clean], won_by[robust] = "clean", None
        return Decision(clean, after_ensemble, robust, won_by.tolist(), points, clean_share, share)


def margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The largest logit of another class less the label's, [N]; the more, the stronger."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
    with np.errstate(invalid="ignore"):  # of two that are infinite
        return np.nan_to_num(others.max(axis=1) - own, nan=np.inf)


def _least_certain(num_draws: int) -> float:
    """The least share of so many draws whose 95 % interval lies above one half; 1 for a deterministic network.

    Example:
        >>> _least_certain(0), _least_certain(20), _least_certain(100)
        (1.0, 0.75, 0.6)
    """
    if num_draws == 0:
        return 1.0
    counts = range(num_draws + 1)
    return next((count / num_draws for count in counts if wilson_interval(count, num_draws)[0] > 0.5), 1.0)
