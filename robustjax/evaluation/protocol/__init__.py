"""Attacks over a data set: what runs, where results are stored, and the records that say under which conditions."""
