"""Stochastic Activation Pruning (Dhillon et al., ICLR 2018, arXiv 1803.01442): a pre-activation ResNet-20, trained
without any defense on CIFAR-10, pruned after each of its 19 ReLUs when it is evaluated (SAP-100).

python -m robustjax.train --config=configs/cifar10_sap.py --workdir=runs/cifar10_sap
python -m robustjax.evaluate --workdir=runs/cifar10_sap --attacks=clean,fgsm,pgd20

Known not to be robust: Athalye et al. (2018, arXiv 1802.00420) leave 0 % at linf 8/255 by averaging gradients over
draws; Dhillon and Carlini's erratum (arXiv 2010.00071) also by one gradient that passes the pruning as it would the
identity. The threat is what `evaluate` uses; training sees clean images only.

Cost: 0.25 GFLOP an image and epoch, 2.4 PFLOP in all: minutes on one GPU.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.cifar10()
    config.model.name = "resnet20"
    config.objective.name = "standard"
    config.defense.name = "sap"
    config.defense.fraction = 1.0
    config.optimizer.boundaries = (100.0, 150.0)
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 200
    return config
