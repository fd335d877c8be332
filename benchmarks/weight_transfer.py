"""A row of `make bench` on the way of weights to vLLM, without vLLM: shared memory and all checks.

Both sides work one after the other, as in a run, so one process measures both.
"""

import socket
import time

import torch

from vistill.rollouts.vllm_memory import share, tensors_in
from vistill.rollouts.vllm_messages import receive, send
from vistill.rollouts.vllm_update import digest_of, spec_of, update_problem

#: Weights in bf16, 32 MB each.
WEIGHTS, NUMBERS = 8, 1 << 24


def transfer_rows(row, repeats):
    """Measure sharing, sending and both sides' checks over a plain copy of the same weights."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"layers.{i}": torch.randn(NUMBERS, generator=generator).bfloat16() for i in range(WEIGHTS)
    }
    copied = min(seconds(lambda: [x.clone() for x in weights.values()]) for _ in range(repeats))
    moved = min(seconds(lambda: transfer(weights)) for _ in range(repeats))
    size = sum(x.nbytes for x in weights.values()) >> 20
    reference = f"a copy of {size} MiB of bf16; digests and finite numbers on both sides, one core"
    return [row("weight_transfer_over_copy", moved / copied, "ratio", reference)]


def seconds(function):
    """Processor seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def transfer(weights):
    """What `vllm_engine` and `vllm_worker` do with weights before vLLM loads them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        block, sent = share(weights)
        digest = digest_of(sent)
        assert update_problem(sent, spec_of(weights)) is None
        with block:
            send(ours, {"digest": digest}, shared=block)
        message, blocks = receive(theirs)
        arrived = tensors_in(blocks[-1], spec_of(weights))
        assert update_problem(arrived, spec_of(weights)) is None
        assert digest_of(arrived) == message["digest"]
