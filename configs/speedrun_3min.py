"""Robust CIFAR-10, linf 8/255, in three minutes on one H200-class GPU: PGD of three steps with averaged weights.

python -m robustjax.train --config=configs/speedrun_3min.py --workdir=runs/speedrun_3min
python benchmarks/speedrun.py --config=configs/speedrun_3min.py --workdir=runs/speedrun_3min   (three seeds)

Budget: 2 * 3 + 3 forward passes of 1.11 GFLOP are 10.0 GFLOP an image, 0.49 PFLOP an epoch of 49,000, 24.5 PFLOP in 50
epochs: 98 s at 250 TFLOP/s, three minutes at 136. Aim: 47.8 % AutoAttack. Not measured yet.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.speedrun()
    config.attack.num_steps = 3
    config.attack.step_size = 4 / 255
    config.train.num_epochs = 50
    config.optimizer.warmup_epochs = 20.0
    return config
