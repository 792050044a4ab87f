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
# The papers on CAS, CIFS, SNS, FSR and SAP argue with pictures of what happens inside a network. Here these are drawn
# for networks that train in seconds on 8 x 8 digits, each with the scalar that decides the claim. The networks are
# tiny and hardly trained, so look at the pictures rather than the figures. `python -m robustjax.analysis` draws the
# same for any run, and `docs/claims.md` has larger networks, trained with CAS and SNS as well.

# %%
import tempfile
from pathlib import Path

from absl import logging

from robustjax import analysis, config, runs

logging.set_verbosity(logging.ERROR)  # the library of checkpoints is talkative
folder = Path(tempfile.mkdtemp())


def train(folder_name, *, objective="adversarial", **defense):
    settings = config.digits()
    settings.model.batch_norm = True  # as in the papers' networks
    settings.train.num_epochs, settings.attack.warmup_epochs = 25, 10.0
    settings.attack.num_steps, settings.validation.every_epochs = 4, 25
    settings.objective.name = objective
    for option, value in defense.items():
        settings.defense[option] = value
    runs.train(settings, folder / folder_name)


train("AT")
# On what the classifier is given, 100 channels, of which the masks are 1 on average.
train("AT + CIFS", name="cifs", sites="dense", scale=100.0)
train("standard", objective="standard")
train("AT + FSR", name="fsr", width=8)

# %%
found = analysis.analyse([folder / name for name in ("AT", "AT + CIFS", "standard", "AT + FSR")], num_examples=200)


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
# Channels ordered by the classifier's weight of a class, the least robust one of AT: those behind the dotted line speak
# against it. Under attack they rise, and activation and weight go together less, in the standard network most of all.
#
# CIFS multiplies every channel by a mask, made for the two classes that a probe of its own finds likeliest: few of a
# hundred channels are left. Of a natural image the largest is of the class. Where an attack fools the probe too, and
# of this class it mostly does, the mask strengthens channels of the wrong class: the peaks behind the line. That is
# why adaptive attacks, which attack the probe, take back what CIFS gains under PGD (`docs/claims.md`).
#
# In the lower rows all classes, the least robust one first. The paper finds the over-activation worst in those, the red
# half. So it is in the three networks trained on adversarial images; of the standard one no class is robust, and its
# halves do not differ.

# %%
scalars("relevance", "rank_correlation_adversarial", "over_activation", "over_activation_gap")
found.figures["relevance"]

# %% [markdown]
# ## SNS: sensitivity
#
# The first figure shows how much each neuron changes under attack: more in the standard network than after adversarial
# training. The second is the accuracy under attack with the most sensitive tenth of a layer restored, against as many
# random neurons.

# %%
scalars("sensitivity", "relative_sensitivity")
scalars("restoration", "restoration_gap")
found.figures["sensitivity"]

# %%
found.figures["restoration"]

# %% [markdown]
# ## FSR: separation
#
# The accuracy of the head on the features that the mask keeps, on those that it drops, and on those after
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
# ## Checks of the attack
#
# As the ball grows, accuracy must fall to chance or below it; with more steps it must approach a limit. The second
# figure is the mean loss around the images, along the attack's direction and a random one: gradients are of use where
# it is smooth.

# %%
scalars("curves", "epsilon_half_at", "steps_last_loss")
found.figures["curves"]

# %%
found.figures["surface"]
