"""Every objective with every defense on CIFAR-10, linf 8/255, trained alike: ResNet-18, half of the papers' epochs.

python -m robustjax.train --config=configs/cifar10_full.py:at_cifs --workdir=runs/cifar10_full_at_cifs

The name after the colon is an objective ("standard", "at", "trades", "mart") and, after an underscore, a defense that
takes part in training ("cas", "cifs", "fsr", "sns", "kwta") or nothing. `launch/reproduce.sh --scale=full` trains and
judges them. `configs/cifar10.py` has what the papers set each by itself; here learning rate, schedule and weight decay
are the same for all.

Cost: "at" takes 1.25 PFLOP an epoch, 75 PFLOP in all; what the others add is in `cifar10.py`.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.cifar10()
    defenses = ("", "cas", "cifs", "fsr", "sns", "kwta")
    config_lib.apply_recipe(config, name, file="configs/cifar10_full.py", defenses=defenses)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.boundaries = (37.5, 45.0)
    config.train.num_epochs = 60
    if config.defense.name == "sns":
        config.defense.update({"weight": 1.0, "fraction": 0.1, "refresh_steps": 100})
    return config
