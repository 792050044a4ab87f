"""Loads what the options of an evaluation name: the network of a run or a model, and images."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import jax

from robustjax import build, data, interop, runs
from robustjax import config as config_lib
from robustjax.attacks.engine import inputs
from robustjax.defenses import composition
from robustjax.evaluation._options import Options, constants
from robustjax.evaluation._subject import EOT_SAMPLES, NUM_DRAWS, Subject, of_function
from robustjax.evaluation.protocol import records
from robustjax.evaluation.protocol.folder import file_name
from robustjax.evaluation.protocol.runner import floats
from robustjax.evaluation.protocol.store import fingerprints
from robustjax.evaluation.protocol.threats import Threat
from robustjax.evaluation.verdict.hints import Hints, hints_of
from robustjax.interop.networks import FORMS
from robustjax.runs import network
from robustjax.runtime import files, hosts, sharding
from robustjax.types import InputError, LogitsFn


def of_run(options: Options) -> tuple[Subject, Threat, Path]:
    """A run's network with the chosen images, the threat it was trained for, and the folder of its results.

    Raises:
        InputError: no such run, checkpoint or data, or the network does not fit the images or the options.
    """
    assert options.workdir is not None
    sharding.layout().check_batch_size("--batch_size", options.batch_size)
    run = runs.load(options.workdir, checkpoint=options.checkpoint, defense=options.defense)
    drawn = _draws(options, run)
    images, about = hosts.together(lambda: _images(options, run))
    made = records.conditions()
    config = config_lib.plain(run.config)
    conditions = {
        **about,
        "seed": options.seed,
        "checkpoint_step": run.step,
        "weights": network.digest(run.variables),
        "batch_norm": "running statistics",
        "defense": run.spelling,
        **drawn,
    }
    settings = {
        **conditions,
        "batch_size": options.batch_size,
        "model": config["model"],
        "trained_defense": config["defense"],
        "source": made["source"],
        "jax": made["versions"]["jax"],
        "device": made["hardware"]["device"],
    }
    settings["data"] = _where(about)
    if "data" not in about:  # which says it: the files of a run's own data set may have changed since
        examples = fingerprints(images.images, images.labels)
        conditions["examples_sha256"] = hashlib.sha256(examples.tobytes()).hexdigest()
    logits_fn, hints = hints_of(run.with_defense, run.defense, run.variables)
    if config["model"]["dtype"] == "bfloat16":  # what its users compute in, while it is evaluated in float32
        coarse = run.module.clone(dtype="bfloat16")
        hints = hints._replace(bfloat16_fn=hints_of(partial(build.guarded, coarse), run.defense, run.variables)[0])
    if options.transfer_from:
        hints = hints._replace(trained_fn=without_draws(options.transfer_from))
    predict = network.logits_fn(
        run.module, stochastic=run.stochastic, prediction_draws=drawn.get("prediction_draws", 1)
    )
    evaluations = files.place(options.workdir) / "evaluation"
    subject = Subject(
        network=jax.tree_util.Partial(predict, run.variables),
        hints=hints,
        adaptive_fn=logits_fn,
        images=images.images,
        labels=images.labels,
        num_classes=run.module.num_classes,
        key=jax.random.key(options.seed),
        batch_size=options.batch_size,
        eot_samples=drawn.get("eot_samples", 0),
        num_draws=drawn.get("num_draws", 0),
        conditions=conditions | {**made, "config": config},
        settings=settings,
        stores=evaluations / "batches",
        class_names=images.label_names if isinstance(images, data.Dataset) else images.class_names,
        read_others=lambda spec: read(options, spec, size=options.image_size or run.config.data.image_size),
        read_source=read_source,
        keep_images=options.save_images is not None,
        quicken=options.quicken,
    )
    parts = [str(run.spelling)] if options.defense else []
    parts += [f"data={file_name(options.data)}"] if options.data is not None else []
    # Records of other images must not mix with those of the test images.
    parts += [f"split={options.split}"] if options.split != "test" else []
    return subject, Threat(run.config.attack.norm, run.config.attack.epsilon), evaluations.joinpath(*parts)


def of_model(options: Options) -> Subject:
    """The network of ``model`` with the chosen images.

    Raises:
        InputError: no such model or data, or the network does not take the images.
    """
    spec = options.data
    assert options.model is not None and spec is not None  # as `check` has made sure
    images = hosts.together(lambda: read(options, spec, size=options.image_size))
    network = interop.load_network(options.model, weights=options.weights, **constants(options))
    few = floats(images.images[:2])
    mend = "bind the key of a network that draws, or judge it in Python with Hints(stochastic=True)"
    inputs.takes(f"model {options.model}", network.logits_fn, (few,), "(images)", mend)
    mend = "give the --data or the --image_size that it is for"
    outputs = inputs.traced(f"model {options.model}", network.logits_fn, few, mend=mend)
    try:
        inputs.logits_of(outputs, len(few))
    except InputError as error:
        raise InputError(f"model {options.model}: {error}") from error
    hints = Hints()
    if options.transfer_from:
        hints = hints._replace(trained_fn=without_draws(options.transfer_from))
    return of_function(
        network.logits_fn,
        jax.random.key(options.seed),
        images.images,
        images.labels,
        hints=hints,
        batch_size=options.batch_size,
        conditions={
            "network": network.about,
            "dataset": spec,
            "split": images.about.get("split"),
            "data": images.about,
            "seed": options.seed,
        },
        class_names=images.class_names,
        read_others=lambda spec: read(options, spec, size=options.image_size),
        read_source=read_source,
        keep_images=options.save_images is not None,
        quicken=options.quicken,
    )


def without_draws(workdir: str) -> LogitsFn:
    """The network that a run trained, without the draws that a stochastic defense would make."""
    run = runs.load(workdir)
    module = run.with_defense(composition.deterministic(run.defense)) if run.stochastic else run.module
    return jax.tree_util.Partial(lambda variables, images, *key: module.apply(variables, images).logits, run.variables)


def read_source(text: str) -> tuple[LogitsFn, Any]:
    """A network to transfer from: that of a run's folder without a defense's draws, or a model by its name."""
    if files.place(text).is_dir():
        source = without_draws(text)
        return source, {"run": text, "weights": network.digest(source.args)}
    if ":" not in text:
        raise InputError(f"transfer must be from the folder of a run or from a model {FORMS}, got {text!r}; give one")
    found = interop.load_network(text)
    return found.logits_fn, found.about


def read(options: Options, spec: str, *, size: int | None, data_dir: str | None = None) -> data.Images:
    """Images that a command line names, those of the subset that it asks for."""
    return data.read_images(
        spec,
        split=options.split,
        num_examples=options.num_examples,
        subset_seed=options.subset_seed,
        size=size,
        data_dir=options.data_dir or data_dir,
    )


def _images(options: Options, run: runs.Run) -> tuple[data.Dataset | data.Images, dict[str, Any]]:
    """The images of a run's own data set or of another, and what records say of them."""
    name, size = run.config.data.name, options.image_size or run.config.data.image_size
    if options.data is None and options.subset_seed is None:
        for flag in ("image_size", "data_dir"):
            if getattr(options, flag) is not None:
                raise InputError(f"--{flag} must come with --data, got a run's own data set; leave it out")
        found = run.test_data(options.num_examples, split=options.split)
        return found, {"dataset": found.name, "split": options.split}
    # A random subset is one of the data set as it is stored, whatever a run held back of it.
    spec = name if options.data is None else options.data
    found = read(options, spec, size=size, data_dir=run.config.data.data_dir)
    wanted = run.test_data(1).image_shape
    if found.images.shape[1:] != wanted:
        raise InputError(
            f"data must hold images {list(wanted)}, as the run's network was trained with, got "
            f"{list(found.images.shape[1:])} in {spec}; give --image_size, or other data"
        )
    inputs.labels_in_range(found.labels, run.module.num_classes)
    return found, {"dataset": spec, "split": found.about.get("split"), "data": found.about}


def _where(about: dict[str, Any]) -> Any:
    """Where images are from, as far as stored results depend on it: a first part of a set is a part of more of it."""
    found = about.get("data")
    if found is None:
        return None
    subset = found.get("subset") or {}
    seeded = subset.get("seed") is not None
    return {name: found.get(name) for name in ("spec", "split", "size", "channels")} | (
        {"subset": subset, "n": found.get("n")} if seeded else {}
    )


def _draws(options: Options, run: runs.Run) -> dict[str, int]:
    """The draws of a stochastic network by what they are for; of another, which has none, nothing."""
    draws = {"num_draws": (options.num_draws, NUM_DRAWS)}
    draws |= {"eot_samples": (options.eot_samples, EOT_SAMPLES)}
    draws |= {"prediction_draws": (options.prediction_draws, 1)}
    if run.stochastic:
        return {name: given or default for name, (given, default) in draws.items()}
    for name, (given, _) in draws.items():
        if given is not None:
            flag = "draws" if name == "num_draws" else name
            raise InputError(f"--{flag}: the network is deterministic, and has no draws; leave the flag out")
    return {}
