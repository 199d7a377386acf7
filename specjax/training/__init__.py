"""Training: losses, data, one train loop, checkpoints."""
