"""Training: a compiled step of attack and update, and the loop around it with metrics and checkpoints."""
