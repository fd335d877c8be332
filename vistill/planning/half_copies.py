"""Bytes of copies in bf16: of the student for writing, and of its head for the loss."""

from vistill.planning.activations import FLOAT, HALF
from vistill.planning.lora import BITS, adapted_parts
from vistill.planning.student_bytes import StudentBytes


def writes_in_half(student: StudentBytes) -> bool:
    """Whether the student writes with a copy in bf16 (`rollout.weights`)."""
    rollout, precision = student.recipe.rollout, student.recipe.student.precision
    is_wanted = rollout.weights == "bf16" or (rollout.weights == "auto" and student.step_is_half)
    can_copy = rollout.engine == "shared" and precision not in BITS
    return is_wanted and can_copy and not student.is_half


def writing_copy(student: StudentBytes) -> float:
    """The copy of the student while it writes.

    Frozen weights that are bf16 already are shared; adapters are merged into weights of their own.
    """
    if not writes_in_half(student):
        return 0.0
    parameters, lora = student.shape.parameters, student.lora
    if lora is None or student.size == FLOAT:
        return float(HALF * parameters.total)
    parts = adapted_parts(lora)
    vision = sum(getattr(parameters, part) for part in parts - {"language"})
    return float(HALF * (vision + student.shape.linear_weights * ("language" in parts)))


def rounded_head(student: StudentBytes) -> float:
    """The student's head in bf16, with which the loss multiplies (`train.head_precision`)."""
    setting = student.recipe.train.head_precision
    is_rounded = setting == "bf16" or (setting == "auto" and student.step_is_half)
    return float(HALF * student.shape.head_weights if is_rounded and student.size == FLOAT else 0)
