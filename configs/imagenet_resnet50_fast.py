"""Fast adversarial training (Wong et al. 2020, arXiv 2001.03994) of ResNet-50 on ImageNet, linf 4/255.

python -m robustjax.train --config=configs/imagenet_resnet50_fast.py --workdir=runs/imagenet_resnet50_fast

The images are read from disk while the run trains. Tfds prepares them: `tfds build imagenet2012
--file_format=array_record`, where TensorFlow is installed and the original archives lie.

Cost: 41 GFLOP an image and epoch, 52 PFLOP an epoch, 1.6 EFLOP in all: hours on eight GPUs, if their hosts decode more
than a thousand images a second for each. Published for the paper's own schedule, 15 epochs at three resolutions without
label smoothing: 55.5 % clean, 30.3 % PGD-50.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.imagenet()
    config.model.name = "resnet50"
    config.attack.name = "rs_fgsm"
    config.attack.step_size = 5 / 255
    config.optimizer.learning_rate = 0.4  # 0.1 at 256
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 30
    return config
