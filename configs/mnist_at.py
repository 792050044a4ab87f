"""Adversarial training on MNIST, linf 0.3 (Madry et al. 2018), with the small network of Wong and Kolter.

python -m robustjax.train --config=configs/mnist_at.py --workdir=runs/mnist_at

Cost: see docs/measured.md for the measured time and accuracy on two CPU cores.
"""

from robustjax import config as config_lib


def get_config():
    return config_lib.mnist()
