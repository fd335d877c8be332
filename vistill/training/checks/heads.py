"""Check of the heads: some methods add up hidden states of several readings before the head."""

from typing import TYPE_CHECKING

from vistill.objectives.merged_steering import nonlinear_head_error

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup


def check_heads(setup: "RunSetup") -> None:
    """C002 if the method adds up states before the head, and a head is not linear."""
    if not setup.objective.requirements.linear_heads:
        return
    models = setup.models
    if models.has_several_teachers:
        why = "states are added up before the head, and each of several teachers has its own"
        raise nonlinear_head_error("one teacher", why)
    readers = [vlm for vlm in (models.student, models.teacher) if vlm is not None]
    if not all(vlm.head(models.vocabulary).is_linear for vlm in readers):
        why = "states are added up before the head, which must be linear"
        raise nonlinear_head_error("heads without bias and softcap", why)
