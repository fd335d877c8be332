"""Visual advantage of the student's own responses, and the figures that explain results."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistill.evaluation.answering import Answered
from vistill.evaluation.settings import EvalSettings
from vistill.functional.rows import Target, reverse_kl_from_hidden
from vistill.functional.segments import segment_mean, top_share
from vistill.functional.tiles import TILE_ROWS
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, score
from vistill.signals.concentration import gini, top_mass_share
from vistill.signals.visual_advantage import distribution_advantage, visual_advantage
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view

#: A token is critical where KL(teacher with picture || teacher with pixelated picture) exceeds this, in nats.
CRITICAL_NATS = 0.5
#: Groups scored together.
GROUPS_PER_CALL = 64


@dataclass(frozen=True)
class TokenReading:
    """Per-token measurements of one response."""

    prompt: Prompt
    ids: tuple[int, ...]
    advantage: Tensor
    """Rectified visual advantage, nats."""
    critical: Tensor
    """Distribution-level advantage, nats."""
    dependency: Tensor
    """Visual dependency KL(teacher with the picture || without), nats."""
    kl: Tensor
    """KL(student || teacher), nats."""
    misread: Tensor
    """Critical tokens that are not the teacher's own choice."""
    log_prob_full: Tensor
    log_prob_degraded: Tensor


@torch.no_grad()
def read_tokens(
    student: VLM,
    teacher: VLM,
    answered: Sequence[Answered],
    context: ViewContext,
    poll: Callable[[], None] = lambda: None,
) -> list[TokenReading]:
    """Read responses with the teacher under three views and with the student under one."""
    vocabulary = student.vocabulary_size
    out: list[TokenReading] = []
    for start in range(0, len(answered), GROUPS_PER_CALL):
        poll()
        part = answered[start : start + GROUPS_PER_CALL]
        ids = torch.tensor([i for a in part for i in a.rollout.ids], device=teacher.device)
        full = groups_of(teacher, part, View.FULL, context)
        seen = score(teacher, full, ids, vocabulary, "both")
        blurred = score(
            teacher, groups_of(teacher, part, View.PIXELATED, context), ids, vocabulary, "both"
        )
        blind = score(teacher, groups_of(teacher, part, View.TEXT_ONLY, context), ids, vocabulary)
        own = score(student, full, ids.to(student.device), vocabulary)
        head = seen.projection()
        kl = reverse_kl_from_hidden(
            own.states(), own.projection(), [Target(1.0, seen.states(), head)]
        )
        critical, dependency = (
            distribution_advantage(seen, blurred),
            distribution_advantage(seen, blind),
        )
        chosen = torch.cat([head.logits(h).argmax(-1) for h in seen.states().split(TILE_ROWS)])
        misread = (critical > CRITICAL_NATS) & (chosen != ids)
        advantage = visual_advantage(seen.sampled(), blurred.sampled())
        lengths = [len(a.rollout.ids) for a in part]
        columns = [advantage, critical, dependency, kl, misread, seen.sampled(), blurred.sampled()]
        cut = [c.cpu().split(lengths) for c in columns]
        out += [
            TokenReading(a.prompt, a.rollout.ids, *(c[i] for c in cut)) for i, a in enumerate(part)
        ]
    return out


def groups_of(
    vlm: VLM, answered: Sequence[Answered], view: View, context: ViewContext
) -> list[EncodedGroup]:
    """One group per response."""
    encoded: dict[str, EncodedPrompt] = {}
    for item in answered:
        if item.prompt.id not in encoded:
            encoded[item.prompt.id] = vlm.encode(apply_view(item.prompt, view, context))
    return [EncodedGroup(encoded[a.prompt.id], (a.rollout.ids,)) for a in answered]


def summarise_tokens(readings: Sequence[TokenReading], settings: EvalSettings) -> dict[str, float]:
    """Mean VA, its tail, and who carries the KL (feasibility of a gain: critical tokens, misreads, ties)."""
    if not readings:
        return {}
    advantage = torch.cat([r.advantage for r in readings])
    kl = torch.cat([r.kl for r in readings])
    critical = torch.cat([r.critical for r in readings]) > CRITICAL_NATS
    misread = torch.cat([r.misread for r in readings])
    lengths = torch.tensor([len(r.ids) for r in readings])
    rollout = torch.repeat_interleave(torch.arange(len(readings)), lengths)
    high = top_share(advantage, rollout, lengths, settings.high_share)
    facts = {
        "va/mean": float(advantage.mean()),
        "va/mean_of_responses": float(segment_mean(advantage, rollout, len(readings)).mean()),
        "va/top10_share": top_mass_share(advantage, 0.1),
        "va/gini": gini(advantage),
        "va/zero_share": float((advantage == 0).float().mean()),
        "vds/mean": float(torch.cat([r.dependency for r in readings]).mean()),
        "kl/mean": float(kl.mean()),
        "kl/high_group": mean_where(kl, high),
        "kl/low_group": mean_where(kl, ~high),
        "critical/share": float(critical.float().mean()),
        "critical/kl_share": share_of(kl[critical].sum(), kl.sum()),
        "critical/misread_share": share_of(float(misread.sum()), float(critical.sum())),
        "misread/in_high_group": mean_where(high.float(), misread),
        "tokens": float(len(advantage)),
    }
    return {name: value for name, value in facts.items() if math.isfinite(value)}


def share_of(part: Tensor | float, whole: Tensor | float) -> float:
    """A share; NaN where the whole is nothing."""
    return float(part / whole) if whole > 0 else math.nan


def mean_where(values: Tensor, mask: Tensor) -> float:
    """Mean over a mask; NaN where it is empty."""
    return float(values[mask].mean()) if bool(mask.any()) else math.nan


def heavy_tail_curve(readings: Sequence[TokenReading], points: int = 200) -> list[list[float]]:
    """Share of the tokens against share of the visual advantage they carry, largest first."""
    advantage = torch.cat([r.advantage for r in readings]).double()
    total = float(advantage.sum())
    if total <= 0:
        return []
    mass = torch.sort(advantage, descending=True).values.cumsum(0) / total
    picks = torch.linspace(0, len(mass) - 1, min(points, len(mass))).long()
    return [[(int(i) + 1) / len(mass), float(mass[i])] for i in picks]
