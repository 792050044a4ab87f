"""Adversarial training of ResNet-18 on CIFAR-10, linf 8/255, in large batches over many devices.

python -m robustjax.train --config=configs/cifar10_at_pod.py:2048 --workdir=runs/cifar10_at_pod --distributed=auto

The number after the colon is the batch over all devices (default: 2048). The learning rate grows with it, from 0.1 at
128 as in cifar10_at.py, and comes up from 0 over the first 5 epochs (Goyal et al. 2017, arXiv 1706.02677). The network
computes in bfloat16; weights, statistics, losses and images are float32.

Cost: that of cifar10_at.py, 150 PFLOP, divided by the devices.
"""

from robustjax import config as config_lib
from robustjax.types import InputError


def get_config(batch_size: str = "2048"):
    if not batch_size.isdecimal() or int(batch_size) < 1:
        raise InputError(f"configs/cifar10_at_pod.py:BATCH_SIZE takes a number of images, got {batch_size!r}")
    config = config_lib.cifar10()
    config.train.batch_size = int(batch_size)
    config.optimizer.learning_rate = 0.1 * int(batch_size) / 128
    config.optimizer.warmup_epochs = 5.0
    config.model.dtype = "bfloat16"
    config.validation.batch_size = 512  # which any power of two of devices can share
    return config
