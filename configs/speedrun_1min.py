"""Robust CIFAR-10, linf 8/255, in a minute on one H200-class GPU: N-FGSM with averaged weights.

python -m robustjax.train --config=configs/speedrun_1min.py --workdir=runs/speedrun_1min
python benchmarks/speedrun.py --config=configs/speedrun_1min.py --workdir=runs/speedrun_1min   (three seeds)

Budget: 5 forward passes of 1.11 GFLOP are 5.6 GFLOP an image, 0.27 PFLOP an epoch of 49,000, 8.2 PFLOP in 30 epochs:
33 s at 250 TFLOP/s, a minute at 136. Aim: 43.2 % AutoAttack, what fast adversarial training (Wong et al. 2020) reached
in minutes; N-FGSM (de Jorge et al. 2022, arXiv 2202.01181) does not collapse where that does. Not measured yet.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.speedrun()
    config.attack.name = "n_fgsm"
    config.train.num_epochs = 30
    config.optimizer.warmup_epochs = 12.0
    return config
