"""What a run shows: the live line, its time left, the summary at the end. Needs no torch."""
