"""The networks of docs/examples by one command line: the recorded accuracy is that of their own forward pass."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import refused, run

from robustjax.evaluation import Options, evaluate_run

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
WEIGHTS = {
    "linen_mlp": "linen_mlp.npz",
    "nnx_cnn": "nnx_cnn.npz",
    "equinox_cnn": "equinox_cnn.eqx",
    "torchvision_resnet": "torchvision_resnet.pt",
    "timm_vit": "timm_vit.pt",
}


@pytest.fixture(scope="module")
def examples():
    """The modules of the folder, under the promotion that other libraries ask for."""
    sys.path.insert(0, str(EXAMPLES))
    known = set(sys.modules)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module
    sys.path.remove(str(EXAMPLES))
    for name in sys.modules.keys() - known:
        if name in (*WEIGHTS, "train"):
            del sys.modules[name]


def judged(name, folder, examples, attacks, **options):
    """Trains a network a little, evaluates it, and returns the evaluation and the images that decide it."""
    train = examples("train")
    train.STEPS = 60 if name == "torchvision_resnet" else 300  # those that are quick learn more slowly
    train.main(str(folder), name)
    result = evaluate_run(
        Options(
            model=f"{EXAMPLES}/{name}.py:network", weights=str(folder / WEIGHTS[name]),
            data=str(folder / "digits.npz"), attacks=attacks, save_images=str(folder / "found.npz"), batch_size=16,
            **{"epsilon": "12/255", "num_examples": 16, **options},
        )
    )  # fmt: skip
    return result, dict(np.load(folder / "found.npz"))


def agrees(result, saved, logits):
    """Whether logits of the saved images, computed elsewhere, give the recorded figures exactly."""
    record = result.worst_case
    right = np.argmax(logits, axis=1) == saved["labels"]
    assert right.tolist() == record["robust"] and right.mean() == record["accuracy"]
    np.testing.assert_array_equal(saved["predictions"], np.argmax(logits, axis=1))
    clean = result.records[0]["accuracy"]
    assert clean > 0.5 and record["accuracy"] < clean


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attacks"),
    [("linen_mlp", "clean,pgd20,autoattack"), ("nnx_cnn", "clean,pgd20"), ("equinox_cnn", "clean,pgd20")],
)
def test_jax_networks_give_the_recorded_accuracy(name, attacks, examples, tmp_path):
    result, saved = judged(name, tmp_path, examples, attacks.split(","))
    network = examples(name).network(tmp_path / WEIGHTS[name])
    agrees(result, saved, np.asarray(network(saved["images"])))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["torchvision_resnet", "timm_vit"])
def test_pytorchs_forward_pass_gives_the_recorded_accuracy(name, examples, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision" if "torchvision" in name else "timm")
    attacks = ["clean", "pgd20", "autoattack" if name == "timm_vit" else "apgd:num_steps=10"]
    result, saved = judged(name, tmp_path, examples, attacks, num_examples=8)
    module = examples(name).network()
    module.load_state_dict(torch.load(tmp_path / WEIGHTS[name], weights_only=True))
    with torch.no_grad():
        agrees(result, saved, module(torch.tensor(saved["images"].transpose(0, 3, 1, 2).copy())).numpy())


WRONG = """
import torch

class Fails(torch.nn.Module):
    def forward(self, images):
        raise RuntimeError("no such layer")

class Two(torch.nn.Module):
    def forward(self, images):
        logits = images.mean((2, 3))
        return logits, logits

def fails():
    return Fails().eval()

def two():
    return Two().eval()

def larger():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)).eval()
"""


@pytest.mark.torch
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("function", "weights", "cause"),
    [
        ("fails", False, "no such layer"),
        ("two", False, "wrap it in a module that returns the logits alone"),
        ("larger", False, "shapes cannot be multiplied"),
        ("larger", True, "weights must be those of this Sequential"),
    ],
)
def test_modules_that_do_not_fit_end_with_status_2_and_one_line(function, weights, cause, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "mine.py").write_text(WRONG)
    np.savez(tmp_path / "images.npz", images=np.full((2, 8, 8, 3), 0.5, np.float32), labels=np.array([0, 1]))
    np.savez(tmp_path / "other.npz", a=np.zeros(3, np.float32))
    more = [f"--weights={tmp_path / 'other.npz'}"] if weights else []
    line = refused(evaluate(tmp_path, f"--data={tmp_path / 'images.npz'}", f"{tmp_path / 'mine.py'}:{function}", *more))
    assert cause in line


@pytest.mark.bad_input
def test_images_that_do_not_fit_end_with_status_2_and_one_line(tmp_path):
    from PIL import Image

    model = f"{EXAMPLES}/linen_mlp.py:network"
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / "cat" / "0.png")
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"not an image")
    line = refused(evaluate(tmp_path, f"--data={tmp_path / 'photos'}", model))
    assert "cat/1.png must be a whole JPEG or PNG" in line
    np.savez(tmp_path / "keys.npz", pictures=np.zeros((2, 8, 8, 3)), answers=np.zeros(2, int))
    line = refused(evaluate(tmp_path, f"--data={tmp_path / 'keys.npz'}", model))
    assert "keys.npz" in line and "pictures" in line


def evaluate(folder, data, model, *more):
    before = sorted(folder.rglob("*"))
    options = [data, f"--model={model}", "--epsilon=0.1", "--attacks=clean", f"--output={folder / 'out'}", *more]
    done = run("evaluate", *options)
    assert sorted(folder.rglob("*.json")) == [path for path in before if path.suffix == ".json"]
    return done
