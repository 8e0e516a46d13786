"""Training: arrays, batches, losses, fitting and export."""
