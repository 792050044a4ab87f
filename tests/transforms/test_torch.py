"""PyTorch modules as functions of JAX arrays, against PyTorch's own logits and gradients."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, transforms
from robustjax.attacks.engine import inputs
from robustjax.types import InputError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
nn = torch.nn


class Residual(nn.Module):
    """What most networks have: strides, groups, BatchNorm, pooling, a skip connection, a constant outside buffers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)
        self.mean = torch.full((1, 3, 1, 1), 0.4)

    def forward(self, images):
        hidden = nn.functional.silu(self.norm(self.stem((images - self.mean) / 0.25)))
        hidden = self.pool(torch.relu(self.grouped(hidden)) + self.shortcut(hidden))
        return self.head(self.drop(hidden.mean((2, 3))))


def module():
    """In inference mode, with statistics as training might leave them."""
    torch.manual_seed(0)
    made = Residual()
    with torch.no_grad():
        for name, value in made.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
    return made.eval()


@pytest.fixture(scope="module")
def converted():
    made = module()
    return made, transforms.from_torch_module(made)


def some_images(count=3, side=8, channels=3):
    return np.random.default_rng(1).uniform(size=(count, side, side, channels)).astype(np.float32)


def theirs(made, images):
    """PyTorch's logits, and the gradient of the summed cross-entropy of class 1."""
    pictures = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), requires_grad=True)
    logits = made(pictures)
    loss = nn.functional.cross_entropy(logits, torch.ones(len(images), dtype=torch.long), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pictures)
    return logits.detach().numpy(), gradient.numpy().transpose(0, 2, 3, 1)


def loss(logits_fn, images):
    return -jax.nn.log_softmax(logits_fn(images))[:, 1].sum()


def close(ours, expected, share=1e-5):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=share * np.abs(expected).max())


def test_logits_and_gradients_are_those_of_pytorch_at_several_sizes(converted):
    made, logits_fn = converted
    for side, count in ((8, 3), (12, 1)):
        images = some_images(count, side)
        logits, gradient = theirs(made, images)
        close(logits_fn(images), logits)
        close(jax.jit(jax.grad(loss, argnums=1))(logits_fn, images), gradient)
        close(jax.grad(loss, argnums=1)(logits_fn, jnp.asarray(images)), gradient)


def test_transformations_see_the_inside_of_the_program(converted):
    made, logits_fn = converted
    images = some_images(4)
    logits, gradient = theirs(made, images)
    one_by_one = jax.vmap(lambda image: logits_fn(image[None])[0])(images)
    close(one_by_one, logits)
    close(jax.pmap(logits_fn)(images[:, None])[:, 0], logits)
    primitives = {equation.primitive.name for equation in jax.make_jaxpr(logits_fn)(images).eqns}
    assert "conv_general_dilated" in primitives
    _, tangent = jax.jvp(lambda x: loss(logits_fn, x), (images,), (np.ones_like(images),))
    np.testing.assert_allclose(tangent, gradient.sum(), rtol=1e-4)


