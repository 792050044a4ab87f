"""Channel-wise Activation Suppressing (Bai et al., ICLR 2021) on top of MART (Wang et al. 2020): ResNet-18 on CIFAR-10,
linf 8/255, beta 2.

python -m robustjax.train --config=configs/cifar10_mart_cas.py --workdir=runs/cifar10_mart_cas

Cost: that of cifar10_mart.py and the guards' (benchmarks/RESULTS.md).
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.objective.name = "mart"
    config.objective.beta = 5.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 3.5e-3
    config.defense.name = "cas"
    config.defense.beta = 2.0
    return config
