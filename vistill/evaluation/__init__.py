"""Is the student right, and does it look? Accuracy, blind gaps, visual advantage of its own responses."""
