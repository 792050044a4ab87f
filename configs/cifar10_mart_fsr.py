"""Feature Separation and Recalibration (Kim et al., CVPR 2023, arXiv 2303.13846) on top of MART (Wang et al. 2020):
ResNet-18 on CIFAR-10, linf 8/255, both weights 1, temperature 0.1.

python -m robustjax.train --config=configs/cifar10_mart_fsr.py --workdir=runs/cifar10_mart_fsr

Cost: that of cifar10_mart.py and the guards' (benchmarks/RESULTS.md).
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.objective.name = "mart"
    config.objective.beta = 5.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 3.5e-3
    config.defense.name = "fsr"
    config.train.num_epochs = 100
    return config
