"""Adversarial training of a vision transformer on ImageNet, linf 4/255, in the manner of Singh et al. (2023, arXiv
2303.01870).

python -m robustjax.train --config=configs/imagenet_vit.py --workdir=runs/imagenet_vit

Two steps of the attack, AdamW, label smoothing and averaged weights as theirs; the attack is PGD where theirs is APGD.
Their network begins with convolutions, from a naturally trained one, and is trained with heavier augmentation; all
three matter for robustness, so their figures are not to be expected. The images come as for imagenet_resnet50_fast.py.
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
