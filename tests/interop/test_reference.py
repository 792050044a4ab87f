"""Published PyTorch networks, rewritten, against what `from_torch` makes of their state dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch_networks as published  # noqa: E402

from robustjax import interop  # noqa: E402
from robustjax.models import PreActResNet, ResNet  # noqa: E402

pytestmark = pytest.mark.torch
CLASSES = 5
NETWORKS = {
    "cas-resnet": ("cas", lambda: published.ResNet(CLASSES, "cas"), 16),
    "cas-wide_resnet": ("cas", lambda: published.WideResNet(CLASSES, "cas", twin=True), 16),
    "cas-wide_resnet-10": ("cas", lambda: published.WideResNet(CLASSES, "cas", count=1), 16),
    "cas-vgg16": ("cas", lambda: published.VggCas(CLASSES), 32),
    "cifs-resnet": ("cifs", lambda: published.ResNet(CLASSES, "cifs"), 16),
    "cifs-wide_resnet": ("cifs", lambda: published.WideResNet(CLASSES, "cifs"), 16),
    "cifs-wide_resnet-10": ("cifs", lambda: published.WideResNet(CLASSES, "cifs", count=1), 16),
    "fsr-resnet": ("fsr", lambda: published.ResNet(CLASSES, "fsr"), 16),
    "fsr-wide_resnet": ("fsr", lambda: published.WideResNet(CLASSES, "fsr", twin=True), 16),
    "fsr-vgg16": ("fsr", lambda: published.VggFsr(CLASSES), 32),
    "robustbench-resnet": ("robustbench", lambda: published.ResNet(CLASSES, normalised=True), 16),
    "robustbench-preact_resnet": ("robustbench", lambda: published.PreActResNet(CLASSES, final_norm=True), 16),
    "robustbench-preact_resnet-wong": ("robustbench", lambda: published.PreActResNet(CLASSES, final_norm=False), 16),
    "robustbench-wide_resnet": ("robustbench", lambda: published.WideResNet(CLASSES, count=1, width=2), 16),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """PyTorch's threads have crashed beside those of JAX."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
    """A PyTorch network and ours."""
    source, build, side = NETWORKS[request.param]
    # Coarse patterns, as of fine noise every image would look the same to a network; and some noise, as in flat regions
    # rounding would decide which pixel max pooling takes.
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 0.8, size=(3, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    images = (images + generator.uniform(0, 0.2, size=images.shape)).astype(np.float32)
    network = published.randomise(build(), channels_first(images))
    return source, network, interop.from_torch(network.state_dict(), source), images


def channels_first(images):
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def relative_error(ours, theirs):
    return np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs))


def weighted_sum(xp, logits, auxiliary):
    """A scalar whose gradient depends on every logit, each with a weight of its own."""
    parts = [logits, *(auxiliary[kind] for kind in sorted(auxiliary))]
    flat = [part.reshape(-1) for part in parts]
    weights = [np.cos(1 + i + np.arange(len(part), dtype=np.float32)) for i, part in enumerate(flat)]
    return sum((part * xp(weight)).sum() for part, weight in zip(flat, weights, strict=True))


def test_logits_auxiliary_logits_and_input_gradients_are_the_originals(pair):
    _, network, (module, variables), images = pair
    theirs_in = channels_first(images).requires_grad_()
    their_logits, their_auxiliary = network(theirs_in)
    weighted_sum(torch.tensor, their_logits, their_auxiliary).backward()
    their_gradient = theirs_in.grad.numpy().transpose(0, 2, 3, 1)

    @jax.jit
    def run(images):
        def scalar(images):
            outputs = module.apply(variables, images)
            return weighted_sum(jnp.asarray, outputs.logits, outputs.auxiliary), (outputs.logits, outputs.auxiliary)

        return jax.grad(scalar, has_aux=True)(images)

    gradient, (logits, auxiliary) = run(images)
    assert auxiliary.keys() == their_auxiliary.keys()
    errors = {"logits": relative_error(logits, their_logits.detach().numpy())}
    errors |= {kind: relative_error(auxiliary[kind], their_auxiliary[kind].detach().numpy()) for kind in auxiliary}
    errors["gradient"] = relative_error(gradient, their_gradient)
    assert max(errors.values()) < 1e-4, errors
    # What is compared tells the images apart.
    assert np.std(np.asarray(logits), axis=0).mean() > 0.1 and np.abs(np.asarray(gradient)).max() > 1e-3


def test_the_way_back_gives_the_original_entries(pair):
    source, network, (module, variables), _ = pair
    original = {name: value.numpy() for name, value in network.state_dict().items()}
    back = interop.to_torch(module, variables, source)
    dead = {name for name in original if name.startswith("sub_block1.") or name.endswith("num_batches_tracked")}
    assert back.keys() == original.keys() - dead
    folded = {name for name in back if not back[name].any()}
    assert all(name.endswith(".bias") for name in folded) and bool(folded) == ("vgg" in type(network).__name__.lower())
    for name in back.keys() - folded:
        if not (folded and name.endswith("running_mean")):
            np.testing.assert_array_equal(back[name], original[name], err_msg=name)
    network.load_state_dict({name: torch.tensor(value) for name, value in back.items()}, strict=not dead)


def test_the_architecture_is_read_off_the_names_and_shapes():
    resnet, _ = interop.from_torch(published.ResNet(7, blocks=(2, 1, 3, 1)).state_dict(), "robustbench")
    assert resnet == ResNet(num_classes=7, blocks=(2, 1, 3, 1), widths=(8, 12, 16, 24))
    wide, _ = interop.from_torch(published.WideResNet(3, count=2, width=2, twin=True).state_dict(), "robustbench")
    assert wide == PreActResNet(num_classes=3, blocks=(2, 2, 2), widths=(32, 64, 128), stem_width=16)


def test_tensors_of_any_dtype_and_ours_share_no_memory():
    network = published.ResNet(3)
    half, _ = (interop.from_torch(network.half().state_dict(), "robustbench")[1], network.float())
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    state_dict = {name: value.to(torch.bfloat16) for name, value in network.state_dict().items()}
    _, variables = interop.from_torch(state_dict, "robustbench")
    state_dict = network.state_dict()
    _, variables = interop.from_torch(state_dict, "robustbench")
    before = np.array(variables["params"]["stem_norm"]["scale"])
    with torch.no_grad():
        state_dict["bn1.weight"].fill_(9.0)
    np.testing.assert_array_equal(variables["params"]["stem_norm"]["scale"], before)
