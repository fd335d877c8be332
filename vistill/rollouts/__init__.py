"""Engines that generate K rollouts per prompt, and their keyed sampling noise."""

import vistill.models  # noqa: F401  before transformers: it makes torchvision importable
