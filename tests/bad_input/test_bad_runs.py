"""Runs, records and published weights that are damaged or of another kind; wrong flags; and what no module may do."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bad_input.refusals import one_line
from robustjax import build, config, evaluate, interop, models, report
from robustjax.analysis import summary
from robustjax.interop.__main__ import main as import_run
from robustjax.interop.files import read_checkpoint
from robustjax.runs.checkpoint import Checkpoints
from robustjax.types import InputError

pytestmark = pytest.mark.bad_input
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: a network that was never trained."""
    workdir = tmp_path_factory.mktemp("run")
    settings = config.base()
    (workdir / "config.json").write_text(json.dumps(config.plain(settings)))
    dataset = build.test_dataset(settings, num_examples=1)
    state = build.initial_state(settings, build.model(settings, 10), dataset.images.shape[1:])()
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state)
    return workdir


WRONG_FLAGS = [
    ("--attacks=pgd21", "pgd21"),
    ("--attacks=clean,,fgsm", "attacks must be"),
    ("--attacks=Clean", "Clean"),
    ("--attacks=../clean", "../clean"),
    *((f"--num_examples={value}", "num_examples") for value in ("0", "-1", "many", "1.5", "361", "")),
    *((f"--batch_size={value}", "batch_size") for value in ("0", "-4", "many", "6", "1e3")),
    *((f"--checkpoint={value}", value) for value in ("7", "-1", "newest", "../0", "0.0")),
    ("--attacks=", "no attack is named"),
    *((f"--attacks={value}", "mistake") for value in ("apgd:losss=dlr", "apgd:num_steps=x", "clean,loss=ce", "n_fgsm")),
    *((f"--attacks={value}", value[:4]) for value in ("apgd:num_steps=0", "apgd:toward=10", "autoattack:version=fst")),
    ("--attacks=clean,saved:nowhere.npz", "nowhere.npz"),
    ("--attacks=clean,corruption:nowhere", "nowhere"),
    *((f"--seed={value}", "seed") for value in ("one", "1.5", "", "-1", str(2**31), str(10**30))),
    *((f"--sweep={value}", "sweep") for value in ("eps", "EPSILON", "1")),
    *((f"--sweep={value}", "sweep") for value in ("epsilon:", "epsilon:x", "epsilon:-1", "steps:0", "steps:1.5")),
    *((f"--split={value}", "train, test, validation") for value in ("bogus", "tset")),
    ("--split=", "must not be empty"),
    *((f"--threat={value}", "threat") for value in ("", "linf", "linf:x", "l3:1", "linf:-1", "l2:nan", "l2:1,l2:1")),
    *((f"--epsilon={value}", "epsilon") for value in ("", "x", "-1", "nan", "8/", "8/0", "inf")),
    ("--norm=l2", "epsilon"),
    *((f"--bounds={value}", "bounds") for value in ("", "0", "1,0", "0,x", "0,1,2", "0,0")),
    *((f"--require={value}", "require") for value in ("", "clean", "clean>=2", "claen>=0.5", "clean=0.5", ">=0.5")),
    ("--require=apgd>=0.5", "require"),  # which is not among the attacks
    *((f"--subset_seed={value}", "subset_seed") for value in ("-1", "x", "3")),
    ("--image_size=0", "image_size"),
    ("--image_size=8", "image_size"),
    ("--data=nowhere", "nowhere"),
    ("--data=digits.npz", "digits.npz"),
    ("--save_images=images.png", "save_images"),
    ("--card=card.json", "card"),
    ("--output=results", "output"),
    ("--weights=weights.pt", "weights"),
    ("--mean=0.5", "mean"),
    ("--model=mine.py:network", "got both"),
    ("--quicken=perhaps", "quicken"),
    *((f"--defense={value}", value.split(":")[0]) for value in ("sapp", "none:fraction=1", "SAP", "cas:beta=nan")),
    *((f"--defense=sap:{value}", "fraction") for value in ("fraction=0", "fraction=nan", "fraction=x", "fraction")),
    ("--defense=sap:frction=1", "frction"),
    ("--defense=sap:sampler=multi", "multi"),
    ("--defense=kwta:fraction=2", "fraction"),
    *((f"--defense=meansparse:alpha={value}", "alpha") for value in (-1, "nan", "inf", "x")),
    ("--defense=cas", "trained parameters"),
    ("--defense=sns", "sns"),
    *((f"--{name}=5", name) for name in ("eot_samples", "draws", "prediction_draws")),
    *((f"--{name}=0", name) for name in ("eot_samples", "draws", "prediction_draws")),
    ("--defence=sap", "defence"),
    ("more", "'more'"),
]


