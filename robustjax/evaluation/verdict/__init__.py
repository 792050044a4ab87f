"""Whether a network is as robust as it looks: adaptive attacks, red flags, and the trust report.

``_judge.py`` runs it from start to end. Its attacks are in ``batteries.py`` and, through derivatives that the network
hides, in ``relaxations.py``; ``active.py`` plants examples for them to find. What they are given is in ``goals.py`` and
``hints.py``, how long they last in ``budgets.py``, how they are run and decided in ``trial.py`` and ``examples.py``.
A flag and its words are written where it is decided, in ``red_flags.py`` and ``comparisons.py``, of what
``diagnostics.py`` measures; the verdict's sentence and the pages in ``trust.py``.
"""
