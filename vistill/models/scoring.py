"""Score responses: hidden states of the response rows. The off-by-one between logits and tokens lives here only."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.batch import ScoredPass
from vistill.functional.rows import log_prob_from_hidden
from vistill.models.family import EncodedPrompt, RowBatch
from vistill.models.loading import VLM


@dataclass(frozen=True)
class EncodedGroup:
    """One prompt as a reader sees it under a view, with the token ids of its sibling responses."""

    prompt: EncodedPrompt
    responses: tuple[tuple[int, ...], ...]


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
            positions.append(torch.cat([item.prompt.positions, following.expand(3, -1)], dim=1))
            group.append(index)
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    placed = torch.zeros((3, len(rows), width), dtype=torch.long)
    for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        placed[:, i, : len(row)] = position
    return RowBatch(ids, mask, placed, [item.prompt for item in groups], group)


def response_states(vlm: VLM, groups: Sequence[EncodedGroup]) -> Float[Tensor, "R H"]:
    """Hidden states that predict each response token, on the flat response axis."""
    rows = to_rows(groups, vlm.pad_id)
    hidden = vlm.family.backbone(vlm.model, rows)
    picks_row, picks_column = [], []
    row = 0
    for item in groups:
        for response in item.responses:
            columns = prediction_rows(len(item.prompt.ids), len(response))
            picks_row += [row] * len(columns)
            picks_column += list(columns)
            row += 1
    return hidden[torch.tensor(picks_row, device=hidden.device), torch.tensor(picks_column, device=hidden.device)]


def score(
    vlm: VLM,
    groups: Sequence[EncodedGroup],
    ids: Int[Tensor, " R"],
    vocabulary: int,
    keep: str = "hidden",
) -> ScoredPass:
    """One reading of the responses: sampled log-probabilities at temperature 1 and, if kept, hidden states.

    Never holds `[N, T, V]`: the head runs on response rows in chunks.
    """
    hidden = response_states(vlm, groups)
    head = vlm.head(vocabulary)
    if torch.is_grad_enabled():
        return ScoredPass(None, hidden, head)
    log_prob = log_prob_from_hidden(hidden, head, ids)
    return ScoredPass(log_prob, hidden, head) if keep == "hidden" else ScoredPass(log_prob)
