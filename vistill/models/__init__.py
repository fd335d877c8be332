"""Models: loading, family adapters, scoring. The only package that looks inside image tensors."""
