"""Every objective with every defense that takes part in training: ResNet-18 on Tiny ImageNet, linf 8/255.

python -m robustjax.train --config=configs/tiny_imagenet.py:at --workdir=runs/tiny_imagenet_at

Names after the colon are those of `cifar10.py`; learning rate, weight decay and epochs are the same for all. "test" is
its validation split, as the labels of its test images are not public. Cost: 8 times that of `cifar10.py`, of twice the
images with four times the pixels.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.cifar10()
    config.data.name = "tiny_imagenet"
    config_lib.apply_recipe(config, name, file="configs/tiny_imagenet.py", defenses=("", "cas", "cifs", "fsr", "sns"))
    config.optimizer.weight_decay = 5e-4
    return config
