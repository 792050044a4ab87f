"""The data sets that ``python -m robustjax.data prepare`` can make: where they come from and what they hold.

Names and versions are those of tfds, which has all of them but Tiny ImageNet. The SHA-256 digests do not come from the
archives' own servers: they are those that tfds lists for the same archives, and for Tiny ImageNet the one that its
users publish. To add a data set, add an entry to ``KNOWN`` and, for a new format, a reader to ``formats.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from robustjax.data import formats


class Archive(NamedTuple):
    """An original file: where it is published, its size in bytes and its SHA-256 digest."""

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


class Known(NamedTuple):
    """A data set that can be prepared.

    Attributes:
        title, homepage: for people.
        version: the version of tfds whose records these are.
        image_shape: (H, W, C).
        class_names: names of the classes, by label feature; "label" is the one to learn. Or a function that finds them
            in the archives' contents.
        archives: what to fetch.
        read: the archives' contents -> columns by split, see ``robustjax.data.formats``.
    """

    title: str
    homepage: str
    version: str
    image_shape: tuple[int, int, int]
    class_names: Mapping[str, tuple[str, ...]] | Callable[[list[formats.File]], Mapping[str, tuple[str, ...]]]
    archives: tuple[Archive, ...]
    read: Callable[[list[formats.File]], dict[str, formats.Columns]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_FINE = _words(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """
)
_CIFAR100_COARSE = _words(
    """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
    insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
    vehicles_1 vehicles_2
    """
)

KNOWN = {
    "mnist": Known(
        title="MNIST, handwritten digits",
        homepage="http://yann.lecun.com/exdb/mnist/",
        version="3.0.1",
        image_shape=(28, 28, 1),
        class_names={"label": _DIGITS},
        archives=(
            Archive(
                "https://storage.googleapis.com/cvdf-datasets/mnist/train-images-idx3-ubyte.gz",
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            Archive(
                "https://storage.googleapis.com/cvdf-datasets/mnist/train-labels-idx1-ubyte.gz",
                28881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            Archive(
                "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-images-idx3-ubyte.gz",
                1648877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            Archive(
                "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz",
                4542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
        read=formats.read_mnist,
    ),
    "fashion_mnist": Known(
        title="Fashion-MNIST, articles of clothing",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        version="3.0.1",
        image_shape=(28, 28, 1),
        class_names={"label": _FASHION},
        archives=(
            Archive(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            Archive(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
                29515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            Archive(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images-idx3-ubyte.gz",
                4422102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            Archive(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz",
                5148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
        read=formats.read_mnist,
    ),
    "cifar10": Known(
        title="CIFAR-10, small photographs of animals and vehicles",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        version="3.0.2",
        image_shape=(32, 32, 3),
        class_names={"label": _CIFAR10},
        archives=(
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        read=formats.read_cifar10,
    ),
    "cifar100": Known(
        title="CIFAR-100, small photographs of a hundred classes in twenty groups",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        version="3.0.2",
        image_shape=(32, 32, 3),
        class_names={"label": _CIFAR100_FINE, "coarse_label": _CIFAR100_COARSE},
        archives=(
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                168513733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        read=formats.read_cifar100,
    ),
    "svhn_cropped": Known(
        title="Street View House Numbers, cropped digits (without the split 'extra')",
        homepage="http://ufldl.stanford.edu/housenumbers/",
        version="3.1.0",
        image_shape=(32, 32, 3),
        class_names={"label": _DIGITS},
        archives=(
            Archive(
                "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                182040794,
                "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            ),
            Archive(
                "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
                64275384,
                "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            ),
        ),
        read=formats.read_svhn,
    ),
    "tiny_imagenet": Known(
        title="Tiny ImageNet, 200 classes at 64 x 64 (without its test images, whose labels are not public)",
        homepage="http://cs231n.stanford.edu",
        version="1.0.0",
        image_shape=(64, 64, 3),
        class_names=formats.tiny_imagenet_classes,
        archives=(
            Archive(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                248100043,
                "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            ),
        ),
        read=formats.read_tiny_imagenet,
    ),
}
