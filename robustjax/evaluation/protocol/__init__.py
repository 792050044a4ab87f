"""Attacks over a data set: how they are named, run and stored, and the records of their results.

``specs.py`` (``apgd:loss=dlr``), ``threats.py`` (``linf:8/255``), ``requirements.py`` (``autoattack>=0.5``) and
``sweeps.py`` read what a user writes. ``runner.py`` runs attacks and verifies their images, ``session.py`` and
``store.py`` resume a command that was stopped, and ``records.py``, ``folder.py``, ``tables.py``, ``card.py`` and
``pictures.py`` write the results.
"""
