"""Score responses: hidden states of the response rows. The off-by-one between logits and tokens lives here only."""

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
from vistill.models.sharing import KeysValues, Segment, plan_attention


@dataclass(frozen=True)
class EncodedGroup:
    """One prompt as a reader sees it under a view, with the token ids of its sibling responses."""

    prompt: EncodedPrompt
    responses: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all responses."""
        return len(self.prompt.ids) + sum(map(len, self.responses))


def prediction_rows(prompt_length: int, num_tokens: int) -> range:
    """Rows whose hidden state predicts the response: `P-1 ... P+T-2`. Row t predicts token t+1."""
    return range(prompt_length - 1, prompt_length + num_tokens - 1)


def to_rows(groups: Sequence[EncodedGroup], pad_id: int) -> RowBatch:
    """One right-padded row per rollout, with explicit positions for prompt and response."""
    rows, positions, group = [], [], []
    for index, item in enumerate(groups):
        for response in item.responses:
            rows.append([*item.prompt.ids, *response])
            following = torch.arange(len(response)) + item.prompt.next_position
            axes = len(item.prompt.positions)
            positions.append(torch.cat([item.prompt.positions, following.expand(axes, -1)], dim=1))
            group.append(index)
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    placed = torch.zeros((len(positions[0]), len(rows), width), dtype=torch.long)
    for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        placed[:, i, : len(row)] = position
    return RowBatch(ids, mask, placed, [item.prompt for item in groups], group)


#: How packed segments attend, by `VLM.attention`.
PLANS = {"blocks": plan_attention, "flex": plan_flex}
ResponseIndex = tuple[int, int]
"""Group and sibling of a response."""


@runtime_checkable
class GroupReading(Protocol):
    """Groups of one micro-batch, of which responses are read in parts."""

    def read(self, places: Sequence[ResponseIndex]) -> Float[Tensor, "R H"]:
        """Hidden states that predict each token of these responses, on the flat response axis."""
        ...

    def close(self) -> None:
        """After the backward passes of all parts: send what they left at the prompts through the prompts."""
        ...


class SharedReading:
    """Each prompt is read once; its siblings attend to its keys and values.

    With `cut`, the prompts' keys and values are leaves for the siblings, so that parts can be read, learnt from and
    forgotten one after the other: what is held for the backward pass does not grow with the number of siblings.
    """

    def __init__(self, vlm: VLM, groups: Sequence[EncodedGroup], cut: bool = False) -> None:
        self.vlm, self.groups, self.cut = vlm, groups, cut
        self.made = KeysValues()
        lengths = [len(g.prompt.ids) - 1 for g in groups]
        self.segments = segments_of(lengths)
        plan = PLANS[vlm.attention]
        attend = plan([s for s in self.segments if s.length], 0, vlm.device)
        attend.kept = self.made
        prompts = [g.prompt for g in groups]
        ids = torch.tensor([i for p in prompts for i in p.ids[:-1]], dtype=torch.long)
        positions = torch.cat([p.positions[:, :-1] for p in prompts], 1)
        vlm.read(PackedRow(ids, positions, attend, prompts))
        self.known = self.made.cut() if cut else self.made

    def read(self, places: Sequence[ResponseIndex]) -> Float[Tensor, "R H"]:
        """Hidden states of some responses."""
        ids, positions, lengths = [], [], []
        for g, k in places:
            prompt, response = self.groups[g].prompt, self.groups[g].responses[k]
            ids += [prompt.ids[-1], *response[:-1]]
            positions += [prompt.positions[:, -1:], after(prompt, len(response) - 1)]
            lengths.append(len(response))
        shared = [
            Segment(own.start, own.length, self.segments[g].start, self.segments[g].length)
            for own, (g, _) in zip(segments_of(lengths), places, strict=True)
        ]
        attend = PLANS[self.vlm.attention](
            shared, sum(s.length for s in self.segments), self.vlm.device
        )
        attend.prompt = self.known
        return self.vlm.states(PackedRow(torch.tensor(ids), torch.cat(positions, 1), attend))

    def close(self) -> None:
        """One backward pass through the prompts for all siblings."""
        if not self.cut:
            return
        pairs = [
            (a, b.grad) for a, b in zip(self.made.tensors(), self.known.tensors(), strict=True)
        ]
        wanted = [(a, grad) for a, grad in pairs if grad is not None]
        if wanted:
            torch.autograd.backward([a for a, _ in wanted], [grad for _, grad in wanted])


class PlainReading:
    """Prompt and response as one right-padded row per rollout: the reference, and for families that cannot share."""

    def __init__(self, vlm: VLM, groups: Sequence[EncodedGroup]) -> None:
        self.vlm, self.groups = vlm, groups

    def read(self, places: Sequence[ResponseIndex]) -> Float[Tensor, "R H"]:
        """Hidden states of some responses."""
        chosen: dict[int, list[int]] = {}
        for g, k in places:
            chosen.setdefault(g, []).append(k)
        groups = [
            EncodedGroup(self.groups[g].prompt, tuple(self.groups[g].responses[k] for k in ks))
            for g, ks in chosen.items()
        ]
        hidden = self.vlm.states(to_rows(groups, self.vlm.pad_id))
        picks_row, picks_column = [], []
        for row, (prompt, response) in enumerate(
            (g.prompt, r) for g in groups for r in g.responses
        ):
            columns = prediction_rows(len(prompt.ids), len(response))
            picks_row += [row] * len(columns)
            picks_column += list(columns)
        return hidden[
            torch.tensor(picks_row, device=hidden.device),
            torch.tensor(picks_column, device=hidden.device),
        ]

    def close(self) -> None:
        """Nothing is left to do."""


def read_groups(vlm: VLM, groups: Sequence[EncodedGroup], cut: bool = False) -> GroupReading:
    """Open some groups for reading; `cut` where `close` will be called after the backward passes."""
    return SharedReading(vlm, groups, cut) if vlm.shares_prompts else PlainReading(vlm, groups)


def all_responses(groups: Sequence[EncodedGroup]) -> list[ResponseIndex]:
    """All responses in order."""
    return [(g, k) for g, group in enumerate(groups) for k in range(len(group.responses))]


def segments_of(lengths: Sequence[int]) -> list[Segment]:
    """Consecutive segments of so many tokens."""
    starts = itertools.accumulate(lengths, initial=0)
    return [Segment(start, length) for start, length in zip(starts, lengths, strict=False)]


def after(prompt: EncodedPrompt, num: int) -> Tensor:
    """Positions [axes, num] of response tokens that are read: they start where the prompt's positions end."""
    return (torch.arange(num) + prompt.next_position).expand(len(prompt.positions), -1)


def response_states(vlm: VLM, groups: Sequence[EncodedGroup]) -> Float[Tensor, "R H"]:
    """Hidden states that predict each response token, on the flat response axis."""
    return read_groups(vlm, groups).read(all_responses(groups))


def score(
    vlm: VLM,
    groups: Sequence[EncodedGroup],
    ids: Int[Tensor, " R"],
    vocabulary: int,
    keep: str = "hidden",
) -> ScoredPass:
    """One reading of the responses: hidden states, log-probabilities of the sampled tokens at temperature 1, or both.

    Never holds `[N, T, V]`: the head runs on response rows in chunks.
    """
    hidden = response_states(vlm, groups)
    head = vlm.head(vocabulary)
    if torch.is_grad_enabled() or keep == "hidden":
        return ScoredPass(None, hidden, head)
    log_prob = log_prob_from_hidden(hidden, head, ids)
    return ScoredPass(log_prob, hidden, head) if keep == "both" else ScoredPass(log_prob)
