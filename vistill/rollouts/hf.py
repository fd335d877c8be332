"""The reference engine: transformers' `generate`.

Each image is encoded once for all siblings of its prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

import vistill.models  # noqa: F401  it makes torchvision importable, which transformers needs

# isort: split
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vistill.models.loading import VLM
from vistill.phases import RESPONSES, count_done
from vistill.rollouts.engine import InProcessEngine, RolloutRequest, Sampling
from vistill.rollouts.samplers import make_sampler
from vistill.types import Finish, Rollout


class PollingCriteria(StoppingCriteria):
    """Calls `poll` after every decoded token, so that a signal can stop a rollout in the middle."""

    def __init__(self, poll: Callable[[], None]) -> None:
        self.poll = poll

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return False for every row; `poll` may raise."""
        self.poll()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put the model into evaluation mode inside the block and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def default_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Replace the model's generation config by the default one inside the block.

    `generate` takes missing arguments from it: a repetition penalty there would change the samples.
    """
    saved = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = saved


class HFEngine(InProcessEngine):
    """Generates rollouts by transformers' `generate` with keyed noise."""

    def __init__(self, vlm: VLM, poll: Callable[[], None] = lambda: None) -> None:
        self.vlm, self.poll = vlm, poll

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of each request, in order. Requests of equal K share a batch."""
        groups: dict[int, tuple[Rollout, ...]] = {}
        by_count: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_count.setdefault(len(request.siblings), []).append(index)
        for count, indices in by_count.items():
            per_call = max(1, sampling.rows_per_call // count)
            for start in range(0, len(indices), per_call):
                part = indices[start : start + per_call]
                part_groups = self._call([requests[i] for i in part], sampling)
                count_done(RESPONSES, len(part) * count)
                groups |= dict(zip(part, part_groups, strict=True))
        return [groups[i] for i in range(len(requests))]

    @torch.no_grad()
    def _call(
        self, requests: list[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        vlm, count = self.vlm, len(requests[0].siblings)
        inputs, repeats = vlm.family.generation_arguments(
            vlm.model, [r.prompt for r in requests], count, vlm.pad_id
        )
        sampler = make_sampler(vlm, requests, sampling)
        config, stop = self._config(repeats, sampling), set(vlm.stop_ids)
        with eval_mode(vlm.model), default_generation_config(vlm.model):
            output = vlm.model.generate(  # pyright: ignore[reportCallIssue]
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([PollingCriteria(self.poll)]),
            )
        rows = iter(output[:, inputs["input_ids"].shape[1] :].tolist())
        values = iter(
            torch.stack(sampler.log_probs, 1).tolist()
            if sampler.log_probs
            else [None] * (len(requests) * count)
        )
        return [
            tuple(to_rollout(next(rows), stop, s, r.attempt, next(values)) for s in r.siblings)
            for r in requests
        ]

    def _config(self, count: int, sampling: Sampling) -> GenerationConfig:
        """The config of one call.

        The sampler leaves one token to choose. `do_sample` is on only because `generate` refuses
        to expand siblings without it.
        """
        return GenerationConfig(
            do_sample=count > 1,
            **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} if count > 1 else {}),
            num_return_sequences=count,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.vlm.stop_ids,
            pad_token_id=self.vlm.pad_id,
            use_cache=True,
        )


def to_rollout(
    row: list[int], stop: set[int], sibling: int, attempt: int, log_probs: list[float] | None = None
) -> Rollout:
    """Cut a row after its first end-of-turn token; without one the response is truncated."""
    end = next((index + 1 for index, token in enumerate(row) if token in stop), None)
    finish = Finish.LENGTH if end is None else Finish.STOP
    return Rollout(
        tuple(row[:end]),
        sibling,
        finish,
        attempt,
        None if log_probs is None else tuple(log_probs[:end]),
    )
