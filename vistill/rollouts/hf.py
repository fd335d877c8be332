"""The reference engine: transformers' `generate`. Each prompt's picture is encoded once for all its siblings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vistill.models.loading import VLM
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.engine import InProcessEngine, RolloutRequest, Sampling
from vistill.rollouts.keyed_noise import KeyedSampler, rollout_seed
from vistill.types import Finish, Rollout


class Poll(StoppingCriteria):
    """Calls a function after every decoded token, so that a signal is honoured in the middle of a rollout."""

    def __init__(self, poll: Callable[[], None]) -> None:
        self.poll = poll

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Never stops by itself; `poll` may raise."""
        self.poll()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def writing_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; afterwards, however it ends, the mode of before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def neutral_generation(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own generation settings.

    `generate` fills what a call leaves open from them: a repetition penalty there would change what is sampled.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class HFEngine(InProcessEngine):
    """Rollouts by `generate` with keyed noise."""

    def __init__(self, vlm: VLM, poll: Callable[[], None] = lambda: None) -> None:
        self.vlm, self.poll = vlm, poll

    def write(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
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
    def _call(
        self, requests: list[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        vlm, count = self.vlm, len(requests[0].siblings)
        inputs = vlm.family.generation_inputs([r.prompt for r in requests], vlm.pad_id)
        seeds = [
            rollout_seed(sampling.seed, sampling.step, r.key, sibling, r.attempt)
            for r in requests
            for sibling in r.siblings
        ]
        sampler = KeyedSampler(
            seeds,
            sampling.temperature,
            sampling.top_p,
            banned_ids(vlm),
            vlm.vocabulary_size,
            log_probs=sampling.log_probs,
        )
        config, stop = self._config(count, sampling), set(vlm.stop_ids)
        with writing_mode(vlm.model), neutral_generation(vlm.model):
            output = vlm.model.generate(  # pyright: ignore[reportCallIssue]
                **{name: tensor.to(vlm.device) for name, tensor in inputs.items()},
                generation_config=config,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([Poll(self.poll)]),
            )
        rows = iter(output[:, inputs["input_ids"].shape[1] :].tolist())
        values = iter(
            torch.stack(sampler.log_probs, 1).tolist() if sampler.log_probs else [None] * len(seeds)
        )
        return [
            tuple(to_rollout(next(rows), stop, s, r.attempt, next(values)) for s in r.siblings)
            for r in requests
        ]

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


def to_rollout(
    row: list[int], stop: set[int], sibling: int, attempt: int, log_probs: list[float] | None = None
) -> Rollout:
    """Tokens up to and including the first end-of-turn token; without one the response was cut off."""
    end = next((place + 1 for place, token in enumerate(row) if token in stop), None)
    finish = Finish.LENGTH if end is None else Finish.STOP
    return Rollout(
        tuple(row[:end]),
        sibling,
        finish,
        attempt,
        None if log_probs is None else tuple(log_probs[:end]),
    )
