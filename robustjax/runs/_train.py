"""Training as one call: what ``python -m robustjax.train`` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustjax import build
from robustjax import config as config_lib
from robustjax.runs.checkpoint import Checkpoints
from robustjax.runs.claim import claim, identity
from robustjax.runs.warm_start import warm_start
from robustjax.runtime import files, hosts, sharding
from robustjax.training import loop
from robustjax.training.experiment import Experiment
from robustjax.types import Config, InputError


def train(config: Config, workdir: str | Path) -> loop.Stopped:
    """Trains the network of a config until its last epoch or a signal; resumes a run that is in ``workdir``.

    Args:
        config: of :func:`robustjax.config.base`, or of a file in ``configs/``.
        workdir: receives ``config.json``, ``checkpoints/``, ``metrics.jsonl`` and TensorBoard files.

    Returns:
        After which step it ended, complete or on a signal.

    Raises:
        InputError: wrong values in the config, the data set is not there, workdir belongs to a run of another config or
            on other data, or to one that is still training, none of its checkpoints is intact, or the devices cannot
            share a batch.
        FloatingPointError: a loss that is not finite, with the step and the checkpoint to go back to.
        WriteError: the disk is full or gone; what was saved before is intact.

    Example:
        >>> import tempfile
        >>> from robustjax import config as config_lib, runs
        >>> config = config_lib.digits()
        >>> config.train.num_epochs, config.train.batch_size, config.attack.num_steps = 1, 500, 1
        >>> config.validation.every_epochs, config.data.train_examples = 1, 500
        >>> runs.train(config, tempfile.mkdtemp()).complete
        small_cnn...
        True
    """
    if not isinstance(workdir, str | os.PathLike) or not str(workdir):
        mend = "give one that is new or holds a run of this config"
        raise InputError(f"workdir must be a folder, got {workdir!r}; {mend}")
    config_lib.validate(config)
    hosts.agree(config_lib.plain(config))
    experiment = hosts.together(lambda: build.experiment(config))
    return run(experiment, workdir, warm_start(config, experiment.module, experiment.train.image_shape))


def run(
    experiment: Experiment, workdir: str | Path, initial_variables: Callable[[], dict[str, Any]] | None = None
) -> loop.Stopped:
    """:func:`train` for an experiment that is built already; ``initial_variables`` as in :func:`loop.run`."""
    workdir = files.place(workdir)
    data = identity(train=experiment.train, validation=experiment.validation, extra=experiment.extra)
    hosts.agree({"data": data})
    loop.check(experiment.config, sharding.layout())
    if initial_variables is not None and not any(workdir.glob("checkpoints/*")):
        hosts.together(initial_variables)  # before anything is written: it may not fit
    keep = experiment.config["train"]["keep_checkpoints"]
    with claim(workdir, experiment.config, data), Checkpoints(workdir, keep=keep) as checkpoints:
        return loop.run(experiment, workdir, checkpoints, initial_variables=initial_variables)
