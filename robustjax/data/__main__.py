"""Prepares a tfds data set: ``python -m robustjax.data prepare NAME [--archive=FILE] [--data_dir=DIR] [--sha256=HEX]``.

NAME is mnist, fashion_mnist, cifar10, cifar100, svhn_cropped or tiny_imagenet. Its original archives become
ArrayRecord files, without TensorFlow.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from absl import flags

from robustjax import cli
from robustjax.data.prepare import prepare
from robustjax.types import InputError

OPTIONS = flags.FlagValues()
ARCHIVE = flags.DEFINE_string(
    "archive",
    None,
    "FILE[,FILE...] or FOLDER: the original archives, or the folder that holds them; without it they are fetched.",
    flag_values=OPTIONS,
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where data sets lie; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets.",
    flag_values=OPTIONS,
)
SHA256 = flags.DEFINE_list(
    "sha256", [], "HEX[,HEX...]: accept archives with these SHA-256 digests too.", flag_values=OPTIONS
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one line on stderr for a mistake of the user."""
    return cli.call(_prepare, arguments, options=OPTIONS, positional=["command", "NAME"])


def _prepare(command: str, name: str) -> None:
    if command != "prepare":
        raise InputError(f"command must be prepare, got {command!r}; see --help")
    digests = [digest.lower() for digest in SHA256.value]
    for digest in digests:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(f"--sha256 must be 64 hexadecimal digits, or several separated by commas, got {digest!r}")
    print(prepare(name, archive=ARCHIVE.value, data_dir=DATA_DIR.value, sha256=digests))


if __name__ == "__main__":
    sys.exit(main())