class Thresholded(nn.Module):
    """As MeanSparse's networks branch on buffers without axes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("threshold", torch.tensor(0.2))
        self.register_buffer("mean", torch.full((4,), 0.1))

    def forward(self, images):
        hidden = self.linear(images.mean((2, 3)))
        if self.updates:
            self.mean += hidden.mean(0)
        if self.threshold * 2 == 0:
            return hidden
        return torch.where(torch.abs(hidden - self.mean) < self.threshold, self.mean * torch.ones_like(hidden), hidden)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_a_module_may_branch_on_its_buffers_without_axes(threshold):
    network = Thresholded().eval()
    network.threshold.fill_(threshold)
    images = np.random.default_rng(3).uniform(size=(5, 4, 4, 3)).astype(np.float32)
    expected = network(torch.from_numpy(images).permute(0, 3, 1, 2)).detach().numpy()
    found = transforms.from_torch_module(network)
    np.testing.assert_allclose(jax.jit(lambda f, x: f(x))(found, images), expected, rtol=1e-5, atol=1e-6)
    assert not any(array.ndim == 0 for array in jax.tree.leaves(found))


def test_weights_are_arguments_of_what_is_compiled(converted):
    made, logits_fn = converted
    network, images = inputs.as_pytree(logits_fn), some_images()
    assert network is logits_fn
    named = {name: value for name, value in made.state_dict().items() if not name.endswith("num_batches_tracked")}
    sizes = sorted(value.numel() for value in named.values())
    assert set(sizes) <= {leaf.size for leaf in jax.tree.leaves(network)}
    traces = []

    @jax.jit
    def program(network, images):
        traces.append(1)
        return network(images)

    halved = jax.tree.map(lambda leaf: leaf / 2 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, network)
    assert not np.allclose(program(network, images), program(halved, images)) and len(traces) == 1
    program.lower(network, images)
    constants = jax.make_jaxpr(lambda network, images: network(images))(network, images).consts
    assert sum(np.size(constant) for constant in constants) < 10


def test_the_module_is_copied_and_left_alone():
    made = module()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    logits_fn = transforms.from_torch_module(made)
    images = some_images()
    logits, _ = theirs(made, images)
    with torch.no_grad():
        made.head.bias.add_(1.0)
    made.train()
    close(logits_fn(images), logits)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items() if name != "head.bias")
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_attacks_run_on_it_and_fool_pytorch():
    made = module()
    images, key = some_images(8), jax.random.key(0)
    labels = theirs(made, images)[0].argmax(1)
    logits_fn = transforms.from_torch_module(made)
    result = attacks.autoattack(logits_fn, key, images, labels, epsilon=0.3, batch_size=4)
    logits, _ = theirs(made, np.asarray(result.images))
    assert (~result.robust).sum() > 0
    np.testing.assert_array_equal(result.robust, logits.argmax(1) == labels)


def test_several_threads_may_trace_it_at_the_same_time():
    made = module()
    logits_fn, errors = transforms.from_torch_module(made), []

    def work(count):
        try:
            images = some_images(count, 8 + 4 * (count % 3))
            close(jax.jit(lambda x: logits_fn(x))(images), theirs(made, images)[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(count,)) for count in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_images_of_other_dtypes_are_cast(converted):
    _, logits_fn = converted
    images = some_images()
    for dtype in (jnp.bfloat16, jnp.float16):
        half = jnp.asarray(images).astype(dtype)
        assert logits_fn(half).dtype == jnp.float32
        close(logits_fn(half), logits_fn(half.astype(jnp.float32)))
    with jax.enable_x64(True):
        assert logits_fn(jnp.asarray(images, jnp.float64)).dtype == jnp.float32


def test_images_that_are_no_batch_of_floats_are_refused(converted):
    _, logits_fn = converted
    for images in (some_images()[0], np.zeros((1, 8, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="images must be floats"):
            logits_fn(images)


def test_shared_weights_stay_shared():
    made = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12)).eval()
    made[2].weight = made[1].weight
    images = some_images(2, 2)
    logits, gradient = theirs(made, images)
    logits_fn = transforms.from_torch_module(made)
    close(logits_fn(images), logits)
    close(jax.grad(loss, argnums=1)(logits_fn, jnp.asarray(images)), gradient)


class Wrong(nn.Module):
    """A module with a forward of the test's own."""

    def __init__(self, forward):
        super().__init__()
        self.dense = nn.Linear(12, 4)
        self.function = forward

    def forward(self, images):
        return self.function(self.dense(images.flatten(1)), images)


def mixing():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, 4))


class Permuted(nn.Module):
    """Takes channels last, which PyTorch has first."""

    def forward(self, images):
        return images.permute(0, 3, 1, 2)


def wrong(forward):
    return lambda: Wrong(forward)


REFUSED_WHEN_CALLED = {
    "two outputs": (wrong(lambda logits, images: (logits, logits)), "got tuple of 2; wrap it"),
    "a dict": (wrong(lambda logits, images: {"logits": logits}), "got dict; wrap it"),
    "one logit": (wrong(lambda logits, images: logits[:, :1]), "got float32 [2, 1] for 2 images"),
    "feature maps": (wrong(lambda logits, images: images), "got float32 [2, 3, 2, 2] for 2 images"),
    "classes": (wrong(lambda logits, images: (logits > 0).int()), "got int32 [2, 4] for 2 images"),
    "the batch's mean": (wrong(lambda logits, images: logits.mean(0)), "got float32 [4] for 2 images"),
    "not a number": (wrong(lambda logits, images: logits / 0 * 0), "finite logits"),
    "random": (wrong(lambda logits, images: logits + torch.rand_like(logits)), "same logits at every call"),
    "functional dropout": (wrong(lambda logits, images: nn.functional.dropout(logits)), "same logits at every call"),
    "mixes the batch": (wrong(lambda logits, images: logits - logits.mean(0)), "other images of the batch"),
    "batch statistics": (mixing, "track_running_stats=True"),
    "fails": (wrong(lambda logits, images: {}["missing"]), "got KeyError: 'missing'"),
    "another size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), "must take images [B, 3, 2, 2], got"),
    "channels last": (
        lambda: nn.Sequential(Permuted(), nn.Conv2d(3, 2, 1), nn.Flatten()),
        "or wrap it in a module that brings them into its own shape",
    ),
    "another number of channels": (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), "[B, 3, 2, 2], got"),
    "unknown to torchax": (
        wrong(lambda logits, images: logits + torch.from_numpy(images.detach().numpy().sum((1, 2, 3)))[:, None]),
        "module must be one that torchax converts, got",
    ),
}


