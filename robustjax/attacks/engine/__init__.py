"""What attacks share: runs in steps, the best point so far, batches that stay full, hyperplanes, verification."""
