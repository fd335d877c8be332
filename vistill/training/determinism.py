"""`train.deterministic`: kernels that give the same bits again, or an error.

On a CUDA device torch's strict mode is on: an operator without a deterministic kernel raises.
cuBLAS needs a fixed workspace, which it takes from an environment variable when CUDA starts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vistill.errors import ConfigError
from vistill.runtime import CUBLAS, CUBLAS_FIXED, cublas_problem


@contextmanager
def deterministic_kernels(enabled: bool, device: torch.device) -> Iterator[None]:
    """Use deterministic kernels inside the block, then restore the setting of the process.

    Raises:
        ConfigError: E304, CUDA started without a fixed workspace of cuBLAS, or an operator has no
            deterministic kernel.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    is_strict = enabled and device.type == "cuda"
    if is_strict:
        check_workspace()
    if enabled:
        torch.use_deterministic_algorithms(True, warn_only=not is_strict)
    try:
        yield
    except RuntimeError as error:
        if is_strict and "deterministic" in str(error):
            raise no_kernel_error(error) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def check_workspace() -> None:
    """Raise E304 unless cuBLAS has a workspace of fixed size."""
    problem = cublas_problem()
    if problem is None:
        return
    raise ConfigError(
        "E304",
        problem,
        where="train.deterministic=true",
        why="without a workspace of fixed size cuBLAS may add in another order the next time",
        fix=f"export {CUBLAS}={CUBLAS_FIXED[0]}",
        note="then start Python again; vistill sets it where it loads models before CUDA starts",
    )


def no_kernel_error(error: RuntimeError) -> ConfigError:
    """E304 for an operator without a deterministic kernel."""
    return ConfigError(
        "E304",
        "an operator has no deterministic kernel on this GPU",
        where="train.deterministic=true",
        why=" ".join(str(error).split())[:300],
        fix="train.deterministic=false run=NEW",
    )
