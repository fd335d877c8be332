"""The run folder on disk: what is written, where, and how it is read back. Needs no torch."""
