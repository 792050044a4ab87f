"""Data sets, the order in which training sees them, and augmentation.

A data set is one array in memory: ``load`` gives uint8 images [N, H, W, C] and int32 labels [N] of one of its
``splits``. One that is too large is read while a run trains: ``open_stream``. Training draws its order from
``epoch_order``, a pure function of (seed, epoch), so that a resumed run sees what the uninterrupted one would have
seen; augmentation (``robustjax.data.augment``) happens on the device, inside the training step.

The embedded data set ``digits`` needs nothing. The others are tfds data sets in ArrayRecord form, read without
TensorFlow; ``python -m robustjax.data prepare NAME`` makes the usual ones from their original archives.

``read_images`` reads images to evaluate on, also from a folder of class folders or an ``.npz`` file; ``save_images``
and ``read_saved`` write and read adversarial images. ``known.py`` lists the data sets that can be prepared.
"""

from robustjax.data.extra import Mixture, joined, open_extra
from robustjax.data.images import Images, read_images
from robustjax.data.order import epoch_order, spread
from robustjax.data.pipeline import batches, to_float
from robustjax.data.saved import read_saved, save_images
from robustjax.data.sources import Dataset, load, splits
from robustjax.data.stream import Stream, open_stream, stream_batches

__all__ = [
    "Dataset",
    "Images",
    "Mixture",
    "Stream",
    "batches",
    "epoch_order",
    "joined",
    "load",
    "open_extra",
    "open_stream",
    "read_images",
    "read_saved",
    "save_images",
    "splits",
    "spread",
    "stream_batches",
    "to_float",
]
