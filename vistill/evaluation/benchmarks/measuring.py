"""Signals of a benchmark's responses, by forward passes of the model that wrote them."""

from collections.abc import Sequence

import torch

from vistill.batch import ScoredPass
from vistill.evaluation.benchmarks.protocols import view_of
from vistill.evaluation.benchmarks.sample_signals import NAMES
from vistill.functional.divergences import entropy
from vistill.functional.rows import per_row
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, score
from vistill.signals.visual_advantage import distribution_advantage, visual_advantage
from vistill.types import Prompt, Rollout, View
from vistill.views import apply_view

#: Decimals in a log: more would be noise of the batch.
DECIMALS = 6


@torch.no_grad()
def measure_signals(
    vlm: VLM, prompt: Prompt, mode: str, rollouts: Sequence[Rollout]
) -> list[dict[str, float | None]]:
    """The signals of the responses to one prompt, each a mean over the response's tokens.

    `log_prob` and `entropy` are read under the view that the mode shows. `visual_advantage` is
    max(l - l~, 0) with l the log-probability of the token with the picture and l~ with the
    pixelated one; `visual_dependency` is KL(with the picture || without it). All in nats, at
    temperature 1. Both visual signals are None where the model saw no full picture, all where the
    response is empty.

    Args:
        vlm: that wrote the responses.
        prompt: with its picture, also in a blind mode.
        mode: of the responses.
        rollouts: of the prompt.
    """
    filled = [one for one in rollouts if one.ids]
    if not filled:
        return [dict.fromkeys(NAMES) for _ in rollouts]
    responses = tuple(one.ids for one in filled)
    ids = torch.tensor([i for one in responses for i in one], device=vlm.device)

    def read(view: View | str) -> ScoredPass:
        group = EncodedGroup(vlm.encode(apply_view(prompt, view)), responses)
        return score(vlm, [group], ids, vlm.vocabulary_size, "both")

    seen = read(view_of(mode))
    columns = {
        "log_prob": seen.sampled(),
        "entropy": per_row(entropy, seen.states(), seen.projection()),
    }
    if prompt.images and view_of(mode) == View.FULL:
        degraded = read(View.PIXELATED).sampled()
        columns["visual_advantage"] = visual_advantage(seen.sampled(), degraded)
        columns["visual_dependency"] = distribution_advantage(seen, read(View.TEXT_ONLY))
    lengths = [len(one) for one in responses]
    means = {
        name: [round(float(part.double().mean()), DECIMALS) for part in column.cpu().split(lengths)]
        for name, column in columns.items()
    }
    by_filled = iter(range(len(filled)))
    return [
        dict.fromkeys(NAMES) if not one.ids else values_at(means, next(by_filled))
        for one in rollouts
    ]


def values_at(means: dict[str, list[float]], index: int) -> dict[str, float | None]:
    """The signals of one response; None for those that were not measured."""
    return {name: means[name][index] if name in means else None for name in NAMES}
