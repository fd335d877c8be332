"""Families of models, one file each; `vistill/registry.py` lists them by `model_type`."""
