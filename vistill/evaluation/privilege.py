"""Do visual thoughts help the untrained model? The question behind the gate of Visual-OPSD (methods 3.6, item 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from vistill.data.math_judge import MathJudge
from vistill.evaluation.answering import Answered, Answering, accuracy_by_question
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean
from vistill.functional.divergences import forward_kl
from vistill.functional.rows import States, per_row
from vistill.functional.segments import segment_mean
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, score
from vistill.rollouts.checked_engine import empty_response_error, keep_awake
from vistill.rollouts.engine import RolloutEngine
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view

#: Responses read together.
GROUPS_PER_CALL = 64


@dataclass(frozen=True)
class Privilege:
    """What a model gains from seeing visual thoughts."""

    generation_gap: float
    """Mean over responses of `K_gen = KL(p(.|privileged) || p(.|picture))` a token, on the model's own responses."""
    generation_gap_error: float
    """Standard error of that mean."""
    accuracy: float
    """Greedy accuracy on the picture alone."""
    privileged_accuracy: float
    """Greedy accuracy with the thoughts."""
    rows: int

    def to_dict(self) -> dict[str, float]:
        """For `gate.json`."""
        return asdict(self)

    def passes(self) -> bool:
        """The gap is clearly above 0, and the thoughts make the model more accurate."""
        clear = self.generation_gap - 2 * self.generation_gap_error > 0
        return clear and self.privileged_accuracy > self.accuracy


def measure_privilege(
    vlm: VLM,
    prompts: Sequence[Prompt],
    view: View,
    settings: EvalSettings,
    context: ViewContext,
    engine: RolloutEngine,
) -> Privilege:
    """Greedy accuracy with and without thoughts, and the generation gap on responses sampled without them.

    Args:
        vlm: the model in both roles.
        prompts: rows with answers, pictures and thoughts.
        view: what the teacher will see: `privileged`, or one of its controls.
        settings: how answers are judged.
        context: the parameters of the views.
        engine: writes for the model.
    """
    with MathJudge() as math, keep_awake(engine):
        answering = Answering(vlm, settings, math, engine, context)
        plain = accuracy_by_question(answering.answer(prompts, View.FULL, "greedy"))
        told = accuracy_by_question(answering.answer(prompts, view, "greedy"))
        sampled = [a for a in answering.answer(prompts, View.FULL) if a.rollout.ids]
        contexts = answering.contexts(prompts, view)
    if not sampled:
        raise empty_response_error(
            f"every response to {len(prompts)} prompts is empty", [p.id for p in prompts]
        )
    parts = [sampled[i : i + GROUPS_PER_CALL] for i in range(0, len(sampled), GROUPS_PER_CALL)]
    gaps = torch.cat([generation_gaps(vlm, part, view, contexts) for part in parts])
    error = float(gaps.std() / len(gaps) ** 0.5) if len(gaps) > 1 else 0.0
    return Privilege(float(gaps.mean()), error, mean(plain), mean(told), len(prompts))


@torch.no_grad()
def generation_gaps(
    vlm: VLM, answered: Sequence[Answered], view: View, contexts: Mapping[str, ViewContext]
) -> torch.Tensor:
    """Mean `K_gen` of each response, whole vocabulary, the same tokens on both sides (Eq. 4)."""
    ids = torch.tensor([i for a in answered for i in a.rollout.ids], device=vlm.device)
    lengths = torch.tensor([len(a.rollout.ids) for a in answered])
    rollout = torch.repeat_interleave(torch.arange(len(answered)), lengths)
    read = []
    for seen in (View.FULL, view):
        groups = [
            EncodedGroup(
                vlm.encode(apply_view(a.prompt, seen, contexts[a.prompt.id])), (a.rollout.ids,)
            )
            for a in answered
        ]
        read.append(score(vlm, groups, ids, vlm.vocabulary_size))
    plain, told = read
    values = per_row(
        forward_kl, plain.states(), plain.projection(), [States(told.states(), told.projection())]
    )
    return segment_mean(values.float().cpu(), rollout, len(answered))
