"""Sensitive Neuron Stabilizing, SNS-style (Zhang, Liu et al. 2021, arXiv 1909.06978), on top of adversarial training
(Madry et al. 2018): ResNet-18 on CIFAR-10, linf 8/255.

python -m robustjax.train --config=configs/cifar10_at_sns.py --workdir=runs/cifar10_at_sns

The paper's weight, layers and schedule are not public. Here every site counts, a tenth of its channels are held still,
selected anew every 100 updates, with weight 1: a starting point that was not tuned on CIFAR-10.

Cost: about a tenth more than cifar10_at.py: the update passes natural and adversarial images.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.defense.name = "sns"
    config.defense.weight = 1.0
    config.defense.fraction = 0.1
    config.defense.refresh_steps = 100
    return config
