"""Per-token measurements of what a token owes to the image. They have no gradient."""
