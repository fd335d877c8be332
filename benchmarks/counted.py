"""Rows of `make bench` that count bytes: a LoRA step over full training, without any weights."""

from vistill.planning.memory import GIB
from vistill.studies.plan import PlanOptions, plan_stages

RECIPE = "va_opd_qwen3vl_8b_to_2b.yaml"
#: What a student needs on the GPU in a step, the teacher apart.
OF_THE_STUDENT = ("weights", "gradients", "moments", "held activations", "weight copies")


def counted_rows(row):
    """Bytes of the student while it learns: one prompt and one response of full length."""
    full = student_bytes()
    rows = []
    for name, targets in (("", "language"), ("_with_vision", "language,vision")):
        lora = student_bytes("student.train=lora", f"student.lora.targets=[{targets}]")
        rows.append(
            row(
                f"lora_step_over_full_bytes{name}",
                lora / full,
                "ratio",
                f"limit: 0.45; counted, student of 2.1 B, rank 16 on {targets}: weights, gradients,"
                f" moments, held activations; full training {full / GIB:.1f} GiB",
            )
        )
    return rows


def student_bytes(*words):
    """Counted bytes of the student in the backward passes."""
    (plan,) = plan_stages(RECIPE, ["train.micro_batch=1", *words], PlanOptions()).values()
    kinds = plan.memory.learn().kinds
    return sum(kinds[kind] for kind in OF_THE_STUDENT)
