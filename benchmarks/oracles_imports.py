"""Import single modules of large packages: the package's `__init__` and its imports do not run.

Each package on the way to a module becomes an empty module with the right `__path__`. What the
modules import from elsewhere and the answer functions never use becomes a placeholder.
"""

import importlib
import logging
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

SITE = Path(sysconfig.get_path("purelib"))


class Placeholder(Exception):  # noqa: N818  (evalscope derives an error from one)
    """Stands for a name that the answer functions never use."""


class Empty(ModuleType):
    """A module without code; unknown names are placeholders, its submodules are those on disk."""

    def __init__(self, name: str, **names: object):
        super().__init__(name)
        self.__path__ = [str(SITE.joinpath(*name.split(".")))]
        self.__dict__.update(names)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Placeholder,), {})


#: Packages on the way to the modules, and packages that these import and do not use.
EMPTY = (
    "evalscope",
    "evalscope.api",
    "evalscope.api.metric",
    "evalscope.metrics",
    "evalscope.metrics.math",
    "vlmeval",
    "vlmeval.smp.vlm",
    "vlmeval.utils",
    "vlmeval.dataset",
    "vlmeval.dataset.utils",
    "lmms_eval",
    "lmms_eval.tasks",
    "lmms_eval.tasks._task_utils",
    "lmms_eval.tasks.mmmu",
    "lmms_eval.verifiers",
    "lmms_eval.verifiers.openai",
    "pandas",
    "loguru",
    "sty",
    "huggingface_hub",
    "huggingface_hub.utils",
    "huggingface_hub.utils._cache_manager",
)


def put_empty_modules() -> None:
    """Register the empty modules."""
    for name in EMPTY:
        sys.modules[name] = Empty(name)
    sys.modules["vlmeval.smp"] = Empty("vlmeval.smp", get_logger=logging.getLogger)


def load(name: str) -> ModuleType:
    """A module by its full name, after `put_empty_modules`."""
    return importlib.import_module(name)
