"""Studies and demonstrations on top of training and evaluation."""
