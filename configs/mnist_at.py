"""Adversarial training on MNIST, linf 0.3 (Madry et al. 2018), with the small network of Wong and Kolter.

python -m robustjax.train --config=configs/mnist_at.py --workdir=runs/mnist_at

Cost: see docs/measured.md for the measured time and accuracy on two CPU cores.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.base()
    config.data.name = "mnist"
    config.data.validation_examples = 5000
    config.attack.epsilon = 0.3
    config.attack.step_size = 0.075
    config.attack.num_steps = 10
    config.attack.warmup_epochs = 3.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.train.num_epochs = 15
    config.validation.batch_size = 1000
    return config
