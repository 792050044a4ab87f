"""TRADES (Zhang et al. 2019, arXiv 1901.08573) with ResNet-18 on CIFAR-10, linf 8/255, beta 6.

python -m robustjax.train --config=configs/cifar10_trades.py --workdir=runs/cifar10_trades

Cost: about a tenth more than cifar10_at.py for the same epochs: the update passes natural and adversarial images.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.objective.name = "trades"
    config.objective.beta = 6.0
    return config
