"""PyTorch networks by name, their weights from files, and RobustBench's zoo; against PyTorch's own forward pass."""

import importlib.util
import json
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import safetensors

from robustjax import evaluation
from robustjax.interop import zoo
from robustjax.interop.networks import load_network
from robustjax.interop.weights import file_sha256
from robustjax.types import InputError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
IMAGES = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)

FILE = """
import torch

def convolutional():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        OrderedDict(
            conv=torch.nn.Conv2d(3, 4, 3), norm=torch.nn.BatchNorm2d(4), pool=torch.nn.AdaptiveAvgPool2d(1),
            flat=torch.nn.Flatten(), head=torch.nn.Linear(4, 10)
        )
    )

def ready():
    return convolutional().eval()

def loads(weights):
    made = convolutional()
    made.load_state_dict(torch.load(weights, weights_only=True))
    return made.eval()

from collections import OrderedDict
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def trained():
    """Another network of the same layers, as training might leave it."""
    names: dict = {}
    exec(FILE, names)
    made = names["convolutional"]()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if "num_batches" not in name:
                value.uniform_(0.5, 1.5)
    return made.eval()


def logits_of(module, images=IMAGES):
    with torch.no_grad():
        return module(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def save(module, folder):
    """The weights in every form that they come in, by name."""
    state = module.state_dict()
    arrays = {name: value.numpy() for name, value in state.items() if "num_batches" not in name}
    torch.save(state, folder / "plain.pt")
    wrapped = {f"module.{name}": value for name, value in state.items()}
    deep = OrderedDict((f"_orig_mod.module.{name}", value) for name, value in state.items())
    torch.save({"state_dict": wrapped, "epoch": 3}, folder / "wrapped.pth")
    torch.save({"model": deep}, folder / "deep.pt")
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "arrays.safetensors").write_bytes(safetensors(arrays))
    return [folder / name for name in ("plain.pt", "wrapped.pth", "deep.pt", "arrays.npz", "arrays.safetensors")]


def test_weights_are_loaded_from_every_kind_of_file(file, tmp_path):
    made = trained()
    for path in save(made, tmp_path):
        network = load_network(f"{file}:convolutional", weights=path)
        close(network.logits_fn(IMAGES), logits_of(made))
        about = network.about
        assert about["framework"] == "torch" and about["weights_sha256"] == file_sha256(path)
        assert about["num_parameters"] == sum(value.numel() for value in made.parameters())
        assert about["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
        assert json.loads(json.dumps(about)) == about
    close(load_network(f"{file}:loads", weights=tmp_path / "plain.pt").logits_fn(IMAGES), logits_of(made))


def test_weights_in_half_precision_are_read_as_they_are(file, tmp_path):
    made = trained().bfloat16().float()
    arrays = {name: ("BF16", value.numpy()) for name, value in made.state_dict().items() if "num_batches" not in name}
    (tmp_path / "half.safetensors").write_bytes(safetensors(arrays))
    torch.save(trained().bfloat16().state_dict(), tmp_path / "half.pt")
    for name in ("half.safetensors", "half.pt"):
        close(load_network(f"{file}:convolutional", weights=tmp_path / name).logits_fn(IMAGES), logits_of(made))


def test_without_weights_the_arrays_themselves_are_identified(file):
    one, same = (load_network(f"{file}:ready").about for _ in range(2))
    assert one == same and len(one["weights_sha256"]) == 64 and one["weights"] is None


def test_pixels_are_normalised_before_the_module(file, tmp_path):
    made, mean, std = trained(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    path = save(made, tmp_path)[0]
    network = load_network(f"{file}:convolutional", weights=path, mean=mean, std=std)
    close(network.logits_fn(IMAGES), logits_of(made, ((IMAGES - np.array(mean)) / np.array(std)).astype(np.float32)))
    assert network.about["normalisation"] == {"mean": list(mean), "std": list(std)}


def refused(cause, spec, **options):
    with pytest.raises(InputError) as caught:
        load_network(spec, **options)
    assert cause in str(caught.value) and "\n" not in str(caught.value), caught.value


@pytest.mark.bad_input
def test_weights_of_another_network_are_refused_in_one_line(file, tmp_path, monkeypatch):
    made, spec = trained(), f"{file}:convolutional"
    good = {name: value.numpy() for name, value in made.state_dict().items() if "num_batches" not in name}
    cases = {
        "missing head.bias": {name: value for name, value in good.items() if name != "head.bias"},
        "surplus fc.weight": good | {"fc.weight": np.zeros((2, 2))},
        "misshapen head.weight (must be (10, 4), got (100, 4))": good | {"head.weight": np.zeros((100, 4))},
        "missing conv.bias, conv.weight, head.bias and 5 more; surplus a": {"a": np.zeros(3)},
    }
    for cause, arrays in cases.items():
        path = tmp_path / "other.npz"
        np.savez(path, **arrays)
        refused(f"weights must be those of this Sequential, got {path} with {cause}", spec, weights=path)
    refused("in training mode; call module.eval()", spec)
    (tmp_path / "other.pt").write_bytes(b"<html>not found</html>")
    refused("other.pt", spec, weights=tmp_path / "other.pt")
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": made.state_dict(), "extra": Canary()}, tmp_path / "hostile.pt")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Canary(), protocol=2))
    for name in ("hostile.pt", "hostile.pkl"):
        refused("holds more than weights", spec, weights=tmp_path / name)
    assert not (tmp_path / "unpickled").exists()


class Canary:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("name", ["torchvision_resnet", "timm_vit"])
def test_examples_of_other_libraries_are_attacked_and_their_figure_is_pytorchs(name, tmp_path):
    pytest.importorskip("torchvision" if "torchvision" in name else "timm")
    spec = f"{EXAMPLES}/{name}.py:network"
    sys.path.insert(0, str(EXAMPLES))
    try:
        module = __import__(name).network()
    finally:
        sys.path.remove(str(EXAMPLES))
    with torch.no_grad():  # random weights alone would give logits that hardly differ
        for parameter in module.parameters():
            parameter.mul_(1.5)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    network = load_network(spec, weights=tmp_path / "weights.pt")
    close(network.logits_fn(IMAGES), logits_of(module))
    images = np.random.default_rng(1).uniform(size=(8, 32, 32, 3)).astype(np.float32)
    labels = logits_of(module, images).argmax(1)
    result = evaluation.evaluate(
        network.logits_fn,
        jax.random.key(0),
        images,
        labels,
        threat=evaluation.Threat("linf", 2 / 255),
        attacks=("clean", "fgsm"),
        batch_size=8,
    )
    assert result.records[0]["accuracy"] == 1.0
    adversarial = result.outcomes[1].adversarial
    assert len(adversarial) == 8 and 0 < result.records[1]["accuracy"] < 1
    np.testing.assert_array_equal(result.records[1]["robust"], logits_of(module, adversarial).argmax(1) == labels)


@pytest.fixture(scope="module")
def table():
    if importlib.util.find_spec("robustbench") is None:  # which cannot be imported by itself, see zoo
        pytest.skip("needs the extra zoo")
    return zoo.entries()


def test_a_network_of_robustbench_with_its_file(table, tmp_path):
    entry = table["cifar10/Linf/Andriushchenko2020Understanding"]
    torch.manual_seed(0)
    module = entry.create().eval()
    # As its authors published it: two networks in one file, of which RobustBench takes the last.
    torch.save({"last": module.state_dict(), "best": {}}, tmp_path / "weights.pt")
    network = load_network("robustbench:Andriushchenko2020Understanding", weights=tmp_path / "weights.pt")
    close(network.logits_fn(IMAGES), logits_of(module))
    assert network.about["framework"] == "torch" and network.about["normalisation"] == "as the network has it"
    module.load_state_dict({name: 2 * value for name, value in module.state_dict().items()})
    torch.save({"last": module.state_dict()}, tmp_path / "weights.pt")
    spec = "robustbench:cifar10/Linf/Andriushchenko2020Understanding"
    close(load_network(spec, weights=tmp_path / "weights.pt").logits_fn(IMAGES), logits_of(module))


def test_an_ensemble_of_robustbench_with_its_folder(table, tmp_path):
    entry = table["cifar10/Linf/Chen2020Adversarial"]
    torch.manual_seed(0)
    module = entry.create().eval()
    for i, (name, part) in enumerate(zip(entry.files, module.models, strict=True)):
        assert name == f"Chen2020Adversarial.pt_m{i}.pt"
        refused(f"must be in {tmp_path / name}, got no such file", "robustbench:Chen2020Adversarial", weights=tmp_path)
        torch.save(part.state_dict(), tmp_path / name)
    loaded = zoo.load("Chen2020Adversarial", tmp_path)
    close(logits_of(loaded), logits_of(module))


def test_a_network_that_timm_makes(table, tmp_path):
    torch.manual_seed(0)
    entry = table["imagenet/corruptions/AlexNet"]
    assert entry.by_timm
    module = entry.create().eval()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "weights.pt")
    images = np.random.default_rng(0).uniform(size=(1, 224, 224, 3)).astype(np.float32)
    close(logits_of(zoo.load("AlexNet", tmp_path / "weights.pt"), images), logits_of(module, images))


@pytest.mark.bad_input
def test_what_the_zoo_lacks_is_refused_in_one_line(table, tmp_path):
    refused("got 'Carmon2019Unlabled'; nearest: Carmon2019Unlabeled", "robustbench:Carmon2019Unlabled")
    refused("see https://robustbench.github.io", "robustbench:xxxxxxxxxxxx")
    refused("must be one network, got 3; give robustbench:cifar10/Linf/Standard or", "robustbench:Standard")
    one = "https://drive.google.com/uc?export=download&id=15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ"
    refused(f"got none; fetch {one} and give --weights=FILE", "robustbench:Carmon2019Unlabeled")
    refused(
        "as Chen2020Adversarial.pt_m0.pt, Chen2020Adversarial.pt_m1.pt, Chen2020Adversarial.pt_m2.pt of one folder and "
        "give --weights=FOLDER",
        "robustbench:Chen2020Adversarial",
    )
    refused("got one that torchvision downloads", "robustbench:imagenet/Linf/Standard_R50")
    refused("releases/download/v1.1/debenedetti2022light", "robustbench:cifar10/Linf/Debenedetti2022Light_XCiT-S12")
    refused("must be in", "robustbench:Carmon2019Unlabeled", weights=tmp_path / "none.pt")
    torch.save(trained().state_dict(), tmp_path / "other.pt")
    refused(
        f"must be made and take weights from {tmp_path / 'other.pt'}, got RuntimeError: Error(s) in loading state_dict",
        "robustbench:Carmon2019Unlabeled",
        weights=tmp_path / "other.pt",
    )
    torch.save({"state_dict": {}, "extra": Canary()}, tmp_path / "hostile.pt")
    refused("holds more than weights", "robustbench:Carmon2019Unlabeled", weights=tmp_path / "hostile.pt")
