"""Every objective with every defense that takes part in training: ResNet-18 on SVHN, linf 8/255.

python -m robustjax.train --config=configs/svhn.py:at --workdir=runs/svhn_at

Names after the colon are those of `cifar10.py`. House numbers are not flipped. The learning rate is 0.01 and epsilon
grows over five epochs: at 0.1 and full epsilon from the start, networks often predict one class for ever
(Andriushchenko and Flammarion 2020 warm up as well). Cost: 1.5 times that of `cifar10.py`.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.cifar10()
    config.data.name = "svhn_cropped"
    config.data.flip = False
    config_lib.apply_recipe(config, name, file="configs/svhn.py", defenses=("", "cas", "cifs", "fsr", "sns"))
    config.attack.step_size = 1 / 255
    config.attack.warmup_epochs = 5.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 5e-4
    return config
