"""Training and evaluation: steps, optimisers, checkpoints, resumption, several processes."""
