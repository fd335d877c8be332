"""Other programs that run benchmarks: folders that start them, and their results in our tables."""
