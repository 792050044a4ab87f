"""The recipe of the top of RobustBench: a SiLU WideResNet on CIFAR-10 with generated images, linf 8/255.

python -m robustjax.train --config=configs/cifar10_generated.py:28-10 --config.data.extra=FILE.npz --workdir=runs/more

The name after the colon is depth and width. FILE.npz holds generated, pseudo-labelled images under "image" and "label",
as Gowal et al. (2021, arXiv 2110.09468) and Wang et al. (2023, arXiv 2302.04638) publish them; seven tenths of each
batch are taken from it. An epoch is as many steps as CIFAR-10 alone would take. TRADES with beta 5, averaged weights,
label smoothing, one cycle: here it is linear and has its peak after a tenth of the epochs, in the published code it is
a cosine (PyTorch's OneCycleLR) with its peak after a quarter.

Without `--config.data.extra`, `--config.data.cutmix=1` is Rebuffi et al. (2021, arXiv 2103.01946).
`:94-16 --config.train.num_epochs=10000` is the size of Bartoldson et al. (2024, arXiv 2404.09349).

Cost of 28-10: 10.5 GFLOP a forward pass, 280 GFLOP an image and epoch, 5.6 EFLOP in all. Published: 92.4 % clean,
67.3 % AutoAttack with 20 million images and 2400 epochs. Not measured here.
"""

import re

from robustjax import config as config_lib
from robustjax.types import InputError


def get_config(size: str = "28-10"):
    found = re.fullmatch(r"(\d+)-(\d+)", size)
    if found is None:
        raise InputError(f"configs/cifar10_generated.py:DEPTH-WIDTH takes two numbers, such as 28-10, got {size!r}")
    config = config_lib.cifar10()
    config.data.pipeline = "stream"
    config.data.validation_examples = 1024
    config.data.extra_ratio = 0.7
    config.model.name = "deepmind_wide_resnet"
    config.model.depth, config.model.width = int(found[1]), int(found[2])
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.model.dtype = "bfloat16"
    config.objective.name = "trades"
    config.objective.beta = 5.0
    config.objective.label_smoothing = 0.1
    config.optimizer.schedule = "cyclic"
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.train.batch_size = 512
    config.train.num_epochs = 400
    config.train.ema_decay = 0.995
    config.validation.every_epochs = 5
    config.validation.batch_size = 512
    return config
