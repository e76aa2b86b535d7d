"""Training loop, evaluation, checkpoints, run folders."""
