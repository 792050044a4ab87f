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
# # Train, evaluate, read the trust report
#
# From a config to a figure that can be trusted, on 8 x 8 digits. Everything that a command does is one call in Python.

# %%
import tempfile

import jax
from absl import logging

from robustjax import config, evaluation, runs

logging.set_verbosity(logging.ERROR)  # the library of checkpoints is talkative

# %% [markdown]
# ## Train
#
# A config holds every key of a run. This one is shortened to train in seconds; `config.digits()` as it is takes half a
# minute.

# %%
settings = config.digits()
settings.train.num_epochs = 20
settings.attack.warmup_epochs = 10.0
settings.attack.num_steps = 5
settings.validation.every_epochs = 10
workdir = tempfile.mkdtemp()
runs.train(settings, workdir)

# %% [markdown]
# ## Evaluate
#
# `runs.load` gives the network as a function, and `evaluate` an accuracy with its interval under each attack.

# %%
run = runs.load(workdir)
test = run.test_data(100)
images, labels = test.images.astype("float32") / 255, test.labels
result = evaluation.evaluate(
    run.logits_fn,
    jax.random.key(0),
    images,
    labels,
    threat=evaluation.Threat("linf", 0.2),
    attacks=("clean", "fgsm", "pgd20"),
)
result

# %% [markdown]
# Which classes suffer most, and which class they are mistaken for:

# %%
result.class_table()

# %% [markdown]
# ## Judge
#
# These accuracies are upper bounds. `judge` attacks with everything that it has, and looks for signs that attacks
# failed.

# %%
verdict = evaluation.judge(run.logits_fn, jax.random.key(0), images, labels, epsilon=0.2)
verdict

# %% [markdown]
# Each flag has a value, a threshold and an explanation. If none is raised, nothing is proven; one that is raised says
# what to look into.

# %%
for name, flag in verdict.flags.items():
    if flag.status in ("fail", "warn"):
        print(f"{flag.status:5} {name}: {flag.explanation}")
{status: sum(flag.status == status for flag in verdict.flags.values()) for status in ("pass", "warn", "fail", "na")}
