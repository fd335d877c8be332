"""The default engine: it encodes each prompt once and drops finished rows from the batch."""

from collections.abc import Callable, Sequence

import torch

from vistill.models.decoding import Decoder
from vistill.models.loading import VLM
from vistill.phases import RESPONSES, count_done
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.engine import InProcessEngine, RolloutRequest, Sampling
from vistill.rollouts.hf import eval_mode, to_rollout
from vistill.rollouts.keyed_noise import KeyedSampler, rollout_seed
from vistill.types import Rollout

#: Drop finished rows once they have cost this many decoding steps of the whole batch. Dropping
#: copies the cache, which costs about as much.
WASTED_STEPS = 2.0


class SharedEngine(InProcessEngine):
    """Generates rollouts by our decoding loop, token for token the same as `HFEngine`."""

    def __init__(self, vlm: VLM, poll: Callable[[], None] = lambda: None) -> None:
        self.vlm, self.poll = vlm, poll

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of each request, in order.

        Whole requests are decoded together, up to `rows_per_call` rows.
        """
        groups: list[tuple[Rollout, ...]] = []
        part: list[RolloutRequest] = []
        for request in requests:
            if part and sum(len(r.siblings) for r in [*part, request]) > sampling.rows_per_call:
                groups += self._call(part, sampling)
                part = []
            part.append(request)
        return groups + (self._call(part, sampling) if part else [])

    @torch.no_grad()
    def _call(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        group = [g for g, request in enumerate(requests) for _ in request.siblings]
        with eval_mode(self.vlm.model):
            rows, values = self._decode(requests, group, sampling)
        stop, row = set(self.vlm.stop_ids), iter(rows)
        value = iter(values if sampling.log_probs else [None] * len(rows))
        return [
            tuple(to_rollout(next(row), stop, s, r.attempt, next(value)) for s in r.siblings)
            for r in requests
        ]

    def _decode(
        self, requests: Sequence[RolloutRequest], group: list[int], sampling: Sampling
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids of every row up to its end of turn, and log-probabilities on request."""
        vlm = self.vlm
        decoder = Decoder(vlm, [r.prompt for r in requests], group)
        sampler = self._sampler(requests, sampling)
        head, stop = vlm.head(vlm.vocabulary_size), set(vlm.stop_ids)
        rows: list[list[int]] = [[] for _ in group]
        values: list[list[float]] = [[] for _ in group]
        alive, done, wasted = list(range(len(group))), [False] * len(group), 0
        running = len(group)
        for _ in range(sampling.max_new_tokens):
            self.poll()
            chosen = sampler.choose(head.logits(decoder.states()))
            for row, token in zip(alive, chosen.tolist(), strict=True):
                if not done[row]:
                    rows[row].append(token)
                    done[row] = token in stop
            if sampler.log_probs is not None:  # `to_rollout` cuts off those of finished rows
                for row, value in zip(alive, sampler.log_probs.pop().tolist(), strict=True):
                    values[row].append(value)
            decoder.append(chosen)
            left = [index for index, row in enumerate(alive) if not done[row]]
            count_done(RESPONSES, running - len(left))
            running = len(left)
            if not left:
                break
            wasted += len(alive) - len(left)
            if wasted >= WASTED_STEPS * len(alive):
                wasted = 0
                alive = [alive[index] for index in left]
                decoder.keep(torch.tensor(left, device=vlm.device))
                sampler.keep(left)
        count_done(RESPONSES, running)
        return rows, values

    def _sampler(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> KeyedSampler:
        """The sampler with the keyed noise of each row."""
        vlm = self.vlm
        seeds = [
            rollout_seed(sampling.seed, sampling.step, r.key, s, r.attempt)
            for r in requests
            for s in r.siblings
        ]
        return KeyedSampler(
            seeds,
            sampling.temperature,
            sampling.top_p,
            banned_ids(vlm),
            vlm.vocabulary_size,
            log_probs=sampling.log_probs,
        )
