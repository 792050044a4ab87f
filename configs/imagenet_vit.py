"""Adversarial training of a vision transformer on ImageNet, linf 4/255, in the manner of Singh et al. (2023, arXiv
2303.01870).

python -m robustjax.train --config=configs/imagenet_vit.py --workdir=runs/imagenet_vit

Two steps of the attack, learning rate and its warm-up, weight decay, label smoothing and averaged weights as theirs.
The attack is PGD from a random start where theirs is APGD from the image itself, and AdamW has optax's second beta of
0.999 where theirs is 0.95. Their network begins with convolutions, from a naturally trained one, and is trained with
heavier augmentation, for 300 epochs; all of that matters for robustness, so their figures are not to be expected. The
images come as for imagenet_resnet50_fast.py.

Cost: 65 GFLOP an image and epoch, 83 PFLOP an epoch, 8.3 EFLOP in all: hours on eight GPUs.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.imagenet()
    config.model.name = "vit_s16"
    config.attack.step_size = 4 / 255
    config.attack.num_steps = 2
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_epochs = 10.0
    config.train.ema_decay = 0.9999
    config.train.num_epochs = 100
    return config
