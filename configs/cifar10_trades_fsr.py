"""Feature Separation and Recalibration (Kim et al., CVPR 2023, arXiv 2303.13846) on top of TRADES (Zhang et al. 2019,
arXiv 1901.08573): ResNet-18 on CIFAR-10, linf 8/255, both weights 1, temperature 0.1.

python -m robustjax.train --config=configs/cifar10_trades_fsr.py --workdir=runs/cifar10_trades_fsr

Cost: that of cifar10_trades.py and the guards' (benchmarks/RESULTS.md).
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.objective.name = "trades"
    config.objective.beta = 6.0
    config.defense.name = "fsr"
    config.optimizer.weight_decay = 5e-4
    config.train.num_epochs = 100
    return config
