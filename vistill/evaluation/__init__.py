"""Accuracy, gaps without the image, and visual advantage of the student's responses."""
