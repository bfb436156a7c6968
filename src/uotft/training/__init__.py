"""The training loop and everything it is given: streams, objectives, checkpoints, evaluation."""
