"""What a token owes to the image: named per-token measurements, without gradient."""
