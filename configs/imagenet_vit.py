"""Adversarial training of a vision transformer on ImageNet, linf 4/255, in the manner of Singh et al. (2023, arXiv
2303.01870).

python -m robustjax.train --config=configs/imagenet_vit.py --workdir=runs/imagenet_vit

Two steps of the attack, AdamW, label smoothing and averaged weights as theirs; the attack is PGD where theirs is APGD.
Their network begins with convolutions, from a naturally trained one, and is trained with heavier augmentation; all
three matter for robustness, so their figures are not to be expected. The images come as for imagenet_resnet50_fast.py.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.base()
    config.data.name = "imagenet2012"
    config.data.pipeline = "stream"
    config.data.image_size = 224
    config.data.random_resized_crop = True
    config.data.flip = True
    config.data.validation_examples = 5000
    config.model.name = "vit_s16"
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.model.dtype = "bfloat16"
    config.attack.epsilon = 4 / 255
    config.attack.step_size = 4 / 255
    config.attack.num_steps = 2
    config.objective.label_smoothing = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 10.0
    config.train.ema_decay = 0.9999
    config.train.num_epochs = 100
    config.train.batch_size = 1024
    config.validation.batch_size = 512
    return config
