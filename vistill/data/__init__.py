"""Prompts: JSONL with an image folder, hub data sets, procedural diagrams, answer checkers."""
