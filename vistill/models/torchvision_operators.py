"""Make torchvision importable next to a CPU build of torch.

torchvision's wheel on the package index is a CUDA build: its compiled operators do not load next to
a CPU build of torch, and the import fails when it describes two of them. Image processors use none
of them. So these two are declared, without an implementation, and the import succeeds.
"""

import importlib
import importlib.util
import sys

import torch

#: What torchvision describes at its import.
OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
#: The library of the declared operators. They exist as long as this object.
DECLARED: list[torch.library.Library] = []


def make_torchvision_importable() -> bool:
    """Import torchvision if it is installed. Return whether it can be used.

    Call it before the first import from transformers, which imports torchvision where it is
    installed and fails with it.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if DECLARED or "torchvision::nms" not in str(error):
            raise
    else:
        return True
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]  # what the failed import left
    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(name + SIGNATURE)
    DECLARED.append(library)
    importlib.import_module("torchvision")
    return True
