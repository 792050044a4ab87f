"""Adversarial training of ResNet-18 on CIFAR-10, linf 8/255 (Madry et al. 2018).

python -m robustjax.train --config=configs/cifar10_at.py --workdir=runs/cifar10_at

Cost: 25.5 GFLOP an image and epoch, 1.25 PFLOP an epoch, 150 PFLOP in all: hours on one GPU.
Published: 84 to 85 % clean; AutoAttack leaves 44 to 46 % of the last checkpoint and 48 to 49 % of the best one, which
robust validation accuracy finds soon after the first drop of the learning rate (Rice et al. 2020, arXiv 2002.11569).
"""

from robustjax import config as config_lib


def get_config():
    return config_lib.cifar10()
