"""Measure whether visual thoughts help the untrained model.

The gate of Visual-OPSD needs it (methods 3.6, item 6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from vistill.answers.math_process import shared_judge
from vistill.evaluation.responses import AnswerEvaluator, JudgedResponse, accuracy_by_question
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

#: Responses scored together.
GROUPS_PER_CALL = 64


@dataclass(frozen=True)
class PrivilegeGain:
    """The gain of a model from visual thoughts."""

    generation_gap: float
    """Mean over the model's own responses of `K_gen = KL(p(.|privileged) || p(.|image))` per
    token, nats."""
    generation_gap_error: float
    """Standard error of that mean."""
    accuracy: float
    """Greedy accuracy with the image alone."""
    privileged_accuracy: float
    """Greedy accuracy with the thoughts."""
    rows: int

    def to_dict(self) -> dict[str, float]:
        """For `gate.json`."""
        return asdict(self)

    def passes(self) -> bool:
        """Whether the gap exceeds 0 by two standard errors and the thoughts raise the accuracy."""
        clear = self.generation_gap - 2 * self.generation_gap_error > 0
        return clear and self.privileged_accuracy > self.accuracy


def measure_privilege(
    vlm: VLM,
    prompts: Sequence[Prompt],
    view: View | str,
    settings: EvalSettings,
    context: ViewContext,
    engine: RolloutEngine,
) -> PrivilegeGain:
    """Measure greedy accuracy with and without thoughts, and the generation gap.

    The gap is measured on responses sampled without thoughts.

    Args:
        vlm: the model in both roles.
        prompts: rows with answers, pictures and thoughts.
        view: the teacher's view: `privileged`, or one of its controls.
        settings: how answers are judged.
        context: the parameters of the views.
        engine: generates the responses.
    """
    with shared_judge() as math, keep_awake(engine):
        evaluator = AnswerEvaluator(vlm, settings, math, engine, context)
        image_only = accuracy_by_question(evaluator.answer(prompts, View.FULL, "greedy"))
        privileged = accuracy_by_question(evaluator.answer(prompts, view, "greedy"))
        sampled = [a for a in evaluator.answer(prompts, View.FULL) if a.rollout.ids]
        contexts = evaluator.contexts(prompts, view)
    if not sampled:
        raise empty_response_error(
            f"every response to {len(prompts)} prompts is empty", [p.id for p in prompts]
        )
    parts = [sampled[i : i + GROUPS_PER_CALL] for i in range(0, len(sampled), GROUPS_PER_CALL)]
    gaps = torch.cat([generation_gaps(vlm, part, view, contexts) for part in parts])
    error = float(gaps.std() / len(gaps) ** 0.5) if len(gaps) > 1 else 0.0
    return PrivilegeGain(
        float(gaps.mean()), error, mean(image_only), mean(privileged), len(prompts)
    )


@torch.no_grad()
def generation_gaps(
    vlm: VLM,
    responses: Sequence[JudgedResponse],
    view: View | str,
    contexts: Mapping[str, ViewContext],
) -> torch.Tensor:
    """Mean `K_gen` of each response, whole vocabulary, the same tokens on both sides (Eq. 4)."""
    ids = torch.tensor([i for a in responses for i in a.rollout.ids], device=vlm.device)
    lengths = torch.tensor([len(a.rollout.ids) for a in responses])
    rollout = torch.repeat_interleave(torch.arange(len(responses)), lengths)
    passes = []
    for pass_view in (View.FULL, view):
        groups = [
            EncodedGroup(
                vlm.encode(apply_view(a.prompt, pass_view, contexts[a.prompt.id])), (a.rollout.ids,)
            )
            for a in responses
        ]
        passes.append(score(vlm, groups, ids, vlm.vocabulary_size))
    image_only, privileged = passes
    values = per_row(
        forward_kl,
        image_only.states(),
        image_only.projection(),
        [States(privileged.states(), privileged.projection())],
    )
    return segment_mean(values.float().cpu(), rollout, len(responses))
