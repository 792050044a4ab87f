"""Networks by a name on the command line: of functions in packages and files, and what is refused in one line."""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import safetensors

from robustjax import transforms
from robustjax.interop import zoo
from robustjax.interop.networks import load_network
from robustjax.interop.weights import file_sha256
from robustjax.types import InputError

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
IMAGES = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)

FILE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

import jax, jax.numpy as jnp
import beside

def plain():
    return beside.logits

def late():
    import beside_too
    return beside_too.logits

def with_weights(weights):
    from pathlib import Path
    size = float(len(Path(weights).read_bytes()))
    return lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.full(len(images), size)], axis=1)

def noisy():
    return lambda images, key: beside.logits(images) + jax.random.normal(key, (len(images), 2))

def held():
    return jax.tree_util.Partial(lambda scale, images: scale * beside.logits(images), jnp.full(3, 2.0)[0])

def of_images(images):
    return images

def two():
    return beside.logits, beside.logits

def module():
    import flax.linen as nn
    return nn.Dense(3)

def nothing():
    pass

def fails():
    raise RuntimeError("no\\nsuch\\nthing")

def needs():
    import a_package_that_is_not_there

constant = 3

@dataclass
class Scaled:
    scale: float
    names: ClassVar[list] = []

    def __call__(self, images):
        return self.scale * beside.logits(images)

def scaled():
    return Scaled(1.0)
"""
BESIDE = """
import jax.numpy as jnp

