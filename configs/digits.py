"""Every objective with every defense on scikit-learn's handwritten digits; each trains in a minute on two CPU cores.

python -m robustjax.train --config=configs/digits.py:at_cifs --workdir=runs/digits_at_cifs

The name after the colon is an objective ("standard", "at", "trades", "mart") and, after an underscore, a defense
("cas", "cifs", "fsr", "sns", "kwta", "sap", "meansparse") or nothing. `launch/small_table.sh` trains and evaluates them
with "at".
"""

from robustjax import config as config_lib
from robustjax.types import InputError

OBJECTIVES = {"standard": "standard", "at": "adversarial", "trades": "trades", "mart": "mart"}
# Options that are not the defense's defaults. The weight of SNS is the best of 0.1, 1 and 10 on the validation split
# (PGD 79.0, 79.5 and 80.5 % of its 200 images, so they can hardly be told apart).
DEFENSES = {"": {}, "cas": {}, "cifs": {}, "fsr": {}, "sns": {"weight": 10.0}, "kwta": {}, "sap": {}, "meansparse": {}}


def get_config(name: str = "at"):
    objective, _, defense = name.partition("_")
    if objective not in OBJECTIVES or defense not in DEFENSES:
        names = f"{', '.join(OBJECTIVES)}, alone or followed by _ and {', '.join(filter(None, DEFENSES))}"
        raise InputError(f"configs/digits.py has {names}; got {name!r}")
    config = config_lib.digits()
    # With BatchNorm: behind CIFS's masks, which add up to 1 over the channels, a network without it does not learn.
    config.model.name = "wide_resnet"
    config.model.depth = 10
    config.model.width = 1
    config.attack.warmup_epochs = 10.0
    config.train.num_epochs = 50
    config.objective.name = OBJECTIVES[objective]
    if objective == "mart":
        config.objective.beta = 5.0
    config.defense.name = defense or None
    for option, value in DEFENSES[defense].items():
        config.defense[option] = value
    return config
