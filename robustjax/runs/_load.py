"""Loads the trained network of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from robustjax import build, data, defenses
from robustjax.defenses.convention import STATISTICS, with_statistics
from robustjax.runs import config_file, network
from robustjax.runs.checkpoint import Checkpoints, DamagedError
from robustjax.runtime import files, hosts, sharding
from robustjax.types import Config, InputError, LogitsFn

# Training images at a time when statistics of them are measured.
STATISTICS_BATCH_SIZE = 500
# How often a checkpoint is looked for while the run trains and deletes older ones.
ATTEMPTS = 5


class Run(NamedTuple):
    """A trained network.

    Attributes:
        config: every key the run was started with.
        module: the network, computing in float32 whatever it was trained in, with the guards of ``defense``.
        variables: its weights and statistics, the averaged ones where the run carries an average.
        step: of the checkpoint.
        defense: whose guards the network has, or None.
        spelling: that defense as a command line names it, as ``"sap:fraction=0.5"``.
        logits_fn: images [B, H, W, C] in [0, 1] -> logits [B, K], for every attack and for :func:`evaluation.judge`;
            ``(images, key) -> logits`` of a stochastic network. A ``jax.tree_util.Partial`` that holds the variables:
            what is compiled with it takes them as arguments, and is compiled once.
    """

    config: Config
    module: Any
    variables: Any
    step: int
    defense: defenses.Defense | None
    spelling: str | None
    logits_fn: LogitsFn

    @property
    def stochastic(self) -> bool:
        """Whether inference draws random numbers; ``logits_fn`` then takes ``(images, key)``."""
        return self.defense is not None and self.defense.stochastic

    def with_defense(self, defense: defenses.Defense | None) -> Any:
        """The module with the guards of another defense in place of its own."""
        return build.guarded(self.module, defense)

    def test_data(self, num_examples: int | None = None, *, split: str = "test") -> data.Dataset:
        """The test images of the run's data set, or the first of them."""
        return build.test_dataset(self.config, num_examples=num_examples, split=split)


def load(workdir: str | Path, *, checkpoint: str | int = "best", defense: str | None = None) -> Run:
    """Loads the network of a run.

    Args:
        workdir: of a run that :func:`train` or ``python -m robustjax.interop`` made.
        checkpoint: ``"best"`` by robust validation accuracy, ``"last"``, or a step.
        defense: a defense without parameters to switch on in place of the run's own, as ``"sap:fraction=0.5"``;
            ``"+sap"`` adds SAP to the run's own, ``"none"`` switches that off. One with statistics of the training
            images, as ``"meansparse"``, reads all of them.

    Returns:
        A :class:`Run`, whose ``logits_fn`` is what attacks and :func:`robustjax.evaluation.judge` take.

    Raises:
        InputError: there is no such run or checkpoint, its data set is not there, or the defense has parameters that
            the run did not train.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from robustjax import config as config_lib, runs
        >>> config, workdir = config_lib.digits(), tempfile.mkdtemp()
        >>> config.train.num_epochs, config.train.batch_size, config.attack.num_steps = 1, 500, 1
        >>> config.validation.every_epochs, config.data.train_examples = 1, 500
        >>> _ = runs.train(config, workdir)
        small_cnn...
        >>> run = runs.load(workdir)
        >>> run.step, run.logits_fn(jnp.zeros((2, 8, 8, 1))).shape
        (1, (2, 10))
    """
    config = config_file.read(workdir)
    workdir = files.place(workdir)
    spelling, chosen = (config.defense.name, build.defense(config))
    if defense is not None:
        own, before = spelling, chosen
        spelling, chosen = defenses.parse(defense.removeprefix("+"))
        if defense.startswith("+") and chosen is None:
            raise InputError(f"--defense must have a defense after +, got {defense!r}; leave it out")
        if defense.startswith("+") and before is not None and chosen is not None:
            spelling, chosen = f"{own}+{spelling}", defenses.compose(before, chosen)
    layout = sharding.layout()
    one = hosts.together(lambda: build.test_dataset(config, num_examples=1))  # for the shape of images
    trained = build.model(config, one.num_classes, dtype="float32")
    module = build.guarded(trained, chosen)
    if defense is not None and chosen is not None and not module.guards:
        raise InputError(f"--defense={defense}: it changes training only, there is nothing to switch on")
    shape = one.images.shape[1:]
    abstract, needed = (jax.eval_shape(build.initial_state(config, net, shape)) for net in (trained, module))
    parameters = {name: tree for name, tree in needed.evaluated.items() if name != STATISTICS}
    if jax.tree.structure(parameters) != jax.tree.structure(abstract.evaluated):
        raise InputError(
            f"--defense={defense}: the run was trained with {config.defense.name or 'no defense'}, and one of "
            "the two has trained parameters, which cannot be switched on or off; set config.defense.name in training"
        )
    step, variables = _read(workdir, str(checkpoint), abstract, layout)
    if chosen is not None and chosen.statistics:
        # The same work on each device: no batch, not even the last, has to be divisible by their number.
        batches = map(layout.replicate, build.training_images(config, STATISTICS_BATCH_SIZE))
        variables = with_statistics(module, variables, batches)
    stochastic = chosen is not None and chosen.stochastic
    logits_fn = jax.tree_util.Partial(network.logits_fn(module, stochastic=stochastic), variables)
    return Run(config, module, variables, step, chosen, spelling, logits_fn)


def _read(workdir: Path, checkpoint: str, abstract: Any, layout: sharding.Layout) -> tuple[int, Any]:
    """The step of a checkpoint, and its variables; looks again if a run that is training has deleted it meanwhile."""
    attempts = 1 if hosts.several() else ATTEMPTS  # of several processes one might begin anew, and others not
    for attempt in range(1, attempts + 1):
        step = None
        try:
            with Checkpoints(workdir, read_only=True) as checkpoints:
                step = checkpoints.find(checkpoint)
                return step, hosts.together(partial(checkpoints.evaluated, step, abstract, layout))
        except (FileNotFoundError, DamagedError):
            deleted = step is None or not (workdir / "checkpoints" / str(step)).exists()
            if not deleted or attempt == attempts:
                raise
    raise AssertionError  # the last attempt returns or raises