def logits(images):
    return jnp.stack([images.sum((1, 2, 3)), jnp.ones(len(images), images.dtype)], axis=1)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file with functions that return networks, and what it imports beside it."""
    (tmp_path / "mine.py").write_text(FILE)
    for name in ("beside", "beside_too"):
        (tmp_path / f"{name}.py").write_text(BESIDE)
    known = set(sys.modules)
    yield tmp_path / "mine.py"
    for name in sys.modules.keys() - known:
        if name.startswith("beside"):
            del sys.modules[name]


def expected(images):
    return np.stack([images.sum((1, 2, 3)), np.ones(len(images))], axis=1)


@pytest.mark.parametrize("name", ["plain", "late", "scaled"])
def test_a_function_of_a_file_returns_the_network(file, name):
    before = list(sys.path)
    network = load_network(f"{file}:{name}")
    assert sys.path == before
    np.testing.assert_allclose(network.logits_fn(IMAGES), expected(IMAGES), rtol=1e-6)
    assert network.about == {
        "model": f"{file}:{name}",
        "framework": "jax",
        "input": "float images [B, H, W, C] in [0, 1]",
        "normalisation": "as the network has it",
        "weights": None,
        "weights_sha256": None,
        "num_parameters": None,
        "versions": {},
    }


def test_a_function_of_a_package_returns_the_network(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    importlib.invalidate_caches()
    np.testing.assert_allclose(load_network("mine:plain").logits_fn(IMAGES), expected(IMAGES), rtol=1e-6)


def test_a_function_that_takes_weights_is_given_their_path(file, tmp_path):
    weights = tmp_path / "weights.any"
    weights.write_bytes(b"12345")
    network = load_network(f"{file}:with_weights", weights=weights)
    assert np.asarray(network.logits_fn(IMAGES))[0, 1] == 5
    assert network.about["weights"] == str(weights) and network.about["weights_sha256"] == file_sha256(weights)
    # sha256sum of these five bytes
    assert network.about["weights_sha256"] == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"


def test_arrays_of_a_partial_are_counted_and_told_apart(file):
    network = load_network(f"{file}:held")
    np.testing.assert_allclose(network.logits_fn(IMAGES), 2 * expected(IMAGES), rtol=1e-6)
    assert network.about["num_parameters"] == 1 and len(network.about["weights_sha256"]) == 64
    assert json.loads(json.dumps(network.about)) == network.about


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ([0.5], (0.5, 0.6, 0.7))])
def test_images_are_normalised_as_stated(file, mean, std):
    images = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
    network = load_network(f"{file}:plain", mean=mean, std=std)
    wanted = expected((images - np.array(mean)) / np.array(std))
    np.testing.assert_allclose(network.logits_fn(images), wanted, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: network.logits_fn(x))(images), wanted, rtol=1e-5)
    assert network.logits_fn(jnp.asarray(images, jnp.bfloat16)).shape == (2, 2)
    about = network.about["normalisation"]
    assert about == {"mean": np.ravel(mean).tolist(), "std": np.ravel(std).tolist()}
    noisy = load_network(f"{file}:noisy", mean=mean, std=std).logits_fn
    assert np.abs(noisy(images, jax.random.key(0)) - wanted).max() > 0.01


REFUSED = {
    "no form": ("resnet18", "model must be package.module:function, file.py:function, robustbench:NAME or onnx:FILE"),
    "no function": ("{file}:", "model must be package.module:function"),
    "no source": (":plain", "model must be package.module:function"),
    "no module": ("robustbnch:Carmon2019Unlabeled", "there is no module robustbnch"),
    "no submodule": ("robustjax.modls:create", "there is no module robustjax.modls"),
    "no file": ("{folder}/yours.py:plain", "must name a file that is there, got no"),
    "unknown function": ("{file}:plian", "got no plian in it; nearest: plain"),
    "no function at all": ("{file}:xxxxxx", "it has Scaled, fails, held, late, module"),
    "a constant": ("{file}:constant", "got int constant in it"),
    "a logits_fn": ("{file}:of_images", "got a function of images; write one that returns it"),
    "two": ("{file}:two", "got tuple; of a Flax module return lambda images"),
    "a Flax module": ("{file}:module", "got Dense; of a Flax module return lambda images"),
    "nothing": ("{file}:nothing", "got NoneType"),
    "fails": ("{file}:fails", "got RuntimeError: no such thing; mend it"),
    "needs a package": ("{file}:needs", "No module named 'a_package_that_is_not_there'"),
    "needs weights": ("{file}:with_weights", "give --weights=FILE"),
    "broken": ("{folder}/broken.py:network", "got SyntaxError"),
    "imports what is missing": ("{folder}/lacking.py:network", "got no module a_package_that_is_not_there; install"),
    "raises at import": ("{folder}/raising.py:network", "got ZeroDivisionError"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_network_is_refused_in_one_line(file, name):
    spec, cause = REFUSED[name]
    contents = {"broken": "def :", "lacking": "import a_package_that_is_not_there", "raising": "1 / 0"}
    for stem, content in contents.items():
        (file.parent / f"{stem}.py").write_text(content)
    refused(cause, spec.format(file=file, folder=file.parent))


def refused(cause, spec, **options):
    with pytest.raises(InputError) as caught:
        load_network(spec, **options)
    assert cause in str(caught.value) and "\n" not in str(caught.value), caught.value


@pytest.mark.bad_input
def test_weights_and_constants_that_do_not_fit_are_refused_in_one_line(file, tmp_path):
    weights = tmp_path / "weights.npz"
    np.savez(weights, a=np.zeros(1))
    refused("must take `weights`, got a function without", f"{file}:plain", weights=weights)
    refused("must be a file that is there, got no", f"{file}:with_weights", weights=tmp_path / "none")
    refused("weights must not be given beside onnx:FILE", "onnx:model.onnx", weights=weights)
    refused("got one of them; give the other", f"{file}:plain", mean=0.5)
    refused("std must be one finite number above 0", f"{file}:plain", mean=0.5, std=0)
    refused("mean must be one finite number", f"{file}:plain", mean=float("nan"), std=1)
    refused("must be for the same channels, got 3 and 2", f"{file}:plain", mean=(1, 2, 3), std=(1, 2))
    three = load_network(f"{file}:plain", mean=(0, 0, 0), std=1)
    with pytest.raises(InputError, match="got 3 for images with 1 channels; give as many"):
        three.logits_fn(IMAGES)


@pytest.mark.bad_input
def test_missing_packages_are_named_with_what_installs_them(monkeypatch):
    # Importing what is None here raises ImportError, whether it is installed or not.
    for name in ("torch", "torchax", "timm", "robustbench"):
        monkeypatch.setitem(sys.modules, name, None)
    refused("must have the package robustbench, got", "robustbench:Carmon2019Unlabeled")
    refused("robustbench==1.1.1", "robustbench:Carmon2019Unlabeled")
    with pytest.raises(InputError, match=r"must have torch and torchax beside it, got .*; pip install 'torch>="):
        transforms.from_torch_module(stand_in())


@pytest.mark.bad_input
def test_a_torchax_that_does_not_fit_pytorch_is_named_with_what_does(monkeypatch, tmp_path):
    class Torch:
        __version__ = "2.14.1"

    (tmp_path / "torchax.py").write_text("raise AttributeError(\"no overload 'dim_Dimname'\")")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", Torch)
    monkeypatch.delitem(sys.modules, "torchax", raising=False)
    with pytest.raises(InputError, match=r"torchax must fit the installed PyTorch, got .*dim_Dimname.*torchax=="):
        transforms.from_torch_module(stand_in())


def stand_in():
    """Something that looks like a module of PyTorch without PyTorch."""
    return type("Module", (), {"__module__": "torch.nn.modules.module"})()


def test_what_is_to_be_installed_is_what_setup_cfg_asks_for():
    from configparser import ConfigParser

    from robustjax.transforms._torch import INSTALL

    setup = ConfigParser()
    setup.read(EXAMPLES.parents[1] / "setup.cfg")
    extras = setup["options.extras_require"]
    assert set(extras["torch"].split()) == set(INSTALL.replace("'", "").split()[2:])
    assert zoo.ROBUSTBENCH in extras["zoo"].split()


def test_a_linen_network_by_its_arrays(tmp_path):
    generator = np.random.default_rng(0)
    sizes = {"Dense_0": (64, 32), "Dense_1": (32, 10)}
    arrays = {f"{name}/kernel": generator.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    arrays |= {f"{name}/bias": generator.normal(size=size[1]).astype(np.float32) for name, size in sizes.items()}
    np.savez(tmp_path / "mlp.npz", **arrays)
    network = load_network(f"{EXAMPLES}/linen_mlp.py:network", weights=tmp_path / "mlp.npz")
    hidden = np.maximum(IMAGES.reshape(3, -1) @ arrays["Dense_0/kernel"] + arrays["Dense_0/bias"], 0)
    wanted = hidden @ arrays["Dense_1/kernel"] + arrays["Dense_1/bias"]
    np.testing.assert_allclose(network.logits_fn(IMAGES), wanted, rtol=1e-4, atol=1e-4)
    assert network.about["num_parameters"] == 64 * 32 + 32 + 32 * 10 + 10


def test_an_nnx_and_an_equinox_network_give_their_own_logits():
    from flax import nnx

    sys.path.insert(0, str(EXAMPLES))
    try:
        nnx_cnn, equinox_cnn = importlib.import_module("nnx_cnn"), importlib.import_module("equinox_cnn")
    finally:
        sys.path.remove(str(EXAMPLES))
    model = nnx_cnn.CNN(nnx.Rngs(0))
    model.eval()
    images = np.random.default_rng(0).uniform(size=(3, 9, 8, 3)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        by_nnx = load_network(f"{EXAMPLES}/nnx_cnn.py:network").logits_fn(images)
        np.testing.assert_allclose(by_nnx, model(images), rtol=1e-6, atol=1e-6)
    model = equinox_cnn.CNN(jax.random.key(0))
    by_equinox = load_network(f"{EXAMPLES}/equinox_cnn.py:network").logits_fn(images)
    wanted = np.stack([model(image.transpose(2, 0, 1)) for image in images])
    np.testing.assert_allclose(by_equinox, wanted, rtol=1e-5, atol=1e-6)


def test_npz_and_safetensors_are_read_and_objects_are_not(tmp_path):
    from robustjax.interop.files import read_checkpoint

    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.ones((), np.int64)}
    np.savez(tmp_path / "weights.npz", **arrays)
    (tmp_path / "weights.safetensors").write_bytes(safetensors({"a": arrays["a"], "b": ("I64", 1)}))
    for name in ("weights.npz", "weights.safetensors"):
        read = read_checkpoint(tmp_path / name)
        assert read.keys() == arrays.keys()
        for entry, array in arrays.items():
            np.testing.assert_array_equal(read[entry], array)
    np.savez(tmp_path / "objects.npz", a=np.array([{"a": 1}], dtype=object))
    damaged = (tmp_path / "weights.npz").read_bytes()[:-40]
    for name, content in {"objects": None, "damaged": damaged, "text": b"a"}.items():
        path = tmp_path / f"{name}.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as npz"):
            read_checkpoint(path)
