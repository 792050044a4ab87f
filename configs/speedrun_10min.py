"""Robust CIFAR-10, linf 8/255, in ten minutes on one H200-class GPU: PGD of three steps on a wide network.

python -m robustjax.train --config=configs/speedrun_10min.py --workdir=runs/speedrun_10min
python benchmarks/speedrun.py --config=configs/speedrun_10min.py --workdir=runs/speedrun_10min   (three seeds)

Budget: 2 * 3 + 3 forward passes of 6.7 GFLOP (WideResNet-28-8) are 60 GFLOP an image, 3.0 PFLOP an epoch of
49,000, 83 PFLOP in 28 epochs: 331 s at 250 TFLOP/s, ten minutes at 138. Aim: 50.5 % AutoAttack, which ResNet-18 needs
PGD-10 and 100 epochs (125 PFLOP) for. Not measured yet.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.speedrun()
    config.model.name = "wide_resnet"
    config.model.depth = 28
    config.model.width = 8
    config.attack.num_steps = 3
    config.attack.step_size = 4 / 255
    config.train.num_epochs = 28
    config.optimizer.warmup_epochs = 11.0
    return config
