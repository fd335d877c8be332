"""The default engine: it encodes each prompt once and drops finished rows from the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vistill.models.decoding import Decoder
from vistill.models.loading import VLM
from vistill.phases import RESPONSES, count_done
from vistill.rollouts.engine import InProcessEngine, Receive, RolloutRequest, Sampling
from vistill.rollouts.hf import eval_mode, to_rollout
from vistill.rollouts.samplers import make_sampler
from vistill.rollouts.weight_copy import WeightCopy
from vistill.types import Rollout

#: Drop finished rows once they have cost this many decoding steps of the whole batch. Dropping
#: copies the cache, which costs about as much.
WASTED_STEPS = 2.0
#: A graph is captured anew when rows leave, so they leave when this share of the rows is left.
GRAPH_SHARE = 0.75
#: Tokens per row that a device writes before the host reads them. A row that ends inside a block
#: is computed up to the end of the block. On a CPU the host never waits.
BLOCK_TOKENS = {"cuda": 32}


class SharedEngine(InProcessEngine):
    """Generates rollouts by our decoding loop, token for token the same as `HFEngine`.

    Args:
        vlm: the model that writes.
        poll: called once per block of tokens.
        block_tokens: tokens per row that the device writes before the host reads them; default: by
            device. The responses do not depend on it.
        uses_copy: write with a copy of the weights in bf16. It follows the model, and exists only
            while the engine is awake.
        uses_graph: decode with static shapes, which a CUDA device replays as a graph.
    """

    def __init__(
        self,
        vlm: VLM,
        poll: Callable[[], None] = lambda: None,
        block_tokens: int | None = None,
        *,
        uses_copy: bool = False,
        uses_graph: bool = False,
    ) -> None:
        self.vlm, self.poll, self.uses_graph = vlm, poll, uses_graph
        self.copy = WeightCopy(vlm) if uses_copy else None
        self.block_tokens = block_tokens or BLOCK_TOKENS.get(vlm.device.type, 1)
        self.receive: Receive | None = None
        self.received: set[int] = set()  # the groups of this call that were passed on

    def generate_groups(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, receive: Receive
    ) -> list[tuple[Rollout, ...]]:
        """The same as `generate`; `receive` gets groups that are complete before others.

        A group is passed on when all its responses have ended, and one with a response that was cut
        off after its call, unless that is the last one.
        """
        self.receive = receive
        try:
            return self.generate(requests, sampling)
        finally:
            self.receive = None

    @property
    def writer(self) -> VLM:
        """The model that writes: the copy, or the model itself."""
        return self.vlm if self.copy is None else self.copy.vlm

    @property
    def copied_weight_bytes(self) -> int | None:
        """Bytes of a weight of the copy; None without a copy."""
        return None if self.copy is None else torch.bfloat16.itemsize

    def sleep(self) -> None:
        """Free the copy of the weights."""
        if self.copy is not None:
            self.copy.free()

    def close(self) -> None:
        """Free the copy of the weights."""
        self.sleep()

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of each request, in order.

        Whole requests are decoded together, up to `rows_per_call` rows.
        """
        if self.copy is not None:
            self.copy.refresh()
        groups: list[tuple[Rollout, ...]] = []
        part: list[RolloutRequest] = []
        for request in requests:
            if part and sum(len(r.siblings) for r in [*part, request]) > sampling.rows_per_call:
                done = self._call(part, sampling)
                self._pass_on_rest(part, done)
                groups, part = groups + done, []
            part.append(request)
        return groups + (self._call(part, sampling) if part else [])

    def _pass_on_rest(
        self, requests: Sequence[RolloutRequest], groups: Sequence[tuple[Rollout, ...]]
    ) -> None:
        """Pass on the groups of a call that were not passed on while it wrote."""
        if self.receive is not None:
            for g, (request, group) in enumerate(zip(requests, groups, strict=True)):
                if g not in self.received:
                    self.receive(request, group)

    @torch.no_grad()
    def _call(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        group = [g for g, request in enumerate(requests) for _ in request.siblings]
        with eval_mode(self.writer.model):
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
        vlm = self.writer
        blocks = TokenBlocks(
            vlm, requests, group, sampling, self.block_tokens, is_static=self.uses_graph
        )
        stop = set(self.vlm.stop_ids)
        rows: list[list[int]] = [[] for _ in group]
        values: list[list[float]] = [[] for _ in group]
        alive, done, wasted = list(range(len(group))), [False] * len(group), 0
        running, written = len(group), 0
        self.received = set()
        while running and written < sampling.max_new_tokens:
            self.poll()
            ids, log_probs = blocks.write(sampling.max_new_tokens - written)
            written += len(ids[0])
            for row, tokens in zip(alive, ids, strict=True):
                if not done[row]:
                    end = next((n for n, token in enumerate(tokens) if token in stop), None)
                    rows[row] += tokens if end is None else tokens[: end + 1]
                    done[row] = end is not None
            for row, numbers in zip(alive, log_probs, strict=False):
                values[row] += numbers  # `to_rollout` cuts off those after the end of turn
            left = [index for index, row in enumerate(alive) if not done[row]]
            if self.receive is not None and len(left) < running:
                for g in finished_groups(group, done, self.received):
                    request, of_group = requests[g], [i for i, h in enumerate(group) if h == g]
                    rollouts = (
                        to_rollout(rows[i], stop, s, request.attempt, values[i] or None)
                        for i, s in zip(of_group, request.siblings, strict=True)
                    )
                    self.receive(request, tuple(rollouts))
            count_done(RESPONSES, running - len(left))
            running = len(left)
            wasted += (len(alive) - len(left)) * len(ids[0])
            is_worth_it = not self.uses_graph or len(left) <= GRAPH_SHARE * len(alive)
            if left and wasted >= WASTED_STEPS * len(alive) and is_worth_it:
                wasted = 0
                alive = [alive[index] for index in left]
                blocks.keep(left)
        count_done(RESPONSES, running)
        return rows, values


def finished_groups(group: Sequence[int], done: Sequence[bool], received: set[int]) -> list[int]:
    """The groups whose rows are all done and that were not received before; they are now."""
    writing = {g for g, is_done in zip(group, done, strict=True) if not is_done}
    finished = sorted({*group} - writing - received)
    received.update(finished)
    return finished


class TokenBlocks:
    """Writes the next tokens of all rows, block by block. The host waits once per block."""

    def __init__(
        self,
        vlm: VLM,
        requests: Sequence[RolloutRequest],
        group: list[int],
        sampling: Sampling,
        size: int,
        *,
        is_static: bool = False,
    ) -> None:
        self.size = size
        self.decoder = Decoder(vlm, [r.prompt for r in requests], group, is_static=is_static)
        self.sampler = make_sampler(vlm, requests, sampling)
        self.head = vlm.head(vlm.vocabulary_size)
        self.sampler.waits = self.size == 1

    def write(self, most: int) -> tuple[list[list[int]], list[list[float]]]:
        """At least one and at most `most` tokens of each row, and log-probabilities on request."""
        before, chosen = self.decoder.ids, []
        for _ in range(min(self.size, most)):
            chosen.append(self.sampler.choose(self.head.logits(self.decoder.states())))
            self.decoder.append(chosen[-1])
        ids, complete = torch.stack(chosen, 1), self.sampler.num_complete()
        if complete is not None:  # together, so that the host waits once
            ids = torch.cat([ids, complete.expand(len(ids), 1)], 1)
        host_ids = to_host(ids)
        if complete is not None:
            exact = host_ids[0][-1]
            host_ids = [row[:exact] for row in host_ids]
            if exact < len(chosen):
                self.decoder.rewind(len(chosen) - exact, chosen[exact - 1] if exact else before)
                self.sampler.rewind(len(chosen) - exact)
                if not exact:
                    return self.write(most)
        log_probs = self.sampler.log_probs
        if not log_probs:
            return host_ids, []
        host_values = to_host(torch.stack(log_probs, 1))
        log_probs.clear()
        return host_ids, host_values

    def keep(self, rows: list[int]) -> None:
        """Continue with some of the rows."""
        self.decoder.keep(rows)
        self.sampler.keep(rows)


def to_host(x: torch.Tensor) -> list[list[Any]]:
    """The rows of a matrix as lists: the only place where the host waits for decoded tokens."""
    return x.to("cpu", copy=True).tolist()
