"""How a mode of a protocol is sampled, and how a response becomes a judged sample."""

from vistill.answers.math_process import MathJudge
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow
from vistill.evaluation.benchmarks.protocols import SAMPLED, Protocol, decoding_of
from vistill.evaluation.benchmarks.sample_log import Sample, new_sample
from vistill.evaluation.benchmarks.sources import picture_digests
from vistill.rollouts.engine import Sampling
from vistill.rollouts.settings import NoiseName
from vistill.types import Prompt, Rollout


def sampling_of(
    protocol: Protocol, mode: str, seed: int, rows_per_call: int, noise: NoiseName
) -> Sampling:
    """The sampling parameters of a mode: greedy, or those of the protocol."""
    is_sampled = decoding_of(mode) == SAMPLED
    temperature = protocol.temperature if is_sampled else 0.0
    top_p = protocol.top_p if is_sampled else 1.0
    length = protocol.max_new_tokens
    return Sampling(seed, 0, temperature, top_p, length, rows_per_call, noise=noise)


def judged_sample(
    benchmark: Benchmark,
    protocol: Protocol,
    math: MathJudge,
    asked: tuple[BenchmarkRow, Prompt, Prompt],
    mode: str,
    answered: tuple[Rollout, str, float],
) -> Sample:
    """The sample of a response with the verdicts of the benchmark's rules.

    Args:
        benchmark: its rules.
        protocol: which answer of a response counts.
        math: compares formulas.
        asked: row, its prompt, and the prompt as the mode shows it.
        mode: `greedy`, `sampled`, or a blind one.
        answered: tokens, text and seconds of the response.
    """
    row, prompt, seen = asked
    text = answered[1]
    verdicts = {
        name: rule(text, row, protocol.take, math) for name, rule in benchmark.rules.items()
    }
    pictures = picture_digests(seen)
    return new_sample((row, prompt.content, prompt.text), pictures, mode, answered, verdicts)
