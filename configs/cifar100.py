"""Every objective with every defense that takes part in training: ResNet-18 on CIFAR-100, linf 8/255.

python -m robustjax.train --config=configs/cifar100.py:at --workdir=runs/cifar100_at

Names after the colon are those of `cifar10.py`. Weight decay and epochs are the same for all; MART has a learning rate
of its own. Cost: that of `cifar10.py`.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.cifar10()
    config.data.name = "cifar100"
    config_lib.apply_recipe(config, name, file="configs/cifar100.py", defenses=("", "cas", "cifs", "fsr", "sns"))
    config.optimizer.weight_decay = 5e-4
    if config.objective.name == "mart":
        config.optimizer.learning_rate = 0.01
    return config
