"""Every objective with every defense on MNIST, linf 0.3, one small network with BatchNorm for all of them.

python -m robustjax.train --config=configs/mnist.py:at_cifs --workdir=runs/mnist_at_cifs

The name after the colon is an objective ("standard", "at", "trades", "mart") and, after an underscore, a defense that
takes part in training ("cas", "cifs", "fsr", "sns", "kwta") or nothing. `launch/reproduce.sh --scale=mnist` trains and
judges them.
"""

from robustjax import config as config_lib


def get_config(name: str = "at"):
    config = config_lib.base()
    config_lib.apply_recipe(config, name, file="configs/mnist.py", defenses=("", "cas", "cifs", "fsr", "sns", "kwta"))
    config.data.name = "mnist"
    config.data.validation_examples = 5000
    config.model.batch_norm = True
    config.attack.epsilon = 0.3
    config.attack.step_size = 0.075
    config.attack.num_steps = 10
    config.attack.warmup_epochs = 3.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.train.num_epochs = 12
    config.validation.batch_size = 1000
    if config.defense.name == "sns":
        config.defense.weight = 10.0  # as on the digits, where it was chosen on the validation split
    return config
