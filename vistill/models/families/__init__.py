"""Families of models, one file each; `vistill/registry.py` lists them by the `model_type` of their configurations."""
