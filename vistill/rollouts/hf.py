"""The reference engine: transformers' `generate`. Each prompt's picture is encoded once for all its siblings."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from vistill.models.loading import VLM
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.noise import KeyedSampler, rollout_seed
from vistill.types import Finish, Rollout


class Poll(StoppingCriteria):
    """Calls a function after every decoded token, so that a signal is honoured in the middle of a rollout."""

    def __init__(self, poll: Callable[[], None]) -> None:
        self.poll = poll

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Never stops by itself; `poll` may raise."""
        self.poll()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class HFEngine:
    """Rollouts by `generate` with keyed noise."""

    def __init__(self, vlm: VLM, poll: Callable[[], None] = lambda: None) -> None:
        self.vlm, self.poll = vlm, poll

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[tuple[Rollout, ...]]:
        """The rollouts of each request, in order. Requests of equal K are decoded together."""
        written: dict[int, tuple[Rollout, ...]] = {}
        by_count: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_count.setdefault(len(request.siblings), []).append(index)
        for count, indices in by_count.items():
            per_call = max(1, sampling.rows_per_call // count)
            for start in range(0, len(indices), per_call):
                part = indices[start : start + per_call]
                groups = self._call([requests[i] for i in part], sampling)
                written |= dict(zip(part, groups, strict=True))
        return [written[i] for i in range(len(requests))]

    @torch.no_grad()
    def _call(self, requests: list[RolloutRequest], sampling: Sampling) -> list[tuple[Rollout, ...]]:
        vlm, count = self.vlm, len(requests[0].siblings)
        inputs = vlm.family.generation_inputs([r.prompt for r in requests], vlm.pad_id)
        seeds = [
            rollout_seed(sampling.seed, sampling.step, r.key, sibling, r.attempt)
            for r in requests
            for sibling in r.siblings
        ]
        sampler = KeyedSampler(seeds, sampling.temperature, sampling.top_p, banned_ids(vlm), vlm.vocabulary_size)
        was_training = vlm.model.training
        vlm.model.eval()
        output = vlm.model.generate(  # pyright: ignore[reportCallIssue]
            **{name: tensor.to(vlm.device) for name, tensor in inputs.items()},
            generation_config=self._config(count, sampling),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([Poll(self.poll)]),
        )
        vlm.model.train(was_training)
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        stop = set(vlm.stop_ids)
        groups = []
        for i, request in enumerate(requests):
            part = rows[i * count : (i + 1) * count]
            groups.append(
                tuple(
                    to_rollout(row, stop, sibling, request.attempt)
                    for row, sibling in zip(part, request.siblings, strict=True)
                )
            )
        return groups

    def _config(self, count: int, sampling: Sampling) -> GenerationConfig:
        """The sampler leaves one token to choose. Sampling stays on only where `generate` must expand siblings."""
        return GenerationConfig(
            do_sample=count > 1,
            **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} if count > 1 else {}),
            num_return_sequences=count,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.vlm.stop_ids,
            pad_token_id=self.vlm.pad_id,
            use_cache=True,
        )


def banned_ids(vlm: VLM) -> list[int]:
    """Ids that are never sampled: multimodal marks, and padding where it does not end a response."""
    return sorted({*vlm.family.banned_ids(), vlm.pad_id} - set(vlm.stop_ids))


def to_rollout(row: list[int], stop: set[int], sibling: int, attempt: int) -> Rollout:
    """Tokens up to and including the first end-of-turn token; without one the response was cut off."""
    for place, token in enumerate(row):
        if token in stop:
            return Rollout(tuple(row[: place + 1]), sibling, Finish.STOP, attempt)
    return Rollout(tuple(row), sibling, Finish.LENGTH, attempt)
