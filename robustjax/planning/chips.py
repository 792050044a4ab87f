"""The TPUs that can be planned for, with their published figures, and the slices in which they come."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any, NamedTuple

from robustjax.types import InputError, nearest

GIB = 2**30


class Chip(NamedTuple):
    """One chip, by https://cloud.google.com/tpu/docs/system-architecture-tpu-vm.

    Attributes:
        flops: peak of bfloat16 matrix products, FLOP/s. At JAX's default precision float32 ones run at it as well.
        memory: bytes.
        bandwidth: of the memory, bytes/s.
        interconnect: of all links to other chips together, bytes/s.
        dimensions: of the torus of chips.
        cores: "megacore" where the two cores of a chip make one device.
    """

    flops: float
    memory: int
    bandwidth: float
    interconnect: float
    dimensions: int
    cores: str = "default"


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 3, "megacore"),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 2),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 448e9, 2),
}
MOST = {"v4": 4096, "v5e": 256, "v5p": 8192, "v6e": 256}


class Slice(NamedTuple):
    """A number of chips of one kind.

    Attributes:
        kind: a key of ``CHIPS``.
        num_chips: a power of two.
    """

    kind: str
    num_chips: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each dimension of the torus, as near to a cube as powers of two allow.

        Example:
            >>> Slice("v5e", 32).shape, Slice("v4", 32).shape
            ((4, 8, 1), (2, 4, 4))
        """
        dimensions = self.chip.dimensions
        exponent = self.num_chips.bit_length() - 1
        sides = sorted(2 ** (exponent // dimensions + (i < exponent % dimensions)) for i in range(dimensions))
        # Of a v4 or v5p, the four chips of a host lie in a square, so a slice of 4 is flat, and one of 16 is deep.
        if dimensions == 3 and sides[0] == 1:
            sides.reverse()
        return tuple(sides) if dimensions == 3 else (*sides, 1)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.num_chips}"


def parse(text: str) -> Slice:
    """The slice that a name such as "v5e-16" means: the kind, then the number of chips.

    Google's own names of v4 and v5p count cores, of which a chip has two: v4-64 there is "v4-32" here. Of v5e they
    count chips, as v5litepod-16, which is understood as "v5e-16".

    Args:
        text: KIND-CHIPS, the kind one of ``CHIPS`` and the number a power of two.

    Returns:
        A :class:`Slice`.

    Raises:
        InputError: no such kind, or a number of chips that is not a power of two within what there is.

    Example:
        >>> parse("v5e-16") == parse("v5litepod-16")
        True
        >>> parse("v7-16")
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: --plan must be KIND-CHIPS with a kind of v4, v5e, v5p, v6e, got 'v7-16' (nearest:
        'v4-16')
    """
    found = re.fullmatch(r"(\w+)-(\d+)", re.sub("^v5litepod-", "v5e-", text))
    kinds = ", ".join(CHIPS)
    if found is None or found[1] not in CHIPS:
        number = found[2] if found else "16"
        hint = nearest(text, [f"{kind}-{number}" for kind in CHIPS])
        raise InputError(f"--plan must be KIND-CHIPS with a kind of {kinds}, got {text!r}{hint or '; such as v5e-16'}")
    kind, count = found[1], int(found[2])
    least = 1 if CHIPS[kind].dimensions == 2 else 4
    if not least <= count <= MOST[kind] or count & (count - 1):
        near = min((2**i for i in range(14) if least <= 2**i <= MOST[kind]), key=lambda size: abs(size - count))
        raise InputError(
            f"--plan must have a power of two of chips, {least} to {MOST[kind]} of {kind}, got {text!r} "
            f"(nearest: '{kind}-{near}')"
        )
    return Slice(kind, count)


def devices(target: Slice) -> list[Any]:
    """Abstract devices of a slice, for which programs can be compiled but not run.

    Raises:
        InputError: libtpu is not installed, or it does not know such a slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "--plan must find libtpu, which compiles for TPUs on any machine, got none; pip install 'jax[tpu]'"
        )
    from jax.experimental import topologies

    # Without these, libtpu asks Google Cloud about a machine that this is not, for a minute, and says so at length.
    about = {"ACCELERATOR_TYPE": "v5litepod-4", "WORKER_HOSTNAMES": "localhost", "SKIP_MDS_QUERY": "1"}
    quiet = {"MIN_LOG_LEVEL": "3", "STDERR_LOG_LEVEL": "3"}
    for name, value in {**about, **quiet}.items():
        os.environ.setdefault(f"TPU_{name}", value)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # of processes that compile, none has a TPU to itself
    host = {1: (1, 1, 1), 2: (1, 2, 1)}.get(target.num_chips, (2, 2, 1))
    name = f"{target.kind}:{'x'.join(map(str, target.shape))}"
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=host, chip_config_name=target.chip.cores
        )
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"--plan must be a slice that libtpu knows, got {target.name} ({name}): {cause}") from error
    return list(topology.devices)
