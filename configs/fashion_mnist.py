"""Every objective with every defense that takes part in training: a small residual network on Fashion-MNIST, linf 0.1.

python -m robustjax.train --config=configs/fashion_mnist.py:at --workdir=runs/fashion_mnist_at

Names after the colon are those of `cifar10.py`. The network, WideResNet-10-1, has BatchNorm, which CIFS's masks need.
Cost: 0.43 GFLOP an image and epoch, 0.51 PFLOP in all: about an hour on two CPU cores, minutes on one GPU.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.base()
    config.data.name = "fashion_mnist"
    config.data.validation_examples = 1000
    config.data.flip = True
    config.model.name = "wide_resnet"
    config.model.depth = 10
    config.model.width = 1
    config_lib.apply_recipe(config, name, file="configs/fashion_mnist.py", defenses=("", "cas", "cifs", "fsr", "sns"))
    config.attack.epsilon = 0.1
    config.attack.step_size = 0.025
    config.attack.warmup_epochs = 2.0
    config.train.num_epochs = 20
    if config.objective.name == "mart":
        config.optimizer.learning_rate = 0.01
    return config
