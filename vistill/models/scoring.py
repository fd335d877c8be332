"""Score responses: hidden states of the rows that predict response tokens.

This is the only place that knows the off-by-one between logits and tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.batch import ScoredPass
from vistill.functional.rows import log_prob_from_hidden
from vistill.models.families.base import EncodedPrompt, PackedRow, RowBatch
from vistill.models.flex import plan_flex
from vistill.models.loading import VLM
from vistill.models.sharing import KVCache, Segment, plan_attention


@dataclass(frozen=True)
class EncodedGroup:
    """One prompt as a reader sees it under a view, and the token ids of its sibling responses."""

    prompt: EncodedPrompt
    responses: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all responses."""
        return len(self.prompt.ids) + sum(map(len, self.responses))


def prediction_rows(prompt_length: int, num_tokens: int) -> range:
    """Rows whose hidden states predict the response: `P-1 ... P+T-2`. Row t predicts token t+1."""
    return range(prompt_length - 1, prompt_length + num_tokens - 1)


def pad_rows(groups: Sequence[EncodedGroup], pad_id: int) -> RowBatch:
    """One right-padded row per rollout, with explicit positions of prompt and response."""
    rows, positions, group = [], [], []
    for index, item in enumerate(groups):
        for response in item.responses:
            rows.append([*item.prompt.ids, *response])
            own_positions = response_positions(item.prompt, len(response))
            positions.append(torch.cat([item.prompt.positions, own_positions], dim=1))
            group.append(index)
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    row_positions = torch.zeros((len(positions[0]), len(rows), width), dtype=torch.long)
    for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        row_positions[:, i, : len(row)] = position
    return RowBatch(ids, mask, row_positions, [item.prompt for item in groups], group)


#: The function that plans the attention of packed segments, by `VLM.attention`.
ATTENTION_PLANS = {"blocks": plan_attention, "flex": plan_flex}
ResponseIndex = tuple[int, int]
"""Group and sibling of a response."""


@runtime_checkable
class GroupReading(Protocol):
    """Groups of one micro-batch. Their responses are read part by part."""

    def read(self, indices: Sequence[ResponseIndex]) -> Float[Tensor, "R H"]:
        """Hidden states that predict each token of these responses, on the flat response axis."""
        ...

    def close(self) -> None:
        """Run the backward pass of the prompts. Call it after the backward passes of all parts."""
        ...


class SharedReading:
    """Each prompt is read once. Its siblings attend to its keys and values.

    With `cut` the siblings see the prompts' keys and values as leaves of autograd. Then each part
    can be read, run backward and freed in turn, and the memory for the backward pass does not grow
    with the number of siblings.
    """

    def __init__(self, vlm: VLM, groups: Sequence[EncodedGroup], cut: bool = False) -> None:
        self.vlm, self.groups, self.cut = vlm, groups, cut
        self.prompt_cache = KVCache()
        lengths = [len(g.prompt.ids) - 1 for g in groups]
        self.segments = make_segments(lengths)
        plan = ATTENTION_PLANS[vlm.attention]
        attention = plan([s for s in self.segments if s.length], 0, vlm.device)
        attention.new_cache = self.prompt_cache
        prompts = [g.prompt for g in groups]
        ids = torch.tensor([i for p in prompts for i in p.ids[:-1]], dtype=torch.long)
        positions = torch.cat([p.positions[:, :-1] for p in prompts], 1)
        vlm.read(PackedRow(ids, positions, attention, prompts))
        self.sibling_cache = self.prompt_cache.as_leaves() if cut else self.prompt_cache

    def read(self, indices: Sequence[ResponseIndex]) -> Float[Tensor, "R H"]:
        """Hidden states of some responses."""
        ids, positions, lengths = [], [], []
        for g, k in indices:
            prompt, response = self.groups[g].prompt, self.groups[g].responses[k]
            ids += [prompt.ids[-1], *response[:-1]]
            positions += [prompt.positions[:, -1:], response_positions(prompt, len(response) - 1)]
            lengths.append(len(response))
        shared = [
            Segment(s.start, s.length, self.segments[g].start, self.segments[g].length)
            for s, (g, _) in zip(make_segments(lengths), indices, strict=True)
        ]
        plan = ATTENTION_PLANS[self.vlm.attention]
        attention = plan(shared, sum(s.length for s in self.segments), self.vlm.device)
        attention.prompt_cache = self.sibling_cache
        return self.vlm.states(PackedRow(torch.tensor(ids), torch.cat(positions, 1), attention))

    def close(self) -> None:
        """Run one backward pass through the prompts, for all siblings."""
        if not self.cut:
            return
        leaves = self.sibling_cache.tensors()
        pairs = [
            (x, leaf.grad) for x, leaf in zip(self.prompt_cache.tensors(), leaves, strict=True)
        ]
        used = [(x, grad) for x, grad in pairs if grad is not None]
        if used:
            torch.autograd.backward([x for x, _ in used], [grad for _, grad in used])


