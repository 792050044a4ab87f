"""Feature Separation and Recalibration (Kim et al., CVPR 2023, arXiv 2303.13846) on top of adversarial training (Madry
et al. 2018): ResNet-18 on CIFAR-10, linf 8/255, both weights 1, temperature 0.1.

python -m robustjax.train --config=configs/cifar10_at_fsr.py --workdir=runs/cifar10_at_fsr

Cost: that of cifar10_at.py and the guards' (benchmarks/RESULTS.md).
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.defense.name = "fsr"
    config.optimizer.weight_decay = 5e-4
    config.train.num_epochs = 100
    return config
