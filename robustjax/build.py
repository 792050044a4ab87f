"""Builds the parts of a run from its config: data, network, attack, objective and training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustjax import attacks, data, defenses, models, objectives, registry
from robustjax import config as config_lib
from robustjax.data import augment
from robustjax.defenses import composition
from robustjax.training import optim, state, step
from robustjax.training.experiment import Experiment
from robustjax.types import Array, Attack, Config, InputError, Key, nearest


def datasets(config: Config) -> tuple[data.Dataset | data.Stream, data.Dataset]:
    """The training and validation splits of a run."""
    name = config.data.name
    options = {
        "data_dir": config.data.data_dir,
        "validation_examples": config.data.validation_examples,
        "image_size": config.data.image_size,
    }
    if config.data.pipeline == "stream":
        crop = config.data.random_resized_crop
        train = data.open_stream(name, num_examples=config.data.train_examples, random_resized_crop=crop, **options)
    else:
        train = data.load(name, "train", num_examples=config.data.train_examples, **options)
    return train, data.load(name, "validation", **options)


def extra_dataset(config: Config, train: data.Dataset | data.Stream) -> data.Dataset | data.Stream | None:
    """The further images of a run, or None.

    Raises:
        InputError: they are not there, do not fit the training images, or are too few for a batch.
    """
    if config.data.extra is None:
        return None
    streamed = config.data.pipeline == "stream"
    found = data.open_extra(
        config.data.extra,
        like=train,
        streamed=streamed,
        data_dir=config.data.data_dir,
        image_size=config.data.image_size,
        random_resized_crop=config.data.random_resized_crop,
    )
    data.Mixture.of(train, found, batch_size=config.train.batch_size, ratio=config.data.extra_ratio)
    return found


def training_images(config: Config, batch_size: int) -> Iterator[np.ndarray]:
    """The images that a run is trained on, in their order and as they are stored: float32 [b, H, W, C] in [0, 1].

    Args:
        config: of the run.
        batch_size: of all batches but the last.
    """
    if config.data.pipeline != "stream":
        train = datasets(config)[0]
        assert isinstance(train, data.Dataset)  # which only "stream" is not
        images = train.images
        for start in range(0, len(images), batch_size):
            yield np.asarray(data.to_float(images[start : start + batch_size]))
        return
    stream = data.open_stream(
        config.data.name,
        data_dir=config.data.data_dir,
        validation_examples=config.data.validation_examples,
        num_examples=config.data.train_examples,
        image_size=config.data.image_size,
    )
    with ThreadPoolExecutor() as threads:
        for start in range(0, stream.num_examples, batch_size):
            rows = range(start, min(start + batch_size, stream.num_examples))
            read = threads.map(lambda row: stream.read(row, np.zeros(0))[0], rows)
            yield np.asarray(data.to_float(np.stack(list(read))))


def test_dataset(config: Config, *, num_examples: int | None = None, split: str = "test") -> data.Dataset:
    """The images to evaluate on: a whole split of the data set, or its first examples.

    Args:
        config: of the run.
        num_examples: keep only the first so many; None: all.
        split: a split that the data set has; "validation" of a data set without one is the part of the training split
            that the run was validated on, and "train" what it was trained on.

    Raises:
        InputError: as :func:`robustjax.data.load`.
    """
    name, folder = config.data.name, config.data.data_dir
    stored = data.splits(name, data_dir=folder)
    known = tuple(dict.fromkeys([*stored, "validation"]))
    if split not in (*known, "test"):
        raise InputError(f"split must be one of {', '.join(known)} of {name!r}, got {split!r}{nearest(split, known)}")
    own = split == "validation" and split in stored
    return data.load(
        name,
        split,
        data_dir=folder,
        validation_examples=0 if own else config.data.validation_examples,
        num_examples=num_examples,
        image_size=config.data.image_size,
    )


def model(config: Config, num_classes: int, *, dtype: str | None = None) -> Any:
    """The network of a config as it is trained, computing in the config's dtype unless another is given."""
    own = models.OWN_OPTIONS.get(config.model.name, ())
    options = {option: config.model[option] for option in own if config.model[option] is not None}
    return models.create(
        config.model.name,
        num_classes=num_classes,
        mean=tuple(config.model.mean),
        std=tuple(config.model.std),
        dtype=dtype or config.model.dtype,
        remat=config.model.remat,
        defense=trained_defense(config),
        **options,
    )


def guarded(module: Any, defense: defenses.Defense | None) -> Any:
    """A network with the guards of this defense instead of those that it has."""
    return module.clone(guards=None if defense is None else defense.guards(module.sites(), module.num_classes))


def defense(config: Config) -> defenses.Defense | None:
    """The defenses of a config as one, with the options that are set, or None.

    Raises:
        InputError: a defense has no such option, its value is out of range, or they do not go together.
    """
    parts = [defenses.create(name, **options) for name, options in config_lib.defense_options(config)]
    return defenses.compose(*parts) if parts else None


def trained_defense(config: Config) -> defenses.Defense | None:
    """What takes part in training: SAP and MeanSparse guard a network that was trained without them."""
    return composition.trained(defense(config))


