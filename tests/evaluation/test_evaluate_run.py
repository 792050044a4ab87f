"""The command as one call: a run under other threats and on other data, and somebody's network from a file."""

import contextlib
import csv
import json
import threading

import numpy as np
import pytest

from robustjax import build, config, data
from robustjax.evaluation import Options, evaluate_run
from robustjax.evaluation.protocol import folder as protocol_folder
from robustjax.runs.checkpoint import Checkpoints
from robustjax.types import InputError

# The class of an image of the toy set is its brightest quarter; the network reads it off, but for every fifth image.
NETWORK = """
import jax
import jax.numpy as jnp
import numpy as np

def network():
    return lambda images: jnp.stack([images[:, :2, :2], images[:, :2, 2:], images[:, 2:, :2]], 1).mean((2, 3, 4))

def two():
    return lambda images: (images, images)

def wants_more():
    return lambda images: images.reshape(len(images), 3072)

def draws():
    return lambda images, key: images

def with_numpy():
    return lambda images: np.asarray(images).reshape(len(images), 16)

def with_a_name():
    return lambda images: {"logits": images.reshape(len(images), 16), "name": "mine"}

def fails():
    return lambda images: {}["weights"]

def once():
    weights = iter([np.eye(16)])
    return lambda images: images.reshape(len(images), 16) @ next(weights)

def keeps():
    kept = []
    def network(images):
        kept.append(images.reshape(len(images), 16))
        return kept[0]
    return network

def endless():
    return lambda images: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, images.reshape(len(images), 16))
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK)
    return f"{tmp_path / 'mine.py'}:network"


@pytest.fixture
def toy(tmp_path):
    """An .npz of images 4 x 4 of three classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 3
    images = rng.uniform(0.0, 0.1, (20, 4, 4, 1)) + 0.3
    for i, label in enumerate(labels):
        top, left = 2 * (label // 2), 2 * (label % 2)
        images[i, top : top + 2, left : left + 2] += (-0.3 if i % 5 == 4 else 1.0) * rng.uniform(0.05, 0.4)
    path = tmp_path / "toy.npz"
    np.savez(path, images=images.astype(np.float32), labels=labels, class_names=np.array(["a", "b", "c"]))
    return path


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


def on_run(run, *attacks, **options):
    return evaluate_run(Options(str(run), attacks=attacks, **{"num_examples": 24, "batch_size": 24, **options}))


def on_model(model, toy, *attacks, **options):
    given = {"data": str(toy), "epsilon": "0.1", "batch_size": 20, **options}
    return evaluate_run(Options(model=model, attacks=attacks, **given))


def written(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def rows(folder):
    return [row["attack"] for row in csv.DictReader((folder / "results.csv").read_text().splitlines())]


def test_the_worst_case_is_over_all_records_of_the_same_conditions(run, capsys):
    folder = run / "evaluation"
    on_run(run, "clean", "fgsm")
    result = on_run(run, "pgd:num_steps=3")
    worst = written(folder)["worst_case"]
    assert worst["attacks"] == ["clean", "fgsm", "pgd:num_steps=3"] == rows(folder)[:-1]
    flags = [written(folder)[name]["robust"] for name in worst["attacks"]]
    assert worst["robust"] == [all(row) for row in zip(*flags, strict=True)] == result.worst_case["robust"]
    assert "worst case (with clean, fgsm of earlier calls)" in " ".join(capsys.readouterr().out.split())


def test_records_of_fewer_images_do_not_mix_and_nothing_is_lost(run, capsys):
    folder = run / "evaluation"
    on_run(run, "clean", "pgd20")
    on_run(run, "pgd20", num_examples=12)
    assert written(folder).keys() == {"pgd20", "worst_case"}
    assert {record["num_examples"] for record in written(folder).values()} == {12}
    capsys.readouterr()
    on_run(run, "pgd20")
    assert "nothing is run again" in capsys.readouterr().out
    assert {"clean", "pgd20", "worst_case"} <= written(folder).keys()
    assert {record["num_examples"] for record in written(folder).values()} == {24}


def test_a_run_under_other_threats_than_it_was_trained_for(run):
    result = on_run(run, "clean", "fgsm", "pgd:num_steps=2", threat=["linf:8/255", "l2:0.5"])
    found = [(record["attack"], record["norm"], record["epsilon"]) for record in result.records]
    assert found == [
        ("clean", "linf", 8 / 255), ("fgsm", "linf", 8 / 255), ("pgd:num_steps=2", "linf", 8 / 255),
        ("fgsm", "l2", 0.5), ("pgd:num_steps=2", "l2", 0.5),
    ]  # fmt: skip
    files, balls = written(run / "evaluation"), ("linf-0.031372549", "l2-0.5")
    of_balls = {f"{name}-{ball}" for name in ("fgsm", "pgd:num_steps=2", "worst_case") for ball in balls}
    assert files.keys() == {"clean", "worst_case"} | of_balls
    union = files["worst_case"]
    parts = [files[f"worst_case-{ball}"]["robust"] for ball in balls]
    assert union["robust"] == [all(row) for row in zip(*parts, strict=True)] and len(union["threats"]) == 2
    assert files["pgd:num_steps=2-l2-0.5"]["settings"]["step_size"] == pytest.approx(0.05)


def test_a_run_on_other_data_must_know_its_classes_and_size(run, tmp_path):
    before = sorted(run.rglob("*"))
    for name, side, label, message in (
        ("size", 9, 3, r"data must hold images \[8, 8, 1\], as the run's network was trained with, got \[9, 9, 1\]"),
        ("classes", 8, 10, "labels must be classes 0 to 9, as there are logits, got 10 to 10"),
    ):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((2, side, side, 1), np.uint8), labels=np.full(2, label))
        with pytest.raises(InputError, match=message):
            on_run(run, "clean", data=str(tmp_path / f"{name}.npz"), num_examples=2)
    assert sorted(run.rglob("*")) == before


def test_a_run_on_a_random_part_of_its_data(run):
    result = on_run(run, "clean", subset_seed=3)
    images = data.read_images("digits", num_examples=24, subset_seed=3)
    assert result.records[0]["labels"] == images.labels.tolist()
    assert result.conditions["data"]["subset"] == {"of": 360, "seed": 3}
    whole = on_run(run, "clean", data="digits", num_examples=10)
    assert whole.records[0]["labels"] == data.load("digits", "test", num_examples=10).labels.tolist()
    assert (run / "evaluation" / "data=digits" / "clean.json").exists()


def test_a_foreign_network_is_judged_by_closed_form(model, toy, tmp_path, capsys):
    with np.load(toy) as held:
        images, labels = held["images"], held["labels"]
    scores = np.stack([images[:, :2, :2], images[:, :2, 2:], images[:, 2:, :2]], 1).mean((2, 3, 4))
    lead = scores[np.arange(20), labels] - np.where(np.eye(3)[labels] > 0, -1, scores).max(axis=1)
    # No pixel is within 0.1 of a wall, so that every difference of two quarters moves by 0.2.
    assert images.min() > 0.1 and images.max() < 0.9 and (np.abs(lead - 0.2) > 1e-3).all()
    output = tmp_path / "results"
    options = {"output": str(output), "save_images": str(tmp_path / "found.npz"), "per_class": True}
    result = on_model(model, toy, "clean", "pgd20", "apgd:num_steps=10,loss=margin", **options)
    assert isinstance(result.worst_case, dict)
    np.testing.assert_array_equal(result.records[0]["robust"], lead > 0)
    np.testing.assert_array_equal(result.worst_case["robust"], lead > 0.2)
    assert 0 < result.worst_case["accuracy"] < result.records[0]["accuracy"] < 1
    record = written(output)["apgd:loss=margin,num_steps=10"]
    assert record["network"]["model"] == model and record["dataset"] == str(toy)
    assert [part["name"] for part in record["per_class"]] == ["a", "b", "c"]
    assert rows(output) == ["clean", "pgd20", "apgd:loss=margin,num_steps=10", "worst_case"]
    assert "accuracy by class" in capsys.readouterr().out
    # The file says by itself what the network makes of it, and is judged like anybody's.
    with np.load(tmp_path / "found.npz") as found:
        again = np.stack([(i := found["images"])[:, :2, :2], i[:, :2, 2:], i[:, 2:, :2]], 1).mean((2, 3, 4)).argmax(1)
        assert (again == labels).mean() == result.worst_case["accuracy"]
        np.testing.assert_array_equal(again, found["predictions"])
        np.testing.assert_array_equal(found["robust"], result.worst_case["robust"])
    saved = on_model(model, toy, f"saved:{tmp_path / 'found.npz'}")
    assert saved.worst_case["robust"] == result.worst_case["robust"]
    assert saved.records[0]["settings"]["attack"] == "saved" and not list(tmp_path.glob("results/earlier"))
    with pytest.raises(InputError, match=r"must hold images inside the linf ball of 0\.01 and the box, got \d+ of 20"):
        on_model(model, toy, f"saved:{tmp_path / 'found.npz'}", epsilon=0.01)


def test_two_evaluations_of_a_run_at_once_leave_records_of_one_kind_each(run, monkeypatch):
    folder, held = run / "evaluation", protocol_folder.held
    calls = []

    @contextlib.contextmanager
    def interrupted(place):
        calls.append(place)
        if len(calls) == 2:  # another evaluation begins and ends between two records of this one
            on_run(run, "clean", "fgsm", num_examples=8)
        with held(place):
            yield

    monkeypatch.setattr(protocol_folder, "held", interrupted)
    mine = on_run(run, "clean", "fgsm", "pgd:num_steps=1", num_examples=16)
    assert rows(folder) == ["clean", "fgsm", "pgd:num_steps=1", "worst_case"]
    assert {record["num_examples"] for record in written(folder).values()} == {16}
    assert written(folder)["worst_case"]["robust"] == mine.worst_case["robust"]
    # Nor does one write while another reads and writes.
    with held(folder):
        waiting = threading.Thread(target=on_run, args=(run, "clean"), kwargs={"num_examples": 8}, daemon=True)
        before = written(folder)
        waiting.start()
        waiting.join(timeout=3.0)
        assert waiting.is_alive() and written(folder) == before
    waiting.join()
    assert {record["num_examples"] for record in written(folder).values()} == {8}


def test_images_that_have_changed_are_other_conditions(run, monkeypatch):
    on_run(run, "clean", "fgsm", num_examples=8)
    first = {record["evaluation"] for record in written(run / "evaluation").values()}
    whole = data.load("digits", "test", num_examples=8)
    changed = whole._replace(images=np.ascontiguousarray(whole.images[:, ::-1]))
    monkeypatch.setattr(data, "load", lambda *arguments, **options: changed)
    on_run(run, "fgsm", num_examples=8)
    files = written(run / "evaluation")
    assert files.keys() == {"fgsm", "worst_case"} and files["worst_case"]["attacks"] == ["fgsm"]
    assert {record["evaluation"] for record in files.values()}.isdisjoint(first)


def test_without_an_output_nothing_is_written(model, toy, tmp_path):
    before = sorted(tmp_path.iterdir())
    on_model(model, toy, "clean")
    assert sorted(tmp_path.iterdir()) == before


def test_another_data_set_is_a_row_and_no_attack(model, toy, tmp_path):
    with np.load(toy) as held:
        np.savez(tmp_path / "dark.npz", images=0.5 * held["images"][::-1], labels=held["labels"][::-1])
        np.savez(tmp_path / "small.npz", images=held["images"][:, :2], labels=held["labels"])
    result = on_model(model, toy, "clean", f"corruption:{tmp_path / 'dark.npz'}", "fgsm")
    clean, attacked, row = result.records
    assert row["robust"] == clean["robust"][::-1] and row["labels"] == clean["labels"][::-1]
    assert (row["norm"], row["epsilon"], row["labels_in_the_same_order"]) == ("none", 0.0, False)
    assert "no ball" in row["no_attack"] and row["dataset"] == str(tmp_path / "dark.npz")
    assert result.worst_case["attacks"] == ["clean", "fgsm"]
    assert result.worst_case["accuracy"] == attacked["accuracy"]
    with pytest.raises(InputError, match=r"must hold images \[4, 4, 1\], got \[2, 4, 1\]"):
        on_model(model, toy, "clean", f"corruption:{tmp_path / 'small.npz'}")
    with pytest.raises(InputError, match="got other data sets alone"):
        on_model(model, toy, f"corruption:{tmp_path / 'dark.npz'}")


def test_a_sweep_over_chosen_values(model, toy, tmp_path):
    sweep = on_model(model, toy, "pgd20", sweep="epsilon:0.3,0,1/100", output=str(tmp_path / "out"))
    assert [point["epsilon"] for point in sweep["points"]] == [0.0, 0.01, 0.3]
    assert sweep["points"][0]["accuracy"] > sweep["points"][2]["accuracy"] == 0.0
    assert written(tmp_path / "out")["sweep_epsilon"]["points"] == json.loads(json.dumps(sweep["points"]))
    assert (tmp_path / "out" / "sweep_epsilon.png").exists()


def test_a_card_is_written(model, toy, tmp_path):
    attacks = ("clean", "autoattack")
    result = on_model(model, toy, *attacks, card=str(tmp_path / "card.json"), num_examples=6, batch_size=8)
    made = json.loads((tmp_path / "card.json").read_text())
    assert made["autoattack_acc"] == f"{100 * result.records[1]['accuracy']:.2f}" and made["architecture"] == model


@pytest.mark.parametrize(
    ("function", "options", "cause"),
    [
        ("two", {}, "logits_fn must return float logits [2, K]"),
        ("wants_more", {}, "must take images [4, 4, 1], got TypeError"),
        ("with_numpy", {}, "got TracerArrayConversionError: The numpy.ndarray conversion method"),
        ("with_numpy", {}, "in mine.py:19 (<lambda>); compute with jax.numpy"),
        ("with_a_name", {}, "got TypeError: an output of type str; return the logits alone, or a pytree of arrays"),
        ("fails", {}, "got KeyError: 'weights' in mine.py:25 (<lambda>); give the --data or the --image_size"),
        ("once", {}, "logits_fn must take images [4, 4, 1], got StopIteration"),
        ("keeps", {}, "logits_fn must keep nothing from call to call that depends on being traced"),
        ("endless", {}, " must have a gradient, got Reverse-mode differentiation does not work for"),
        ("endless", {"attacks": ["apgd:toward=1"]}, " must have a gradient"),
        ("endless", {"attacks": ["autoattack"]}, " must have a gradient"),
        ("draws", {}, "must take (images), got (images, key); bind the key of a network that draws"),
        ("network", {"num_examples": 21}, "num_examples must be 1 to 20"),
        ("network", {"bounds": ("0", "0.5")}, "images must be finite pixels in bounds [0.0, 0.5]"),
        ("network", {"batch_size": 6}, "batch_size must be divisible by the 4 devices"),
        ("network", {"attacks": ["apgd:toward=3"]}, "toward must be a class 0 to 2, got 3"),
        ("network", {"attacks": ["saved:nowhere.npz"]}, "nowhere.npz"),
        ("network", {"attacks": ["adaptive"], "sweep": "epsilon"}, "leave out --sweep"),
        (
            "network",
            {"threat": ["linf:0.1", "l2:1"], "epsilon": None, "sweep": "steps"},
            "--sweep must be of one threat",
        ),
        ("network", {"threat": ["linf:0.1", "l2:1"], "epsilon": None, "save_images": "x.npz"}, "give one --threat"),
        ("network", {"attacks": ["saved:x.npz"], "sweep": "epsilon"}, "whose images are what they are"),
        ("network", {"card": "x.json"}, "card must be made of clean and autoattack"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(model, toy, tmp_path, monkeypatch, function, options, cause):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    attacks = options.pop("attacks", ["fgsm"])
    with pytest.raises(InputError) as caught:
        on_model(model.replace(":network", f":{function}"), toy, *attacks, output="out", **options)
    assert cause in str(caught.value) and "\n" not in str(caught.value)
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.parametrize(
    ("options", "causes"),
    [
        ({}, ["--workdir of a run or --model of a network must be given, got neither"]),
        ({"workdir": "a", "model": "b:c"}, ["got both"]),
        ({"model": "b:c"}, ["2 problems", "--data must be given", "--epsilon must be given"]),
        (
            {"model": "b:c", "data": "d", "epsilon": 1, "defense": "sap", "num_draws": 3},
            ["--defense, --draws must be left out"],
        ),
        ({"workdir": "a", "weights": "w", "output": "o"}, ["--weights, --output must be left out for a run"]),
        ({"workdir": "a", "threat": ["l2:1"], "norm": "l2", "epsilon": 1}, ["leave out --norm, --epsilon"]),
        ({"workdir": "a", "threat": []}, ["threat must be norms with a radius each", "got none"]),
        ({"workdir": "a", "threat": ["l2:1", "l2:1.0"]}, ["got one twice"]),
        ({"workdir": "a", "threat": ["lin:1", "l2"]}, ["nearest: 'linf'", "'l2' (its radius must be a number >= 0)"]),
        ({"workdir": "a", "norm": "l2"}, ["--epsilon must be given with --norm=l2"]),
        ({"workdir": "a", "norm": "l3", "epsilon": "1"}, ["norm must be one of linf, l2, l1, got 'l3'"]),
        ({"workdir": "a", "epsilon": "8/0"}, ["epsilon must be a number >= 0", "got '8/0'"]),
        ({"workdir": "a", "epsilon": -1}, ["epsilon must be a number >= 0", "got -1"]),
        ({"workdir": "a", "bounds": ("1", "0")}, ["bounds must be two numbers low < high, got '1,0'"]),
        ({"workdir": "a", "bounds": ("0",)}, ["bounds must be two numbers"]),
        ({"workdir": "a", "seed": 2**31}, ["--seed must be 0 to 2147483647, got 2147483648"]),
        ({"workdir": "a", "seed": -1, "num_draws": 0}, ["2 problems", "--seed", "--draws must be an integer from 1"]),
        ({"workdir": "a", "num_examples": 1.5}, ["--num_examples must be an integer from 1, got 1.5"]),
        ({"workdir": "a", "budget": "huge"}, ["--budget must be one of quick, full"]),
        ({"workdir": "a", "sweep": "eps"}, ["sweep must be epsilon or steps"]),
        ({"workdir": "a", "sweep": "epsilon:-1"}, ["sweep must be epsilon or steps"]),
        ({"workdir": "a", "sweep": "steps", "card": "c", "require": ["a>0"]}, ["--card, --require must be left out"]),
        ({"workdir": "a", "save_images": "x.png"}, ["--save_images must be a file that ends in .npz"]),
        ({"workdir": "a", "save_images": "/dev/null/x.npz"}, ["got /dev/null/x.npz, and /dev/null is no folder"]),
        ({"workdir": "a", "card": "/dev/null/c.json"}, ["--card must be where files can be written"]),
        ({"workdir": "a", "card": "/"}, ["--card must be a file, got the folder /"]),
        ({"model": "b:c", "data": "d", "epsilon": 1, "output": __file__}, ["--output must be a folder, got the file"]),
        ({"model": "b:c", "data": "d", "epsilon": 1, "mean": ["a"]}, ["mean must be numbers separated by commas"]),
        ({"workdir": "a", "attacks": []}, ["no attack is named"]),
        ({"workdir": "a", "attacks": ["clean"], "require": ["pgd20>=0.5"]}, ["require must be comparisons"]),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_read(options, causes):
    with pytest.raises(InputError) as caught:
        evaluate_run(Options(**options))
    for cause in causes:
        assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_flag_is_an_option_and_every_option_a_flag():
    from robustjax import evaluate

    names = {evaluate.RENAMED.get(flag.name, flag.name) for flag in evaluate.FLAGS}
    assert names | {"workdir"} == set(Options._fields)
    defaults = {evaluate.RENAMED.get(flag.name, flag.name): flag.default for flag in evaluate.FLAGS}
    ours = {name: value for name, value in Options()._asdict().items() if name not in ("workdir", "bounds", "require")}
    assert {name: defaults[name] for name in ours} == ours