@pytest.mark.parametrize(("flag", "cause"), WRONG_FLAGS)
def test_a_wrong_flag_of_an_evaluation(refused, run, flag, cause):
    before = sorted(os.walk(run))
    refused(evaluate, [f"--workdir={run}", flag], cause)
    assert sorted(os.walk(run)) == before


def test_evaluating_what_is_not_a_run(refused, tmp_path):
    refused(evaluate, [f"--workdir={tmp_path}"], "has no config.json")


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--workdirs="], "workdirs"),
        (["--workdirs=somewhere,"], "got 'somewhere,'"),
        (["--workdirs=nowhere"], "nowhere"),
        (["--workdirs=nowhere,elsewhere"], "nowhere"),
        (["--workdirs=.", "--output=x"], "holds no evaluation"),
    ],
    ids=str,
)
def test_a_wrong_flag_of_a_report(refused, arguments, cause):
    refused(report, arguments, cause)


# Records of an evaluation, as a report reads them

RECORD = {
    "attack": "pgd20",
    "accuracy": 0.5,
    "num_examples": 100,
    "epsilon": 0.1,
    "norm": "linf",
    "robust": [True, False] * 50,
    "config": config.plain(config.base()),
}
WRONG_RECORDS = [
    # Of a network that is no run there is no config, and a list may be empty as far as its kind tells.
    *(
        (field, wrong)
        for field in RECORD
        for wrong in (None, [], {"a": 1})
        if (field, wrong) not in (("config", None), ("robust", []))
    ),
    *(("accuracy", wrong) for wrong in ("0.5", float("nan"), float("inf"), -0.1, 1.1, True)),
    *(("num_examples", wrong) for wrong in (0, -1, 1.5, "100", True, 10**400)),
    *(("epsilon", wrong) for wrong in ("0.1", float("nan"), -1.0)),
    *(("attack", wrong) for wrong in (1, "")),
    *(("config", wrong) for wrong in ("x", {"seed": 0}, {"seed": 0, "model": {}}, {"seed": 0, "model": "resnet18"})),
]


@pytest.mark.parametrize(("field", "wrong"), WRONG_RECORDS, ids=lambda value: str(value)[:20])
def test_a_record_that_was_tampered_with(tmp_path, field, wrong):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/pgd20.json").write_text(json.dumps(RECORD | {field: wrong}))
    with pytest.raises(InputError) as caught:
        summary.summarise([tmp_path])
    one_line(str(caught.value), "pgd20.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100000, b'{"attack":'], ids=len)
def test_a_record_that_is_damaged(tmp_path, content):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/pgd20.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        summary.summarise([tmp_path])
    one_line(str(caught.value), "pgd20.json")


# Published weights


@pytest.fixture(scope="module")
def state_dict():
    network = models.create("wide_resnet", depth=10, width=1, num_classes=3)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    return interop.to_torch(network, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes), "robustbench")


