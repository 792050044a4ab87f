"""The names that a config may use, as literal dicts from name to function, so that each can be found by searching."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from robustjax import attacks, models, objectives
from robustjax.training import attacks as training_attacks
from robustjax.training import optim, step
from robustjax.types import Array, Key, LogitsFn, LossFn

MODELS = models.MODELS
SCHEDULES = optim.SCHEDULES
OPTIMIZERS = optim.OPTIMIZERS

# Each takes config.attack and the random start, and returns attack(logits_fn, key, images, labels, *, loss, scale):
# epsilon and step size are multiplied by scale, traced.
TRAINING_ATTACKS = {
    "pgd": lambda config, start: _scaled(
        partial(attacks.pgd, num_steps=config.num_steps, random_start=start, norm=config.norm),
        epsilon=config.epsilon,
        step_size=config.step_size,
    ),
    "fgsm": lambda config, start: _scaled(
        # From the image itself, unless the loss has no gradient there.
        partial(attacks.fgsm, random_start=start if start == "gaussian" else False, norm=config.norm),
        epsilon=config.epsilon,
    ),
    "rs_fgsm": lambda config, start: _scaled(
        partial(attacks.pgd, num_steps=1, random_start=True, norm=config.norm),
        epsilon=config.epsilon,
        step_size=config.step_size,
    ),
    "n_fgsm": lambda config, start: _scaled(attacks.n_fgsm, epsilon=config.epsilon),
    "friendly": lambda config, start: _scaled(
        partial(
            training_attacks.friendly_pgd,
            num_steps=config.num_steps,
            tau=config.tau,
            random_start=start,
            norm=config.norm,
        ),
        epsilon=config.epsilon,
        step_size=config.step_size,
    ),
    "bernoulli_fgsm": lambda config, start: _scaled(training_attacks.bernoulli_fgsm, epsilon=config.epsilon),
    # In place of a key it takes where to start.
    "fgsm_pgi": lambda config, start: _scaled(
        training_attacks.fgsm_from, epsilon=config.epsilon, step_size=config.step_size
    ),
}
# Those that carry perturbations from epoch to epoch, and those that there are in linf only.
CARRYING = ("fgsm_pgi",)
LINF_ONLY = ("n_fgsm", "bernoulli_fgsm", "fgsm_pgi")

OBJECTIVES = {
    "standard": lambda config: objectives.standard_objective(label_smoothing=config.label_smoothing),
    "adversarial": lambda config: objectives.adversarial_objective(label_smoothing=config.label_smoothing),
    "trades": lambda config: objectives.trades_objective(beta=config.beta, label_smoothing=config.label_smoothing),
    "mart": lambda config: objectives.mart_objective(beta=config.beta),
    "nuat": lambda config: objectives.nuat_objective(beta=config.beta, label_smoothing=config.label_smoothing),
    "pgi": lambda config: objectives.pgi_objective(beta=config.beta, label_smoothing=config.label_smoothing),
}


def _scaled(attack: Callable, **lengths: float) -> step.ScaledAttack:
    def scaled(logits_fn: LogitsFn, key: Key, images: Array, labels: Array, *, loss: LossFn, scale: Array) -> Array:
        scaled_lengths = {name: scale * length for name, length in lengths.items()}
        return attack(logits_fn, key, images, labels, loss=loss, **scaled_lengths)

    return scaled
