"""Rows of `make bench` about sampling: the cost of noise, and how often the host must wait.

Both kinds of noise run in one process with one thread, at the sizes of a step of a published model.
"""

import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vistill import load
from vistill.data.diagrams import diagram_prompts
from vistill.rollouts.counter_noise import CounterSampler, nucleus
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.keyed_noise import NUCLEUS_CANDIDATES, GeneratorSampler
from vistill.rollouts.shared import BLOCK_TOKENS, SharedEngine

ROWS = 64
TEMPERATURE = 0.7
#: Operations for which the host of an accelerator waits.
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount")


class HostWaits(TorchDispatchMode):
    """Counts the operations for which the host of an accelerator waits, on any device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        to_host = name == "aten::_to_copy" and str((kwargs or {}).get("device")) == "cpu"
        self.count += to_host or any(part in name for part in WAITING)
        return function(*args, **(kwargs or {}))


def best_seconds(functions, repeats):
    """The best wall-clock seconds of each function, measured in turns."""
    best = {name: float("inf") for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def peaked_logits(vocabulary):
    """Logits of rows that are nearly sure of a few tokens, as those of a trained model."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(ROWS, vocabulary, generator=g)
    likely = torch.randint(0, vocabulary, (ROWS, 4), generator=g)
    return logits.scatter_add(1, likely, torch.tensor([18.0, 17.0, 16.0, 14.0]).expand(ROWS, -1))


def noise_seconds(vocabulary, repeats):
    """Seconds per token of noise and of whole choices, for both kinds of noise."""
    logits = peaked_logits(vocabulary)
    samplers = {
        (kind, top_p): sampler(range(ROWS), TEMPERATURE, top_p, [0], vocabulary)
        for kind, sampler in (("generator", GeneratorSampler), ("counter", CounterSampler))
        for top_p in (0.95, 1.0)
    }
    counter = samplers["counter", 0.95]
    values, ids, _ = nucleus(logits / TEMPERATURE, 0.95, NUCLEUS_CANDIDATES)
    functions = {
        "generator": lambda: logits + samplers["generator", 1.0].gumbel(logits),
        "nucleus": lambda: values + counter.gumbel(ids),
        "inverse": lambda: samplers["counter", 1.0].invert(logits),
    }
    functions |= {
        key: lambda sampler=sampler: sampler.choose(logits.clone())
        for key, sampler in samplers.items()
    }
    return best_seconds(functions, repeats)


def host_waits_per_token(tokens=257):
    """How often the host waits per token of a row, in blocks as on a CUDA device.

    The difference between two lengths: reading the prompts does not count. Rows that end are
    dropped, which counts.
    """
    student = load("vistill:student", device="cpu")
    prompts = diagram_prompts("train", 4, 0)
    requests = make_requests(prompts, [student.encode(p) for p in prompts], range(4))
    counts = {}
    for length in (1, tokens):
        engine = SharedEngine(student, block_tokens=BLOCK_TOKENS["cuda"])
        sampling = Sampling(0, 0, 3.0, 0.95, length, noise="counter")
        with HostWaits() as waits:
            out = engine.generate(requests, sampling)
        counts[max(len(r.ids) for group in out for r in group)] = waits.count
    (short, few), (long, many) = sorted(counts.items())
    return (many - few) / (long - short), long


def rollout_rows(row, repeats, vocabulary):
    """Noise over the noise of CPU generators, choices over theirs, and waits of the host."""
    times = noise_seconds(vocabulary, repeats)
    about = f"{ROWS} rows, {vocabulary:,} tokens, peaked logits"
    waits, length = host_waits_per_token()
    return [
        row(
            "noise_over_cpu_gumbel",
            times["nucleus"] / times["generator"],
            "ratio",
            f"Gumbel noise on the nucleus (top_p .95) over all tokens; {about}; limit 1/10",
        ),
        row(
            "noise_over_cpu_gumbel_at_top_p_1",
            times["inverse"] / times["generator"],
            "ratio",
            f"softmax and inverse distribution over noise of CPU generators; {about}",
        ),
        row(
            "choice_over_generator_choice",
            times["counter", 0.95] / times["generator", 0.95],
            "ratio",
            f"a whole choice, nucleus included; {about}",
        ),
        row(
            "choice_over_generator_choice_at_top_p_1",
            times["counter", 1.0] / times["generator", 1.0],
            "ratio",
            f"a whole choice; {about}",
        ),
        row(
            "host_syncs_per_token",
            waits,
            "1/token",
            f"in blocks of {BLOCK_TOKENS['cuda']}, counted over {length} tokens; limit 1/32",
        ),
    ]
