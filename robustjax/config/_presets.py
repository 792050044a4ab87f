"""Every key of a run, with its default and meaning, and the settings that several configs share."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from robustjax.types import Config


def base() -> Config:
    """PGD adversarial training of ``small_cnn`` on scikit-learn's handwritten digits."""
    config: Config = ConfigDict()
    config.seed = 0  # of initialisation, order, augmentation and attack; data splits do not depend on it

    config.init_from = config_dict.placeholder(str)  # workdir of a run from whose weights this one starts; None: random

    config.data = ConfigDict()
    config.data.name = "digits"  # "digits" (embedded), a prepared tfds data set, or the path of a folder of splits
    config.data.data_dir = config_dict.placeholder(str)  # of tfds data sets; None: TFDS_DATA_DIR or tfds's default
    config.data.validation_examples = 200  # held out from the training split, never from the test split
    config.data.train_examples = config_dict.placeholder(int)  # use only the first so many; None: all
    config.data.pipeline = "memory"  # "memory", on the devices, or "stream", read from disk while the run trains
    config.data.image_size = config_dict.placeholder(int)  # side to which images of any size are scaled and cropped
    config.data.random_resized_crop = False  # in training: of 8 to 100 % of the area (Szegedy et al. 2015); stream only
    config.data.crop_padding = 0  # pixels of zero padding before a random crop; 0: off
    config.data.flip = False  # random left-right flip
    config.data.cutout = 0  # side of a random square set to 0; 0: off
    config.data.cutmix = 0.0  # share of the images that get a box of another one (CutMix), in [0, 1]
    config.data.extra = config_dict.placeholder(str)  # extra images: an .npz, or "train" of a prepared tfds data set
    config.data.extra_ratio = 0.7  # share of each batch that is taken from the extra images

    config.model = ConfigDict()
    config.model.name = "small_cnn"  # one of robustjax.models.NAMES
    config.model.depth = config_dict.placeholder(int)  # (deepmind_)wide_resnet only: 6n + 4
    config.model.width = config_dict.placeholder(int)  # (deepmind_)wide_resnet only: widening factor
    config.model.batch_norm = config_dict.placeholder(bool)  # small_cnn only: BatchNorm after each convolution
    config.model.final_norm = config_dict.placeholder(bool)  # preact_resnet18 only: False as Wong et al. 2020
    config.model.classifier_widths = config_dict.placeholder(tuple)  # vgg16 only: dense layers before the linear one
    config.model.classifier_norm = config_dict.placeholder(bool)  # vgg16 only: BatchNorm in those layers
    config.model.mean = (0.0,)  # subtracted from pixels in [0, 1] by the first layer: one number, or one per channel
    config.model.std = (1.0,)  # divided by
    config.model.dtype = "float32"  # of the computation: "float32" or "bfloat16"; weights and logits stay float32
    config.model.remat = False  # compute the inside of blocks again for the gradient: less memory, more work

    # Options of defenses. None: the defense's own default. A key set for a defense without that option is refused.
    config.defense = ConfigDict()
    # One of robustjax.defenses.DEFENSES, or several with options of their own as in "cas+sap:fraction=0.5"; None: none.
    config.defense.name = config_dict.placeholder(str)
    # Where it guards: sites of the network, or groups such as "stage3", separated by commas; None: where published.
    # Of sns the layers that it compares.
    config.defense.sites = config_dict.placeholder(str)
    config.defense.alpha = config_dict.placeholder(float)  # meansparse: half the band's width in standard deviations
    config.defense.beta = config_dict.placeholder(float)  # cas, cifs: weight of the heads, in training and its attack
    config.defense.attack_beta = config_dict.placeholder(float)  # cas, cifs: of the attack alone; None: beta
    config.defense.top_k = config_dict.placeholder(int)  # cifs: classes whose logits make a channel relevant
    config.defense.importance = config_dict.placeholder(str)  # cifs: "softmax" (with BatchNorm), "sigmoid", "softplus"
    config.defense.scale = config_dict.placeholder(float)  # cifs: factor of the mask
    config.defense.class_mix = config_dict.placeholder(float)  # cifs: first class's share of a mean of masks by class
    config.defense.hidden = config_dict.placeholder(int)  # cifs: width of the probes' hidden layer
    config.defense.temperature = config_dict.placeholder(float)  # fsr: of the mask; cifs: of its importance
    config.defense.gumbel_noise = config_dict.placeholder(bool)  # fsr: noise on the mask in training
    config.defense.hard_mask = config_dict.placeholder(bool)  # fsr: whether the mask is 0 or 1
    config.defense.parts = config_dict.placeholder(str)  # fsr: "both", "separation" or "recalibration"
    config.defense.separation_weight = config_dict.placeholder(float)  # fsr: of that loss
    config.defense.recalibration_weight = config_dict.placeholder(float)  # fsr: of that loss
    config.defense.width = config_dict.placeholder(int)  # fsr: channels of its two networks
    config.defense.fraction = config_dict.placeholder(float)  # shares: kwta: kept; sap: drawn; sns: stabilized
    config.defense.by_magnitude = config_dict.placeholder(bool)  # kwta: keep the largest in absolute value
    config.defense.sampler = config_dict.placeholder(str)  # sap: "multinomial" or "bernoulli"
    config.defense.rate = config_dict.placeholder(float)  # dropout: share dropped
    config.defense.deviation = config_dict.placeholder(float)  # noise: standard deviation
    config.defense.relative = config_dict.placeholder(bool)  # noise: in proportion to the activation
    config.defense.in_training = config_dict.placeholder(bool)  # dropout, noise: in training too, not at inference only
    config.defense.weight = config_dict.placeholder(float)  # sns: of the sensitive neurons' movement
    config.defense.norm = config_dict.placeholder(str)  # sns: of a movement, "l1", "l2" or "linf"
    config.defense.refresh_steps = config_dict.placeholder(int)  # sns: updates between selections

    # The inner maximisation of training; its epsilon and norm are also the threat evaluated.
    config.attack = ConfigDict()
    # "pgd", "fgsm", "rs_fgsm" (Wong 2020), "n_fgsm" (de Jorge 2022), "friendly" (pgd that stops early; Zhang 2020),
    # "bernoulli_fgsm" (NuAT's; Sriramanan 2021) or "fgsm_pgi" (from where the last epoch ended; Jia 2022)
    config.attack.name = "pgd"
    config.attack.norm = "linf"  # "linf", "l2" or "l1"
    config.attack.epsilon = 0.2  # radius in units of pixels in [0, 1]
    config.attack.step_size = 0.05  # same units; rs_fgsm: usually 1.25 epsilon; unused by (n_, bernoulli_)fgsm
    config.attack.num_steps = 10  # pgd and friendly
    config.attack.tau = 0  # friendly only: further steps once an example is misclassified
    config.attack.random_start = True  # pgd and friendly; TRADES and MART always start from x + 0.001 N(0, 1)
    config.attack.warmup_epochs = 0.0  # epochs over which epsilon and step_size grow linearly from 0

    config.objective = ConfigDict()
    config.objective.name = "adversarial"  # "standard", "adversarial" (Madry 2018), "trades", "mart", "nuat" or "pgi"
    config.objective.beta = 6.0  # weight of the robust term of trades (6), mart (5), nuat (4.5) and pgi (10)
    config.objective.label_smoothing = 0.0  # share of a label spread over all classes, in [0, 1)
    config.objective.natural_share = 0.0  # share of each batch whose adversarial images are left natural, in [0, 1)
    config.objective.awp_gamma = 0.0  # of adversarial weight perturbation (Wu 2020: 0.01, with trades 0.005); 0: off
    config.objective.awp_from_epoch = 0.0  # the first epoch in which weights are perturbed
    config.objective.gradalign = 0.0  # weight of gradient alignment (Andriushchenko 2020: 0.2); 0: off

    config.batch_norm = ConfigDict()  # which statistics BatchNorm uses
    config.batch_norm.devices = "global"  # of the batch over all devices, or "per_device": of each one's part
    config.batch_norm.attack = "running"  # in the inner maximisation: "running" (inference mode) or "batch"
    config.batch_norm.training = "batch"  # in the update: "batch" or "running" (frozen, for fine-tuning)

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # "sgd", "adam", "adamw", "nadamw", "rmsprop", "lamb" or "lion", as optax has them
    config.optimizer.learning_rate = 0.1  # peak
    config.optimizer.schedule = "cosine"  # "constant", "piecewise", "cosine" or "cyclic" (linear up, then down to 0)
    config.optimizer.boundaries = (75.0, 90.0)  # piecewise only: epochs at which the rate is multiplied by factor
    config.optimizer.factor = 0.1  # piecewise only
    config.optimizer.warmup_epochs = 0.0  # linear from 0 (cyclic: where the peak is)
    config.optimizer.momentum = 0.9  # sgd and rmsprop only
    config.optimizer.nesterov = False  # sgd and rmsprop only
    config.optimizer.weight_decay = 5e-4  # sgd, adam, rmsprop: added to the gradient; the others: decoupled
    config.optimizer.decay_norms_and_biases = False  # apply weight_decay to BatchNorm and biases too

    config.train = ConfigDict()
    config.train.num_epochs = 30
    config.train.batch_size = 128  # over all devices
    config.train.accumulation = 1  # micro-batches of a batch, to save memory; BatchNorm sees each separately
    config.train.ema_decay = 0.0  # of a moving average of the weights (EMA), which is then evaluated; 0: off
    config.train.log_every_steps = 100  # steps between lines of metrics.jsonl
    config.train.keep_checkpoints = 2  # newest ones kept, besides the best by robust validation accuracy
    config.train.on_nonfinite = "stop"  # or "halve": back to the last validated checkpoint at half the learning rate

    config.validation = ConfigDict()  # clean, FGSM and PGD accuracy on the validation split, during training
    config.validation.every_epochs = 1  # also how often a checkpoint is written
    config.validation.batch_size = 500
    config.validation.num_steps = 10  # of PGD with step epsilon / 4 and a random start
    return config.lock()


