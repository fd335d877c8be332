"""Matched runs and what is made of them: the demo, stages, the table of methods, the tiny models."""
