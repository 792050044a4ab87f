"""Channel-wise Importance-based Feature Selection (Yan et al., ICML 2021, arXiv 2102.05311) on top of adversarial
training (Madry et al. 2018): ResNet-18 on CIFAR-10, linf 8/255, beta 2, top-2 logits.

python -m robustjax.train --config=configs/cifar10_at_cifs.py --workdir=runs/cifar10_at_cifs

Cost: that of cifar10_at.py and the guards' (benchmarks/RESULTS.md).

Published (last checkpoint): 83.9 % clean, 51.2 % PGD-20 and 48.8 % PGD-100 with the mask detached; APGD and Square then
leave 46.2 %.
The paper starts from a naturally trained network: train one with `--config.objective.name=standard`, then add
`--config.init_from=DIR` here.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.defense.name = "cifs"
    config.defense.beta = 2.0
    return config
