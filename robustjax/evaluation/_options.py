"""The options of ``python -m robustjax.evaluate`` as one value, and their check, which reports all mistakes at once.

:func:`threats_of` reads --epsilon, --norm and --threat (as ``linf:8/255``, in ``protocol/threats.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from robustjax.attacks import geometry
from robustjax.evaluation.protocol import sweeps, threats
from robustjax.evaluation.protocol.threats import Threat
from robustjax.evaluation.verdict.budgets import BUDGETS
from robustjax.runtime import files
from robustjax.types import InputError

# Keys are made of 32 bits everywhere.
LARGEST_SEED = 2**31 - 1


class Options(NamedTuple):
    """What is evaluated, under which threat, and where results go; each field is a flag of ``robustjax.evaluate``.

    Numbers may be written as a command line has them: ``epsilon="8/255"``.

    Attributes:
        workdir: of the run whose network is evaluated; or None, and a ``model``.
        model: another network: ``package.module:function``, ``file.py:function``, ``robustbench:NAME`` or
            ``onnx:FILE``, see :func:`robustjax.interop.networks.load_network`.
        weights, mean, std: of the model, see there.
        data: images to evaluate on: a data set, a folder of class folders, or an .npz, see
            :func:`robustjax.data.read_images`. None: the data set of the run.
        split: of the data set.
        num_examples: only the first so many images; None: all.
        subset_seed: take that many images at random from the stored data set; None: the first.
        image_size: side that images are scaled to; None: as they are.
        data_dir: where prepared data sets lie; None: where the run's lie, or else TFDS_DATA_DIR.
        norm, epsilon: of the threat; None: those that the run was trained for.
        threat: several threats, as ``["linf:8/255", "l2:0.5"]``, in place of norm and epsilon.
        bounds: lowest and highest pixel, in [0, 1], as all images that are read are.
        attacks: in the order in which they run, as in ``["clean", "apgd:loss=dlr,num_steps=50"]``; None: clean, fgsm,
            pgd20, cw and pgd100, of a sweep pgd20.
        sweep: ``"epsilon"`` or ``"steps"``, of chosen values ``"epsilon:0,2/255,4/255"``: accuracy against them in
            place of records.
        checkpoint: of the run: ``"best"`` by robust validation accuracy, ``"last"``, or a step.
        defense: a defense to switch on in place of the run's own, as ``"sap:fraction=0.5"``; ``"+sap"`` adds SAP to
            the run's own, ``"none"`` switches that off.
        transfer_from: folder of another run on the same data, from whose network adaptive attacks transfer.
        batch_size: images at a time, over all devices.
        seed: of attacks that draw.
        budget: of the adaptive attacks, ``"quick"`` or ``"full"``.
        eot_samples, num_draws, prediction_draws: of a stochastic network: draws over which attacks average (20), fresh
            ones on which each image is classified (10), and draws whose probabilities one prediction averages (1).
        quicken: run a model by :func:`robustjax.transforms.quicken`.
        output: folder of the results of a model; None: nothing is written. Those of a run lie in its workdir.
        per_class: also print accuracy by class.
        card: file of a leaderboard card in RobustBench's form.
        save_images: file of the images that decide the worst case, an .npz.
        require: bounds on accuracies, as ``["autoattack>=0.5"]``; see ``Evaluation.unmet``.
    """

    workdir: str | None = None
    attacks: Sequence[str] | None = None
    num_examples: int | None = None
    split: str = "test"
    checkpoint: str = "best"
    batch_size: int = 500
    seed: int = 0
    budget: str = "quick"
    transfer_from: str | None = None
    sweep: str | None = None
    defense: str | None = None
    eot_samples: int | None = None
    num_draws: int | None = None
    prediction_draws: int | None = None
    model: str | None = None
    weights: str | None = None
    mean: Sequence[float | str] | None = None
    std: Sequence[float | str] | None = None
    data: str | None = None
    subset_seed: int | None = None
    image_size: int | None = None
    data_dir: str | None = None
    norm: str | None = None
    epsilon: float | str | None = None
    threat: Sequence[str] | None = None
    bounds: Sequence[float | str] = (0.0, 1.0)
    quicken: bool = True
    output: str | None = None
    per_class: bool = False
    card: str | None = None
    save_images: str | None = None
    require: Sequence[str] = ()


# Of a run alone, and of a model alone.
OF_RUN = ("checkpoint", "defense", "prediction_draws", "eot_samples", "num_draws")
OF_MODEL = ("weights", "mean", "std", "output")
# Of an evaluation that leaves records, and not of a sweep.
OF_RECORDS = ("per_class", "card", "save_images", "require")


def check(options: Options) -> None:
    """Refuses options that are out of range or contradict each other, before anything is read.

    Raises:
        InputError: one line that lists every mistake.

    Example:
        >>> check(Options(seed=-1))
        Traceback (most recent call last):
        robustjax.types.InputError: evaluation has 2 problems: --workdir of a run or --model of a network must be given,
        got neither; see --help; --seed must be 0 to 2147483647, got -1
    """
    problems = list(dict.fromkeys(_problems(options)))  # wrong bounds are found once for each threat
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"evaluation has {len(problems)} problems: {'; '.join(problems)}")


def _problems(options: Options) -> Iterator[str]:
    defaults = Options()

    def given(*names: str) -> str:
        return ", ".join(f"--{FLAGS.get(name, name)}" for name in names if _differs(options, defaults, name))

    for name, value in options._asdict().items():
        if value == "":  # as of a variable of the shell that is not set
            yield f"--{FLAGS.get(name, name)} must not be empty; give a value, or leave it out"
    if options.workdir is None and options.model is None:
        yield "--workdir of a run or --model of a network must be given, got neither; see --help"
    elif options.workdir is not None and options.model is not None:
        yield "--workdir of a run or --model of a network must be given, got both; leave one out"
    elif options.model is not None and (wrong := given(*OF_RUN)):
        yield f"{wrong} must be left out for a --model; only a run takes it"
    elif options.workdir is not None and (wrong := given(*OF_MODEL)):
        yield f"{wrong} must be left out for a run; only a --model takes it"
    if options.model is not None and options.data is None:
        yield "--data must be given with --model, got none; give a data set, a folder of class folders or an .npz"
    if options.threat is not None and (wrong := given("norm", "epsilon")):
        yield f"--threat holds norms and radii itself; leave out {wrong}"
    elif options.threat is None and options.epsilon is None and options.model is not None:
        yield "--epsilon must be given with --model, got none; give for example --epsilon=8/255, or --threat"
    elif options.threat is None and options.epsilon is None and options.norm is not None:
        yield f"--epsilon must be given with --norm={options.norm}, whose radius it is, got none"
    for name, least, most in (
        ("seed", 0, LARGEST_SEED),
        ("subset_seed", 0, LARGEST_SEED),
        ("num_examples", 1, None),
        ("image_size", 1, None),
        ("batch_size", 1, None),
        ("eot_samples", 1, None),
        ("num_draws", 1, None),
        ("prediction_draws", 1, None),
    ):
        value = getattr(options, name)
        fine = value is None or (type(value) is int and value >= least and (most is None or value <= most))
        if not fine:
            wanted = f"an integer from {least}" if most is None else f"{least} to {most}"
            yield f"--{FLAGS.get(name, name)} must be {wanted}, got {value!r}"
    if options.budget not in BUDGETS:
        yield f"--budget must be one of {', '.join(BUDGETS)}, got {options.budget!r}"
    if options.sweep is not None and (wrong := given(*OF_RECORDS)):
        yield f"{wrong} must be left out with --sweep, which leaves no records"
    if options.save_images is not None and files.place(options.save_images).suffix != ".npz":
        yield f"--save_images must be a file that ends in .npz, got {options.save_images!r}"
    for name in ("card", "save_images"):
        if (path := getattr(options, name)) is not None and files.place(path).is_dir():
            yield f"--{name} must be a file, got the folder {path}; name a file in it"
    if options.output is not None and files.place(options.output).is_file():
        yield f"--output must be a folder, got the file {options.output}; give another"
    places = {"card": options.card, "save_images": options.save_images, "output": options.output}
    for check_one in (
        *(partial(files.check_target, f"--{name}", path) for name, path in places.items() if path is not None),
        lambda: sweeps.parse(options.sweep) if options.sweep is not None else None,
        lambda: _bounds(options),
        lambda: threats_of(options, Threat("linf", 0.0)),
        lambda: constants(options),
    ):
        try:
            check_one()
        except InputError as error:
            yield str(error)


# Options whose flags are named otherwise.
FLAGS = {"num_draws": "draws"}


def _differs(options: Options, defaults: Options, name: str) -> bool:
    value, default = getattr(options, name), getattr(defaults, name)
    return list(value) != list(default) if isinstance(default, tuple) else value != default


def threats_of(options: Options, trained: Threat | None) -> list[Threat]:
    """The threats of an evaluation: those that are given, or the one that a run was trained for.

    Raises:
        InputError: there are mistakes in them, or one is named twice.
    """
    bounds = _bounds(options)
    if options.threat is not None:
        found = threats.parse(options.threat, bounds)
    elif options.epsilon is not None:
        norm = options.norm if options.norm is not None else trained.norm if trained is not None else "linf"
        geometry.get(norm)
        found = [Threat(norm, threats.radius("epsilon", options.epsilon), bounds)]
    else:
        assert trained is not None  # `check` has refused a model without a threat
        found = [trained._replace(bounds=bounds)]
    for threat in found:
        threats.check_width(threat)
    if len({(threat.norm, threat.epsilon) for threat in found}) < len(found):
        raise InputError("threat must be threats of different norm or epsilon, got one twice; leave it out")
    return found


def _bounds(options: Options) -> tuple[float, float]:
    try:
        low, high = (threats.number(wall) for wall in options.bounds)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        text = options.bounds if isinstance(options.bounds, str) else ",".join(map(str, options.bounds))
        raise InputError(f"bounds must be two numbers low < high, got {text!r}; give for example 0,1")
    if low < 0 or high > 1:
        raise InputError(
            f"bounds must lie in [0, 1], as all images do that are read, got {low:g},{high:g}; leave them out, and let "
            "the network scale its images"
        )
    return low, high


def constants(options: Options) -> dict[str, tuple[float, ...] | None]:
    """``mean`` and ``std`` as numbers."""
    found = {}
    for name, values in (("mean", options.mean), ("std", options.std)):
        try:
            found[name] = None if values is None else tuple(map(threats.number, values))
        except ValueError:
            text = ",".join(map(str, values or ()))
            raise InputError(
                f"{name} must be numbers separated by commas, such as 0.5,0.5,0.5, got {text!r}; give one for each "
                "channel, or one for all"
            ) from None
    return found
