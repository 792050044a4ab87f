"""How robust is this network really: attacks over a data set, and records that say under which conditions."""
