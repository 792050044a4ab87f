"""Channel-wise Activation Suppressing (Bai et al., ICLR 2021) on top of adversarial training (Madry et al. 2018):
ResNet-18 on CIFAR-10, linf 8/255, beta 2.

python -m robustjax.train --config=configs/cifar10_at_cas.py --workdir=runs/cifar10_at_cas

Cost: that of cifar10_at.py and the guards' (benchmarks/RESULTS.md).

Published: 86.7 % clean and 47.1 % PGD-20 at the strongest attacker's weight of the heads; weaker weights flatter it.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.defense.name = "cas"
    config.defense.beta = 2.0
    return config
