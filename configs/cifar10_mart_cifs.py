"""Channel-wise Importance-based Feature Selection (Yan et al., ICML 2021, arXiv 2102.05311) on top of MART (Wang et al.
2020): ResNet-18 on CIFAR-10, linf 8/255, beta 2, top-2 logits.

python -m robustjax.train --config=configs/cifar10_mart_cifs.py --workdir=runs/cifar10_mart_cifs

Cost: that of cifar10_mart.py and the guards' (benchmarks/RESULTS.md).
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.objective.name = "mart"
    config.objective.beta = 5.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 3.5e-3
    config.defense.name = "cifs"
    config.defense.beta = 2.0
    return config
