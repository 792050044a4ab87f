"""Fast adversarial training (Wong et al. 2020, arXiv 2001.03994) of ResNet-50 on ImageNet, linf 4/255.

python -m robustjax.train --config=configs/imagenet_resnet50_fast.py --workdir=runs/imagenet_resnet50_fast

The images are read from disk while the run trains. Tfds prepares them: `tfds build imagenet2012
--file_format=array_record`, where TensorFlow is installed and the original archives lie.

Cost: 41 GFLOP an image and epoch, 52 PFLOP an epoch, 1.6 EFLOP in all: hours on eight GPUs, if their hosts decode more
than a thousand images a second for each. Published for the paper's own schedule of three resolutions: 55.5 % clean,
30.3 % PGD-50.
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
    config.model.name = "resnet50"
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.model.dtype = "bfloat16"
    config.attack.name = "rs_fgsm"
    config.attack.epsilon = 4 / 255
    config.attack.step_size = 5 / 255
    config.objective.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.4  # 0.1 at 256
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 30
    config.train.batch_size = 1024
    config.validation.batch_size = 512
    return config
