"""Every objective with every defense that takes part in training: ResNet-18 on CIFAR-10, linf 8/255.

python -m robustjax.train --config=configs/cifar10.py:trades_fsr --workdir=runs/cifar10_trades_fsr

The name after the colon is an objective ("standard", "at" of Madry et al. 2018, "trades" of Zhang et al. 2019 with beta
6, "mart" of Wang et al. 2020 with beta 5) and, after an underscore, a defense or nothing:

- "cas": Channel-wise Activation Suppressing (Bai et al., ICLR 2021), beta 2. Published with "at": 86.7 % clean, 47.1 %
  PGD-20 at the strongest attacker's weight of the heads; weaker weights flatter it.
- "cifs": Channel-wise Importance-based Feature Selection (Yan et al., ICML 2021, arXiv 2102.05311), beta 2, top-2
  logits. Published with "at" (last checkpoint): 83.9 % clean, 51.2 % PGD-20, 48.8 % PGD-100 with the mask detached;
  APGD and Square then leave 46.2 %. The paper starts from a naturally trained network: train one with
  `:standard_cifs`, then add `--config.init_from=DIR`.
- "fsr": Feature Separation and Recalibration (Kim et al., CVPR 2023, arXiv 2303.13846), both weights 1, temperature
  0.1, 100 epochs.
- "sns": Sensitive Neuron Stabilizing, SNS-style (Zhang, Liu et al. 2021, arXiv 1909.06978). The paper's weight, layers
  and schedule are not public: here every site counts, a tenth of its channels are held still, selected anew every 100
  updates, with weight 1, which was not tuned on CIFAR-10.

Cost: "at" takes 25.5 GFLOP an image and epoch, 150 PFLOP in all: hours on one GPU. "trades" takes 17 % more, "mart" and
"sns" 13 %, as they pass natural images as well, and "fsr" 4 % more an epoch.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.cifar10()
    config_lib.apply_recipe(config, name, file="configs/cifar10.py", defenses=("", "cas", "cifs", "fsr", "sns"))
    if config.objective.name == "mart":
        config.optimizer.learning_rate = 0.01
        config.optimizer.weight_decay = 3.5e-3
    if config.defense.name in ("cas", "cifs"):
        config.defense.beta = 2.0
    if config.defense.name == "sns":
        config.defense.update({"weight": 1.0, "fraction": 0.1, "refresh_steps": 100})
    if config.defense.name == "fsr":
        config.train.num_epochs = 100
        if config.objective.name != "mart":
            config.optimizer.weight_decay = 5e-4
    return config
