"""The size of a data set, which a plan needs; the usual data sets need not be prepared for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from robustjax import build
from robustjax.data.known import KNOWN
from robustjax.data.sources import select
from robustjax.types import Config, InputError

# What the training split has of data sets that need not be there to plan for them.
TRAINING_EXAMPLES = {
    "mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "svhn_cropped": 73_257,
    "imagenet2012": 1_281_167, "tiny_imagenet": 100_000,
}  # fmt: skip
# Of those whose archives name their classes.
NUM_CLASSES = {"imagenet2012": 1000, "tiny_imagenet": 200}


class Facts(NamedTuple):
    """The facts of a data set that a plan needs."""

    num_examples: int
    image_shape: tuple[int, int, int]
    num_classes: int
    num_extra: int = 0  # further images that lie on the devices


def facts_of(config: Config) -> Facts:
    """Size, shape and classes of a config's training data; the usual data sets need not be prepared."""
    if config.data.extra is not None and config.data.pipeline == "memory":
        train, _ = build.datasets(config)
        extra = build.extra_dataset(config, train)
        return Facts(train.num_examples, train.image_shape, train.num_classes, extra.num_examples if extra else 0)
    name = config.data.name
    known = name.partition(":")[0]
    if known in TRAINING_EXAMPLES:
        size = config.data.image_size
        shape = KNOWN[known].image_shape if known in KNOWN else None
        if size is not None:
            shape = (size, size, 3 if shape is None else shape[2])
        if shape is None:
            raise InputError(f"data.image_size must be set for {name}, whose images are of many sizes, got None")
        names = KNOWN[known].class_names if known in KNOWN else None
        classes = len(names["label"]) if isinstance(names, Mapping) else NUM_CLASSES[known]
        kept = config.data.validation_examples, config.data.train_examples
        return Facts(len(select(TRAINING_EXAMPLES[known], name, "train", *kept)), shape, classes)
    train, _ = build.datasets(config)
    return Facts(train.num_examples, train.image_shape, train.num_classes)
