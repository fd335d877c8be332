"""Families of models: one file each, one line here."""

from vistill.models.families.base import Family
from vistill.models.families.qwen3_vl import Qwen3VLFamily

FAMILIES: dict[str, type[Family]] = {"qwen3_vl": Qwen3VLFamily}
