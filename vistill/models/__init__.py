"""Models: loading, family adapters, scoring. The only room that looks inside image tensors."""
