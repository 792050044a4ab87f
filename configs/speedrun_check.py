"""The recipe of the speed-runs on a narrow network and 8,000 images, to see on two CPU cores that it trains.

python -m robustjax.train --config=configs/speedrun_check.py --workdir=runs/speedrun_check

Cost: 0.1 GFLOP an image, 8 TFLOP in all: a few minutes. N-FGSM, label smoothing, averaged weights and the cyclic
schedule are those of `speedrun_1min.py`; the batch is a quarter of its batch, and float32 what a CPU computes in.
"""

from robustjax import config as config_lib


def get_config():
    config = config_lib.speedrun()
    config.data.train_examples = 8000
    config.model.name = "wide_resnet"
    config.model.depth = 10
    config.model.width = 1
    config.model.dtype = "float32"
    config.attack.name = "n_fgsm"
    config.train.num_epochs = 8
    config.train.batch_size = 128
    config.train.ema_decay = 0.98
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_epochs = 3.0
    config.validation.every_epochs = 4
    return config
