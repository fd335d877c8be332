"""What the steered methods share: the teacher without the image, and the logged divergences."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from vistill.batch import LossTerm, ScoredBatch
from vistill.functional.divergences import reverse_kl
from vistill.functional.rows import Rule
from vistill.objectives.shared import STUDENT, TEACHER, apply_rule
from vistill.types import Pass, Reader, View

TEACHER_TEXT_ONLY: Final = Pass(Reader.TEACHER, View.TEXT_ONLY)


@torch.no_grad()
def monitored_kls(
    batch: ScoredBatch, blind: Pass, kl_to_steered: Rule, weights: Tensor, known: Sequence[LossTerm]
) -> tuple[LossTerm, ...]:
    """KL(p||q*) and KL(p_x||q_x) of every token (VGS Eq. 6 and 11), unless the loss has them."""
    rules = {
        "visual_kl": (STUDENT, kl_to_steered, (TEACHER, TEACHER_TEXT_ONLY, blind)),
        "language_kl": (blind, reverse_kl, (TEACHER_TEXT_ONLY,)),
    }
    missing = [name for name in rules if name not in {term.name for term in known}]
    values = {
        name: apply_rule(batch, *rules[name][:2], *rules[name][2], weights=weights)
        for name in missing
    }
    return tuple(LossTerm(name, values[name], weights, minimised=False) for name in missing)