class PaddedReading:
    """Prompt and response as one right-padded row per rollout.

    This is the reference for `SharedReading`, and the only way for families that cannot share.
    """

    def __init__(self, vlm: VLM, groups: Sequence[EncodedGroup]) -> None:
        self.vlm, self.groups = vlm, groups

    def read(self, indices: Sequence[ResponseIndex]) -> Float[Tensor, "R H"]:
        """Hidden states of some responses."""
        siblings: dict[int, list[int]] = {}
        for g, k in indices:
            siblings.setdefault(g, []).append(k)
        groups = [
            EncodedGroup(self.groups[g].prompt, tuple(self.groups[g].responses[k] for k in ks))
            for g, ks in siblings.items()
        ]
        hidden = self.vlm.states(pad_rows(groups, self.vlm.pad_id))
        row_index, column_index = [], []
        for row, (prompt, response) in enumerate(
            (g.prompt, r) for g in groups for r in g.responses
        ):
            columns = prediction_rows(len(prompt.ids), len(response))
            row_index += [row] * len(columns)
            column_index += list(columns)
        return hidden[
            torch.tensor(row_index, device=hidden.device),
            torch.tensor(column_index, device=hidden.device),
        ]

    def close(self) -> None:
        """Do nothing: `read` has no separate backward pass."""


def open_reading(vlm: VLM, groups: Sequence[EncodedGroup], cut: bool = False) -> GroupReading:
    """Open a reading of some groups. With `cut` call `close` after the backward passes."""
    return SharedReading(vlm, groups, cut) if vlm.shares_prompts else PaddedReading(vlm, groups)


def cached_tensors(reading: GroupReading) -> list[Tensor]:
    """The keys and values of the prompts that a reading keeps; none without shared prompts."""
    return reading.prompt_cache.tensors() if isinstance(reading, SharedReading) else []


def all_responses(groups: Sequence[EncodedGroup]) -> list[ResponseIndex]:
    """The indices of all responses, in order."""
    return [(g, k) for g, group in enumerate(groups) for k in range(len(group.responses))]


def make_segments(lengths: Sequence[int]) -> list[Segment]:
    """Consecutive segments of these lengths."""
    starts = itertools.accumulate(lengths, initial=0)
    return [Segment(start, length) for start, length in zip(starts, lengths, strict=False)]


def response_positions(prompt: EncodedPrompt, num: int) -> Tensor:
    """Positions [axes, num] of response tokens. They start where the prompt's positions end."""
    return (torch.arange(num) + prompt.next_position).expand(len(prompt.positions), -1)


def response_states(vlm: VLM, groups: Sequence[EncodedGroup]) -> Float[Tensor, "R H"]:
    """Hidden states that predict each response token, on the flat response axis."""
    return open_reading(vlm, groups).read(all_responses(groups))


def score(
    vlm: VLM,
    groups: Sequence[EncodedGroup],
    ids: Int[Tensor, " R"],
    vocabulary: int,
    keep: str = "hidden",
) -> ScoredPass:
    """Read the responses once.

    `keep` says what the result holds: `hidden` states, `log_prob` of the sampled tokens at
    temperature 1, or `both`. No tensor [N, T, V] exists, because the head runs on response rows in
    chunks.
    """
    hidden = response_states(vlm, groups)
    head = vlm.head(vocabulary)
    if torch.is_grad_enabled() or keep == "hidden":
        return ScoredPass(None, hidden, head)
    log_prob = log_prob_from_hidden(hidden, head, ids)
    return ScoredPass(log_prob, hidden, head) if keep == "both" else ScoredPass(log_prob)
