"""Training: one compiled step of attack and update, the loop around it, and what it keeps."""
