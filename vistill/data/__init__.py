"""Prompts in: JSONL with an image folder, data sets from the hub, procedural diagrams, answer checkers."""