@pytest.mark.parametrize("name", REFUSED_WHEN_CALLED)
def test_what_is_no_network_is_refused_at_the_first_call(name):
    make, cause = REFUSED_WHEN_CALLED[name]
    logits_fn = transforms.from_torch_module(make().eval())
    for call in (logits_fn, lambda images: jax.eval_shape(logits_fn, images), jax.jit(lambda x: logits_fn(x))):
        with pytest.raises(InputError) as caught:
            call(some_images(1, 2))
        assert cause in str(caught.value) and "\n" not in str(caught.value), caught.value


REFUSED_AT_ONCE = {
    "training": (lambda: module().train(), "norm (BatchNorm2d) in training mode; call module.eval()"),
    "dropout alone": (lambda: (made := module(), made.drop.train())[0], "drop (Dropout) in training mode"),
    "half": (lambda: module().half(), "got torch.float16; call module.float()"),
    "double": (lambda: module().double(), "got torch.float64; call module.float()"),
}


def test_a_function_around_a_module_is_sent_back_for_the_module():
    kept = module().eval()
    for around in (lambda images: kept(images), lambda images: kept(torch.as_tensor(images))):
        with pytest.raises(InputError, match=r"give the torch\.nn\.Module itself") as caught:
            inputs.traced("logits_fn", around, some_images(2, 4))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED_AT_ONCE)
def test_modules_that_are_not_ready_are_refused_at_once(name):
    make, cause = REFUSED_AT_ONCE[name]
    with pytest.raises(InputError) as caught:
        transforms.from_torch_module(make())
    assert cause in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_conversion_that_differs_is_refused_with_its_difference(monkeypatch):
    import torchax

    true = torchax.extract_jax

    def off(module):
        variables, function = true(module)
        return variables, lambda variables, arguments: function(variables, arguments) * 1.001

    monkeypatch.setattr(torchax, "extract_jax", off)
    with pytest.raises(InputError, match=r"got a difference of 1\.0e-03"):
        transforms.from_torch_module(module())(some_images())


class StraightThrough(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, values):
        return torch.round(values)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def hidden(logits, images):
    with torch.no_grad():
        steep = 2 * logits
    return steep + logits


@pytest.mark.parametrize("forward", [lambda logits, images: StraightThrough.apply(10 * logits), hidden])
def test_gradients_that_are_not_pytorchs_are_warned_of(forward):
    logits_fn = transforms.from_torch_module(Wrong(forward).eval())
    with pytest.warns(UserWarning, match=r"input gradient in JAX differs from PyTorch's by (100|67)% of its length"):
        logits_fn(some_images(1, 2))


def test_a_straight_through_estimator_by_detach_has_pytorchs_gradient():
    made = Wrong(lambda logits, images: logits + (torch.round(10 * logits) - logits).detach()).eval()
    logits, gradient = theirs(made, some_images(2, 2))
    logits_fn = transforms.from_torch_module(made)
    close(logits_fn(some_images(2, 2)), logits)
    close(jax.grad(loss, argnums=1)(logits_fn, jnp.asarray(some_images(2, 2))), gradient)


class Patches(nn.Module):
    """A patch embedding of strided convolutions, whose gradient PyTorch computes wrong of contiguous images."""

    def __init__(self):
        super().__init__()
        layers = []
        for before, after, stride in ((3, 48, 1), (48, 96, 1), (96, 192, 2), (192, 384, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images):
        return self.layers(images).flatten(2).transpose(1, 2).mean(1)


def test_gradients_are_those_of_finite_differences_where_pytorch_s_own_are_not():
    torch.manual_seed(0)
    made = Patches().eval()
    logits_fn = transforms.from_torch_module(made)
    images, direction = (np.random.default_rng(i).normal(0.5, 0.1, (1, 32, 32, 3)).astype(np.float32) for i in (0, 1))
    weights = np.random.default_rng(2).normal(size=(1, 384)).astype(np.float32)
    gradient = jax.grad(lambda images: jnp.sum(logits_fn(images) * weights))(images)  # warns of nothing
    made.double()

    def along(step):
        moved = images.astype(np.float64) + step * direction
        with torch.no_grad():
            return float((made(torch.tensor(moved.transpose(0, 3, 1, 2).copy())) * torch.tensor(weights)).sum())

    slope = (along(1e-6) - along(-1e-6)) / 2e-6
    assert float(np.sum(np.float64(gradient) * direction)) == pytest.approx(slope, rel=1e-3)
