"""MART (Wang et al. 2020) with ResNet-18 on CIFAR-10, linf 8/255, beta 5.

python -m robustjax.train --config=configs/cifar10_mart.py --workdir=runs/cifar10_mart

Cost: that of cifar10_trades.py. The paper trains at a learning rate of 0.01.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.objective.name = "mart"
    config.objective.beta = 5.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 3.5e-3
    return config
