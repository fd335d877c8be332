"""What a run needs, computed from the shapes of its models before any weights are fetched."""