def objective(config: Config) -> objectives.Objective:
    """What the run minimises. Where only the defense's loss reads adversarial images, they climb cross-entropy."""
    goal = registry.OBJECTIVES[config.objective.name](config.objective)
    guarded = defense(config)
    if goal.inner is None and guarded is not None and "adversarial" in guarded.views:
        return goal._replace(inner=objectives.climb_cross_entropy)
    return goal


def training_attack(config: Config, goal: objectives.Objective) -> step.ScaledAttack | None:
    """The inner maximisation of an objective, or None for one without."""
    if goal.inner is None:
        return None
    start = config.attack.random_start if goal.start is None else goal.start
    return registry.TRAINING_ATTACKS[config.attack.name](config.attack, start)


def augmentation(config: Config) -> step.Augment:
    """Crop, flip and cutout, in this order, as far as the config asks for them."""
    parts = []
    if config.data.crop_padding:
        parts.append(partial(augment.random_crop, padding=config.data.crop_padding))
    if config.data.flip:
        parts.append(augment.random_flip)
    if config.data.cutout:
        parts.append(partial(augment.cutout, size=config.data.cutout))

    def augmented(key: Key, images: Array) -> Array:
        for i, part in enumerate(parts):
            images = part(jax.random.fold_in(key, i), images)
        return images

    return augmented


def optimizer(config: Config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its learning-rate schedule."""
    return optim.create(config.optimizer, num_epochs=config.train.num_epochs, steps_per_epoch=steps_per_epoch)


def carries(config: Config) -> bool:
    """Whether a run carries a perturbation for each of its training images."""
    return config.attack.name in registry.CARRYING and objective(config).inner is not None


def initial_state(
    config: Config, module: Any, image_shape: tuple[int, int, int], *, num_examples: int = 0
) -> Callable[[], state.TrainState]:
    """() -> the state before the first step; its shapes alone say how to read a checkpoint.

    Args:
        config: of the run.
        module: its network.
        image_shape: (H, W, C).
        num_examples: training images with the further ones, for each of which a run that :func:`carries` has a
            perturbation; 0: without them.
    """
    guards = defense(config)
    return partial(
        state.create,
        module,
        optimizer(config, steps_per_epoch=1)[0],  # a schedule has no state of its own
        seed=config.seed,
        image_shape=image_shape,
        averaged=config.train.ema_decay > 0,
        sum_names=step.metric_names(objective(config), defense(config)),
        tracker=guards.tracker_in(module.sites()) if guards else None,
        perturbed_examples=num_examples if carries(config) else 0,
    )


def training_step(config: Config, module: Any, steps_per_epoch: int) -> step.Step:
    """One update of a run: augmentation, attack, loss and optimiser."""
    goal = objective(config)
    warmup_steps = config.attack.warmup_epochs * steps_per_epoch
    return step.make_step(
        module,
        goal,
        training_attack(config, goal),
        optimizer(config, steps_per_epoch)[0],
        defense=trained_defense(config),
        augment=augmentation(config),
        ramp=lambda at: jnp.minimum(1.0, (at.astype(jnp.float32) + 1.0) / max(warmup_steps, 1.0)),
        attack_statistics=config.batch_norm.attack,
        update_statistics=config.batch_norm.training,
        ema_decay=config.train.ema_decay,
        accumulation=config.train.accumulation,
        axis="data" if config.batch_norm.devices == "per_device" else None,
        extras=step.Extras(
            awp_gamma=config.objective.awp_gamma,
            awp_from_step=round(config.objective.awp_from_epoch * steps_per_epoch),
            alignment=config.objective.gradalign,
            cutmix=config.data.cutmix,
            natural_share=config.objective.natural_share,
            carries=carries(config),
            epsilon=config.attack.epsilon,
        ),
    )


def experiment(config: Config) -> Experiment:
    """A whole run.

    Raises:
        InputError: the data set is not there, or network and images do not fit each other.
    """
    train, validation = datasets(config)
    if train.num_examples < config.train.batch_size:
        raise InputError(
            f"train.batch_size must be at most the {train.num_examples} training examples, "
            f"got {config.train.batch_size}"
        )
    steps_per_epoch = train.num_examples // config.train.batch_size
    extra = extra_dataset(config, train)
    module = model(config, train.num_classes)
    guarded(module, defense(config))  # sites that there are not say so now, also of what only evaluation switches on
    num_examples = train.num_examples + (extra.num_examples if extra else 0)
    create_state = initial_state(config, module, train.image_shape, num_examples=num_examples)
    jax.eval_shape(create_state)  # a network that does not fit the images says so here, before anything is written
    return Experiment(
        config=config_lib.plain(config),
        train=train,
        extra=extra,
        validation=validation,
        module=module,
        create_state=create_state,
        step=training_step(config, module, steps_per_epoch),
        schedule=optimizer(config, steps_per_epoch)[1],
        validation_attacks=validation_attacks(config),
    )


def validation_attacks(config: Config) -> dict[str, Attack | None]:
    """The attacks of the validation during training."""
    threat = {"epsilon": config.attack.epsilon, "norm": config.attack.norm}
    return {
        "clean": None,
        "fgsm": partial(attacks.fgsm, **threat),
        "pgd": partial(
            attacks.pgd, step_size=config.attack.epsilon / 4, num_steps=config.validation.num_steps, **threat
        ),
    }
