"""The command line: python -m robustjax.data prepare NAME [--archive=FILE] [--data_dir=DIR] [--sha256=HEX]."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from robustjax.data.known import KNOWN
from robustjax.data.prepare import prepare
from robustjax.types import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _digests(text: str) -> list[str]:
    digests = text.lower().split(",")
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests):
        raise argparse.ArgumentTypeError(
            f"expected 64 hexadecimal digits, or several separated by commas, received {text!r}"
        )
    return digests


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one line on stderr when it is the user who can mend it."""
    parser = _Parser(
        "python -m robustjax.data",
        description="Prepares a tfds data set (ArrayRecord) from its original archives, without TensorFlow.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=["prepare"])
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(KNOWN)}")
    parser.add_argument(
        "--archive",
        metavar="FILE[,FILE...]|FOLDER",
        help="the original archives, or the folder that holds them; without it they are fetched",
    )
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where data sets lie; default: TFDS_DATA_DIR, or else ~/tensorflow_datasets"
    )
    parser.add_argument(
        "--sha256", type=_digests, default=(), metavar="HEX[,HEX...]", help="accept archives with these digests too"
    )
    try:
        options = parser.parse_args(arguments)
        folder = prepare(options.name, archive=options.archive, data_dir=options.data_dir, sha256=options.sha256)
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
