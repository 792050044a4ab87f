"""Attacks over a data set: what runs, where results are stored, and the records that say under which conditions.

What a user writes is read by ``specs.py`` (``apgd:loss=dlr``), ``threats.py`` (``linf:8/255``), ``requirements.py``
(``autoattack>=0.5``) and ``sweeps.py``. ``runner.py`` runs and verifies, ``session.py`` and ``store.py`` go on where a
command was stopped, and ``records.py``, ``folder.py``, ``tables.py``, ``card.py`` and ``pictures.py`` write it down.
"""
