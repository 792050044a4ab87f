"""Adversarial training on scikit-learn's handwritten digits (8 x 8, real scans): the whole path in about a minute.

python -m robustjax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from robustjax import config as config_lib


def get_config():
    return config_lib.digits()
