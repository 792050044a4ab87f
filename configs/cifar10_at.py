"""Adversarial training of ResNet-18 on CIFAR-10, linf 8/255 (Madry et al. 2018).

python -m robustjax.train --config=configs/cifar10_at.py --workdir=runs/cifar10_at

Cost: 25.6 GFLOP an image and epoch, 1.28 PFLOP an epoch, 154 PFLOP in all: hours on one GPU.
Published: 84 to 85 % clean, about 49 % PGD-20 and 44 to 46 % AutoAttack at the best checkpoint.
"""

from robustjax import config as config_lib


def get_config():
    return config_lib.cifar10()
