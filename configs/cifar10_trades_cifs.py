"""Channel-wise Importance-based Feature Selection (Yan et al., ICML 2021, arXiv 2102.05311) on top of TRADES (Zhang et
al. 2019, arXiv 1901.08573): ResNet-18 on CIFAR-10, linf 8/255, beta 2, top-2 logits.

python -m robustjax.train --config=configs/cifar10_trades_cifs.py --workdir=runs/cifar10_trades_cifs

Cost: that of cifar10_trades.py and the guards' (benchmarks/RESULTS.md).
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.objective.name = "trades"
    config.objective.beta = 6.0
    config.defense.name = "cifs"
    config.defense.beta = 2.0
    return config
