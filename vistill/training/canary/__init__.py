"""Before the first step and at every evaluation: stop the run if a reader ignores the image."""
