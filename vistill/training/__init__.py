"""The loop, the step, the optimizer, checkpoints and exact resume."""
