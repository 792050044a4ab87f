"""What attacks share: the loop over steps, the best point so far, batches that stay full, verification of success."""
