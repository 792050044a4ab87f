# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The five papers in pictures
#
# CAS, CIFS, SNS, FSR and SAP argue with pictures of what happens inside a network. Here they are drawn of networks
# that train in seconds on 8 x 8 digits, each with the scalar that decides the claim. The networks are tiny and
# hardly trained, so read the pictures and not the figures. `python -m robustjax.analysis` draws the same of any run:
# of networks that were trained with CIFS, CAS or SNS, which takes a minute or two each, in `docs/read_the_figures.md`.

# %%
import tempfile
from pathlib import Path

from absl import logging

from robustjax import analysis, config, runs

logging.set_verbosity(logging.ERROR)  # the library of checkpoints is talkative
folder = Path(tempfile.mkdtemp())


def train(folder_name, *, objective="adversarial", **defense):
    settings = config.digits()
    settings.train.num_epochs, settings.attack.warmup_epochs = 25, 10.0
    settings.attack.num_steps, settings.validation.every_epochs = 4, 25
    settings.objective.name = objective
    for option, value in defense.items():
        settings.defense[option] = value
    runs.train(settings, folder / folder_name)


train("standard", objective="standard")
train("AT")
train("AT + FSR", name="fsr", width=8)

# %%
found = analysis.analyse([folder / name for name in ("AT", "standard", "AT + FSR")], num_examples=200)


def scalars(figure, *names):
    for network, values in found.estimates[figure].items():
        for name in names:
            print(f"{network:10} {name:28} {values[name]}")


# %% [markdown]
# ## CAS: channels
#
# The paper finds that attacks activate channels more strongly than natural images do (a ratio above 1) and more
# uniformly. On these digits the ratio is below 1: attacks weaken what is strong, and wake channels on the right, which
# natural images of the class hardly use. That second part is what the picture shows in every network.

# %%
scalars("channels", "magnitude_ratio", "l1_gap")
found.figures["channels"]

# %% [markdown]
# ## CIFS: relevance
#
# What CIFS is made against, in networks without it. Channels ordered by the classifier's weight of the class. Under
# attack those on the right, which speak against it, rise, and the correlation of weight and activation falls. The paper
# adds that it is worst in the classes that are least robust: the lower row, where points to the left should lie higher.

# %%
scalars("relevance", "rank_correlation_natural", "rank_correlation_adversarial", "over_activation_gap")
found.figures["relevance"]

# %% [markdown]
# ## SNS: sensitivity
#
# How far each neuron moves under attack: further in the standard network than after adversarial training. And what it
# is worth to hold the most sensitive tenth of a layer still, against as many random ones.

# %%
scalars("sensitivity", "relative_sensitivity")
scalars("restoration", "restoration_gap")
found.figures["sensitivity"]

# %%
found.figures["restoration"]

# %% [markdown]
# ## FSR: separation
#
# What the head reads from the features that the mask keeps, from those that it drops, and from those after
# recalibration.

# %%
scalars("separation", "adversarial_robust_gap", "adversarial_recalibration_gain")
found.figures["separation"]

# %% [markdown]
# ## SAP: calibration
#
# Confidence against accuracy, dense and pruned at random, on images attacked by FGSM.

# %%
found.figures["calibration"]

# %% [markdown]
# ## What all of them share
#
# Accuracy must fall to chance, or below it, as the ball grows, and to a limit as the steps do.

# %%
scalars("curves", "epsilon_half_at", "steps_last_loss")
found.figures["curves"]

# %%
found.figures["surface"]
