"""One decoding step with static shapes and addresses, so that a CUDA graph can replay it.

A step of a real model starts some 1,600 kernels, and a GPU waits for the host that starts them. A
graph starts them at once. It needs the same tensors at every step: the row cache has a fixed
capacity whose unused part is masked, and the place of the next token is a number on the device. A
graph is captured anew when rows leave and when the capacity grows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.errors import RolloutError
from vistill.flops_counter import is_counting
from vistill.models.decode_attention import DecodeAttention

#: Tokens by which the capacity grows. Attention reads the whole capacity, and growing captures the
#: step anew.
STATIC_TOKENS = 256
#: Steps before a capture, on another stream: libraries allocate what they need in them.
WARM_UP = 2

Step = Callable[[Tensor, Tensor, DecodeAttention], Tensor]


@dataclass
class StaticAttention(DecodeAttention):
    """Attention over the whole capacity of the row cache. Tokens that do not exist are masked."""

    block: int = STATIC_TOKENS
    """Tokens by which the capacity grows."""
    length: Tensor = field(init=False)
    """Number of tokens in the cache, [1], on the device."""
    own_mask: Tensor = field(init=False)
    """0 up to the newest token, then -inf, [capacity]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        device = self.prompt_values.device
        self.length = torch.zeros(1, dtype=torch.long, device=device)
        self.own_mask = torch.empty(0, device=device)

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold now."""
        return len(self.own_mask)

    def grow(self) -> bool:
        """Grow the cache if the next token does not fit. Say whether addresses have changed."""
        if self.num_added < self.capacity:
            return False
        used, capacity = self.capacity, self.capacity + self.block
        self.own_mask = self.own_mask.new_empty(capacity)
        for layer, (_, prompt_values) in self.prompt_cache.items():
            shape = (len(self.group), prompt_values.shape[1], capacity, prompt_values.shape[3])
            # zeros: a weight of 0 times an undefined value could be NaN
            pair = prompt_values.new_zeros(shape), prompt_values.new_zeros(shape)
            for larger, cache in zip(pair, self.row_cache.get(layer, ()), strict=False):
                larger[:, :, :used] = cache
            self.row_cache[layer] = pair
        return True

    def write_mask(self) -> None:
        """The mask of this step; part of the graph."""
        column = torch.arange(self.capacity, device=self.own_mask.device)
        self.own_mask.zero_().masked_fill_(column > self.length, -torch.inf)

    def own_scores(
        self, query: Float[Tensor, "B rep d"], keys: Float[Tensor, "B T d"]
    ) -> Float[Tensor, "B rep T"]:
        """Scores of the queries and the keys of their own response, masked."""
        return super().own_scores(query, keys).add_(self.own_mask)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token per row. Return the whole cache [B, capacity, d]."""
        pair = self.row_cache[layer]
        with any_kernel():
            for cache, new in zip(pair, (key, value), strict=True):
                cache.index_copy_(2, self.length, new[:, :, None])
        keys, values = (cache.flatten(0, 1) for cache in pair)
        return keys, values


@contextmanager
def any_kernel() -> Iterator[None]:
    """Inside, torch need not take deterministic kernels: one index is written, in no order.

    The setting is that of the process, so nothing else may compute meanwhile: a recipe with
    `train.overlap` and `rollout.cuda_graph` is refused (C101).
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


class StaticStep:
    """Runs a decoder step from buffers of fixed addresses: replayed on CUDA, called elsewhere."""

    def __init__(self, step: Step, attention: StaticAttention, axes: int) -> None:
        self.step, self.attention, self.axes = step, attention, axes
        self.pool = torch.cuda.graph_pool_handle() if attention.length.is_cuda else None
        self.num_captures = 0
        self.replay: Callable[[], Tensor] | None = None

    def forget(self) -> None:
        """Capture anew at the next call: rows have left."""
        self.replay = None

    def __call__(
        self, ids: Int[Tensor, " N"], positions: Int[Tensor, " N"], last_position: int
    ) -> Float[Tensor, "N H"]:
        """Hidden states of the newest token of each row.

        Args:
            ids: newest token of each row.
            positions: their positions, the same on all axes.
            last_position: the largest one.
        """
        attention = self.attention
        if attention.grow():
            self.replay = None
        if self.replay is None:
            self.ids, self.positions = ids.clone(), positions.clone()
            # a table of angles must hold all positions that this capacity will have
            attention.last_position = last_position + attention.capacity - attention.num_added
            attention.length.fill_(attention.num_added)
            self.replay = self.capture()
            self.num_captures += 1
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        attention.length.fill_(attention.num_added)
        run = self.run if is_counting() else self.replay  # a replay calls no Python
        return run().clone()

    def run(self) -> Tensor:
        """The step: everything that a graph holds."""
        self.attention.write_mask()
        positions = self.positions.expand(self.axes, -1)
        return self.step(self.ids, positions, self.attention)

    def capture(self) -> Callable[[], Tensor]:
        """What replays the step and returns its hidden states.

        Raises:
            RolloutError: R416, the step cannot be captured as a CUDA graph.
        """
        if self.pool is None:
            return self.run
        try:
            return self.capture_graph()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise capture_error(error) from error

    def capture_graph(self) -> Callable[[], Tensor]:
        """Warm up on another stream, then capture. Both write the same token again."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # threads that encode the next step may pin memory meanwhile (`train.workers`)
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            hidden = self.run()

        def replay() -> Tensor:
            graph.replay()
            return hidden  # the graph's own, also after steps that ran without it

        return replay


def capture_error(error: RuntimeError) -> RolloutError:
    """R416."""
    return RolloutError(
        "R416",
        "a decoding step cannot be captured as a CUDA graph",
        where="rollout.cuda_graph=true",
        why=" ".join(str(error).split())[:300],
        fix="rollout.cuda_graph=false",
    )
