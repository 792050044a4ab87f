"""Fast adversarial training (Wong et al. 2020, arXiv 2001.03994) of PreActResNet-18 on CIFAR-10, linf 8/255.

python -m robustjax.train --config=configs/cifar10_fast.py --workdir=runs/cifar10_fast

One random-start FGSM step of 1.25 epsilon, a cyclic schedule over 15 epochs. `--config.attack.name=n_fgsm` is the
variant of de Jorge et al. (2022, arXiv 2202.01181), which is less prone to catastrophic overfitting.

Cost: 5.6 GFLOP an image and epoch, 4.1 PFLOP in all: minutes on one GPU. Published: 83.3 % clean, 43.2 % AutoAttack.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.model.name = "preact_resnet18"
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.attack.name = "rs_fgsm"
    config.attack.step_size = 10 / 255
    config.optimizer.schedule = "cyclic"
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_epochs = 6.0
    config.optimizer.weight_decay = 5e-4
    config.train.num_epochs = 15
    return config