ENTRIES = ["conv1.weight", "block1.layer.0.bn1.running_var", "block2.layer.0.convShortcut.weight", "fc.bias"]
SPOILERS = {
    "missing": None,
    "another shape": lambda array: array[..., None],
    "nothing in it": lambda array: array[:0],
    "nan": lambda array: np.full_like(array, np.nan),
    "infinite": lambda array: np.full_like(array, -np.inf),
    "complex": lambda array: array.astype(np.complex64),
    "text": lambda array: np.full(array.shape, "weight"),
    "objects": lambda array: np.full(array.shape, None),
    "None": lambda array: None,
    "a list": lambda array: array.tolist(),
    "a string": lambda array: "weight",
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", SPOILERS)
def test_a_state_dict_with_a_wrong_entry(state_dict, entry, kind):
    spoilt = {name: array for name, array in state_dict.items() if name != entry}
    if SPOILERS[kind]:
        spoilt[entry] = SPOILERS[kind](state_dict[entry])
    with pytest.raises(InputError) as caught:
        interop.from_torch(spoilt, "robustbench")
    one_line(str(caught.value), entry)


@pytest.mark.parametrize(
    "wrong", [{}, {"a": np.ones(3)}, {1: np.ones(3)}, {"state_dict": {}}, {"state_dict": 3}, [], None, "weights", 7]
)
def test_what_is_no_state_dict(wrong):
    with pytest.raises(InputError) as caught:
        interop.from_torch(wrong, "robustbench")
    one_line(str(caught.value), "state dict")


@pytest.mark.parametrize("source", ["", "robustbnch", "RobustBench", "../cas", "torch"])
def test_an_unknown_source(state_dict, source):
    with pytest.raises(InputError) as caught:
        interop.from_torch(state_dict, source)
    one_line(str(caught.value), repr(source))


def safetensors(header, data=bytes(16)):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
WRONG_HEADERS = [
    *((key, wrong) for key in GOOD for wrong in (None, -1, "x", [], {}, [None], [1e400, 0], [[0], [16]], True)),
    ("dtype", "F31"),
    ("dtype", "f32"),
    *(("shape", wrong) for wrong in ([4, 4], [2**63, 2], [-2, 2], ["2", "2"], [2.5, 1.6])),
    *(("data_offsets", wrong) for wrong in ([16, 0], [0, 17], [-16, 0], [0], [0, 8, 16], [2**70, 2**70 + 16])),
]


@pytest.mark.parametrize(("key", "wrong"), WRONG_HEADERS, ids=lambda value: str(value)[:20])
def test_safetensors_with_a_wrong_header(tmp_path, key, wrong):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors({"a": GOOD | {key: wrong}}))
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    one_line(str(caught.value), str(path))


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "CHECKPOINT"),
        (["nowhere.pt", "--source=cas", "--workdir=run"], "nowhere.pt"),
        (["nowhere.pt", "--workdir=run"], "--source"),
        (["nowhere.pt", "--source=cas"], "--workdir"),
        (["nowhere.pt", "--source=cas", "--workdir=run", "--epsilon=big"], "'big'"),
        (["nowhere.pt", "--source=cas", "--workdir=run", "--mean=a,b"], "'a,b'"),
        (["nowhere.pt", "--source=cas", "--workdir=run", "--sorce=cas"], "sorce"),
    ],
    ids=str,
)
def test_wrong_arguments_to_interop(tmp_path, monkeypatch, capsys, arguments, cause):
    monkeypatch.chdir(tmp_path)
    assert import_run(arguments) == 2
    one_line(capsys.readouterr().err, cause)
    assert not list(tmp_path.iterdir())


# As a user meets it


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["robustjax.train", "--config=configs/quickstart.py", "--config.attack.epsilon=nan"], "attack.epsilon"),
        (["robustjax.train", "--config=setup.cfg"], "--config"),
        (["robustjax.train", "--config=configs/cifar10_at_pod.py:4k"], "'4k'"),
        (["robustjax.evaluate"], "does not exist"),
        (["robustjax.evaluate", "--workdirs=x"], "workdirs"),
        (["robustjax.report", "--workdirs=nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_a_real_command_line(tmp_path, arguments, cause):
    workdir = [] if "report" in arguments[0] else [f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", *arguments, *workdir],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
    one_line(done.stderr, cause)
    assert not list(tmp_path.iterdir())


# Nothing executable is loaded from data

# Where a user names a module of theirs to run: --model=package.module:function.
RUNS_WHAT_IS_NAMED = {"networks.py"}
UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}


@pytest.mark.parametrize("path", sorted((ROOT / "robustjax").rglob("*.py")), ids=lambda path: path.name)
def test_no_module_loads_what_could_run(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
            assert name not in ("eval", "exec", "compile", "__import__"), name
            assert name != "importlib.import_module" or path.name in RUNS_WHAT_IS_NAMED
            assert name.split(".")[0] not in UNPICKLERS, name
            if name == "np.load":
                assert options["allow_pickle"] == "False"
            if name == "torch.load":
                assert options["weights_only"] == "True"
        if isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] not in UNPICKLERS
