"""Visual advantage of the student's responses, and the figures that explain results."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistill.evaluation.responses import JudgedResponse
from vistill.evaluation.settings import EvalSettings
from vistill.functional.rows import Target, reverse_kl_from_hidden
from vistill.functional.running_sums import running_sum
from vistill.functional.segments import segment_mean, top_share
from vistill.functional.tiles import TILE_ROWS
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.models.pairs import same_family
from vistill.models.scoring import EncodedGroup, score
from vistill.phases import EVALUATING, count_items
from vistill.signals.concentration import gini, top_mass_share
from vistill.signals.visual_advantage import distribution_advantage, visual_advantage
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view

#: A token is critical if KL(teacher with image || teacher with pixelated image) exceeds this, in
#: nats.
CRITICAL_NATS = 0.5
#: Responses scored together.
GROUPS_PER_CALL = 64


@dataclass(frozen=True)
class TokenMeasurements:
    """Per-token measurements of one response."""

    prompt: Prompt
    ids: tuple[int, ...]
    advantage: Tensor
    """Rectified visual advantage, nats."""
    critical: Tensor
    """Distribution-level advantage, nats."""
    dependency: Tensor
    """Visual dependency KL(teacher with image || teacher without), nats."""
    kl: Tensor
    """KL(student || teacher), nats."""
    misread: Tensor
    """Critical tokens that differ from the teacher's most likely token."""
    log_prob_full: Tensor
    log_prob_degraded: Tensor


@torch.no_grad()
def measure_tokens(
    student: VLM,
    teacher: VLM,
    responses: Sequence[JudgedResponse],
    context: ViewContext,
    poll: Callable[[], None] = lambda: None,
) -> list[TokenMeasurements]:
    """Score responses with the teacher under three views and with the student under one."""
    vocabulary = student.vocabulary_size
    measurements: list[TokenMeasurements] = []
    starts = range(0, len(responses), GROUPS_PER_CALL)
    for start in count_items(f"{EVALUATING} tokens", starts):
        poll()
        part = responses[start : start + GROUPS_PER_CALL]
        ids = torch.tensor([i for a in part for i in a.rollout.ids], device=teacher.device)
        full_groups = make_groups(teacher, part, View.FULL, context)
        full = score(teacher, full_groups, ids, vocabulary, "both")
        pixelated = score(
            teacher, make_groups(teacher, part, View.PIXELATED, context), ids, vocabulary, "both"
        )
        text_only = score(
            teacher, make_groups(teacher, part, View.TEXT_ONLY, context), ids, vocabulary
        )
        own = full_groups  # one encoding serves models of one family
        if not same_family(student, teacher):
            own = make_groups(student, part, View.FULL, context)
        student_pass = score(student, own, ids.to(student.device), vocabulary)
        head = full.projection()
        kl = reverse_kl_from_hidden(
            student_pass.states(),
            student_pass.projection(),
            [Target(1.0, full.states(), head)],
        )
        critical = distribution_advantage(full, pixelated)
        dependency = distribution_advantage(full, text_only)
        chosen = torch.cat([head.logits(h).argmax(-1) for h in full.states().split(TILE_ROWS)])
        misread = (critical > CRITICAL_NATS) & (chosen != ids)
        advantage = visual_advantage(full.sampled(), pixelated.sampled())
        lengths = [len(a.rollout.ids) for a in part]
        log_probs = (full.sampled(), pixelated.sampled())
        columns = [advantage, critical, dependency, kl, misread, *log_probs]
        by_response = [c.cpu().split(lengths) for c in columns]
        measurements += [
            TokenMeasurements(a.prompt, a.rollout.ids, *(c[i] for c in by_response))
            for i, a in enumerate(part)
        ]
    return measurements


def make_groups(
    vlm: VLM, responses: Sequence[JudgedResponse], view: View, context: ViewContext
) -> list[EncodedGroup]:
    """Encode the prompts under a view; one group per response."""
    encoded: dict[str, EncodedPrompt] = {}
    for item in responses:
        if item.prompt.id not in encoded:
            encoded[item.prompt.id] = vlm.encode(apply_view(item.prompt, view, context))
    return [EncodedGroup(encoded[a.prompt.id], (a.rollout.ids,)) for a in responses]


def summarise_tokens(
    measurements: Sequence[TokenMeasurements], settings: EvalSettings
) -> dict[str, float]:
    """Mean VA, its heavy tail, and the share of the KL on critical and misread tokens."""
    if not measurements:
        return {}
    advantage = torch.cat([r.advantage for r in measurements])
    kl = torch.cat([r.kl for r in measurements])
    critical = torch.cat([r.critical for r in measurements]) > CRITICAL_NATS
    misread = torch.cat([r.misread for r in measurements])
    lengths = torch.tensor([len(r.ids) for r in measurements])
    rollout = torch.repeat_interleave(torch.arange(len(measurements)), lengths)
    high = top_share(advantage, rollout, lengths, settings.high_share)
    facts = {
        "va/mean": float(advantage.mean()),
        "va/mean_of_responses": float(segment_mean(advantage, rollout, len(measurements)).mean()),
        "va/top10_share": top_mass_share(advantage, 0.1),
        "va/gini": gini(advantage),
        "va/zero_share": float((advantage == 0).float().mean()),
        "vds/mean": float(torch.cat([r.dependency for r in measurements]).mean()),
        "kl/mean": float(kl.mean()),
        "kl/high_group": mean_where(kl, high),
        "kl/low_group": mean_where(kl, ~high),
        "critical/share": float(critical.float().mean()),
        "critical/kl_share": ratio(kl[critical].sum(), kl.sum()),
        "critical/misread_share": ratio(float(misread.sum()), float(critical.sum())),
        "misread/in_high_group": mean_where(high.float(), misread),
        "tokens": float(len(advantage)),
    }
    return {name: value for name, value in facts.items() if math.isfinite(value)}


def ratio(part: Tensor | float, total: Tensor | float) -> float:
    """`part / total`; NaN if the total is 0."""
    return float(part / total) if total > 0 else math.nan


def mean_where(values: Tensor, mask: Tensor) -> float:
    """Mean over a mask; NaN if the mask is empty."""
    return float(values[mask].mean()) if bool(mask.any()) else math.nan


def heavy_tail_curve(
    measurements: Sequence[TokenMeasurements], points: int = 200
) -> list[list[float]]:
    """Points (share of the tokens, share of the visual advantage they carry), largest first."""
    advantage = torch.cat([r.advantage for r in measurements]).double()
    total = float(advantage.sum())
    if total <= 0:
        return []
    mass = running_sum(torch.sort(advantage, descending=True).values) / total
    picks = torch.linspace(0, len(mass) - 1, min(points, len(mass))).long()
    return [[(int(i) + 1) / len(mass), float(mass[i])] for i in picks]
