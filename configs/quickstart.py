"""Adversarial training on scikit-learn's handwritten digits (8 x 8, real scans): the whole path in about a minute.

python -m robustjax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.base()
    config.attack.epsilon = 0.2
    config.attack.step_size = 0.05
    config.attack.num_steps = 10
    config.attack.warmup_epochs = 20.0  # at full epsilon from the start, the small network learns nothing for a while
    config.train.num_epochs = 100
    config.train.batch_size = 64
    config.validation.every_epochs = 5
    return config
