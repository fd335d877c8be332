"""Models: loading, family adapters, scoring. The only package that looks inside image tensors."""

from vistill.models.torchvision_operators import make_torchvision_importable

make_torchvision_importable()
