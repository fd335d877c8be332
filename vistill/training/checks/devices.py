"""Which device a model goes to, and whether student and teacher share one."""

import torch

from vistill.errors import ConfigError


def choose_device(name: str) -> str:
    """Resolve a device name: `auto` takes a CUDA device if the machine has one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            "C002",
            f'"{name}" is no device',
            why="a device is auto, cpu, cuda, cuda:1 or mps",
            fix="student.device=auto teacher.device=auto",
        ) from error
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "C101",
            f"the recipe requests the device {name}, but torch {torch.__version__} finds none",
            why="torch is a CPU build, or the driver or the device is missing",
            fix="student.device=cpu teacher.device=cpu",
        )
    return name


def check_same_device(student: str, teacher: str) -> None:
    """C101 if student and teacher are on two devices: nothing moves states between them."""
    student_device, teacher_device = (
        "cuda:0" if name == "cuda" else name for name in (student, teacher)
    )
    if student_device != teacher_device:
        raise ConfigError(
            "C101",
            f"student.device is {student} and teacher.device {teacher}",
            why="a step compares both row by row, and does not move states between devices",
            fix="student.device=auto teacher.device=auto"
            "   and, if memory is short, train.offload_teacher=true",
        )
