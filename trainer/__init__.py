"""Training alone: the loop and its step, checkpoints, resuming, run folders."""
