"""Every objective with every defense on CIFAR-10, linf 8/255, in 25 minutes of two CPU cores each.

python -m robustjax.train --config=configs/cifar10_small.py:at_cifs --workdir=runs/cifar10_small_at_cifs

The name after the colon is an objective ("standard", "at", "trades", "mart") and, after an underscore, a defense that
takes part in training ("cas", "cifs", "fsr", "sns", "kwta") or nothing. `launch/reproduce.sh --scale=cifar10` trains
and judges them. Learning rate, schedule and weight decay are the same for all.

Cost: PGD of two steps makes it seven forward passes an image; some 100 images/s a core, so that the five epochs of "at"
fit into 25 minutes of two cores, and those with a defense take longer by what it adds. `results/TABLE.md` has the pilot
by which network and schedule were chosen.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.cifar10()
    defenses = ("", "cas", "cifs", "fsr", "sns", "kwta")
    config_lib.apply_recipe(config, name, file="configs/cifar10_small.py", defenses=defenses)
    config.model.name = "wide_resnet"
    config.model.depth = 10
    config.model.width = 2
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.attack.num_steps = 2
    config.attack.step_size = 5 / 255
    config.optimizer.schedule = "cyclic"
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_epochs = 1.5
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.train.num_epochs = 5
    if config.defense.name == "sns":
        config.defense.weight = 10.0  # as on the digits, where it was chosen on the validation split
    return config