def digits() -> Config:
    """A small network on 8 x 8 scans of handwritten digits under linf 0.2: trains in half a minute on two cores."""
    config = base()
    config.attack.epsilon = 0.2
    config.attack.step_size = 0.05
    config.attack.num_steps = 10
    config.attack.warmup_epochs = 20.0  # at full epsilon from the start, the small network learns nothing for a while
    config.train.num_epochs = 100
    config.train.batch_size = 64
    config.validation.every_epochs = 5
    return config


def mnist() -> Config:
    """MNIST under linf 0.3, the threat of Madry et al. (2018), with a small network."""
    config = base()
    config.data.name = "mnist"
    config.data.validation_examples = 5000
    config.attack.epsilon = 0.3
    config.attack.step_size = 0.075
    config.attack.num_steps = 10
    config.attack.warmup_epochs = 3.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.train.num_epochs = 15
    config.validation.batch_size = 1000
    return config


def cifar10() -> Config:
    """ResNet-18 on CIFAR-10 under linf 8/255, in the setting that the CAS, CIFS and TRADES papers share."""
    config = base()
    config.data.name = "cifar10"
    config.data.validation_examples = 1000
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "resnet18"
    config.attack.epsilon = 8 / 255
    config.attack.step_size = 2 / 255
    config.attack.num_steps = 10
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries = (75.0, 90.0)
    config.optimizer.weight_decay = 2e-4
    config.train.num_epochs = 120
    return config


def imagenet() -> Config:
    """ImageNet at 224 x 224, read from disk, under linf 4/255, in bfloat16 and batches of 1,024."""
    config = base()
    config.data.name = "imagenet2012"
    config.data.pipeline = "stream"
    config.data.image_size = 224
    config.data.random_resized_crop = True
    config.data.flip = True
    config.data.validation_examples = 5000
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.model.dtype = "bfloat16"
    config.attack.epsilon = 4 / 255
    config.objective.label_smoothing = 0.1
    config.optimizer.schedule = "cosine"
    config.train.batch_size = 1024
    config.validation.batch_size = 512
    return config


def speedrun() -> Config:
    """Robust CIFAR-10 in minutes on one GPU: bfloat16, large batches, one cycle, averaged weights."""
    config = cifar10()
    config.model.name = "preact_resnet18"
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.model.dtype = "bfloat16"
    config.objective.label_smoothing = 0.1
    config.optimizer.schedule = "cyclic"
    config.optimizer.learning_rate = 0.4
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.train.batch_size = 512
    config.train.ema_decay = 0.995  # over about two epochs
    config.validation.every_epochs = 10
    return config
