"""Ask a model the rows of a benchmark: one call of the engine after another, judged and logged.

A response is stored when those of its row are complete.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vistill.answers.math_process import MathJudge
from vistill.errors import VistillError
from vistill.evaluation.benchmarks.asking import judged_sample, sampling_of
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow
from vistill.evaluation.benchmarks.lm_judge import LMJudge
from vistill.evaluation.benchmarks.measuring import measure_signals
from vistill.evaluation.benchmarks.protocols import Protocol, view_of
from vistill.evaluation.benchmarks.reducers import Reducer
from vistill.evaluation.benchmarks.sample_failures import (
    failures_of,
    is_of_one_sample,
    write_failures,
)
from vistill.faults import fault
from vistill.models.loading import VLM
from vistill.phases import EVALUATING, RESPONSES, open_phase
from vistill.rollouts.engine import GroupwiseEngine, Receive, RolloutEngine, RolloutRequest
from vistill.rollouts.settings import NoiseName
from vistill.runs.storage import append_line
from vistill.training.oom import MemoryRetry
from vistill.types import Prompt, Rollout, View
from vistill.views import apply_view

Asked = tuple[Prompt, tuple[int, ...]]
"""A prompt with its samples."""
ReceiveGroup = Callable[[str, tuple[Rollout, ...]], None]
"""Called with the id of a prompt and its responses."""


@dataclass(frozen=True)
class Asker:
    """A model with its engine, and how it is asked."""

    vlm: VLM
    engine: RolloutEngine
    protocol: Protocol
    seed: int
    rows_per_call: int
    math: MathJudge
    noise: NoiseName = "generator"
    """Where the sampling noise comes from (`eval.noise`)."""
    reducers: tuple[Reducer, ...] = ()
    lm: LMJudge | None = None
    """The language model that judges where the protocol's paper has one (`eval.judge`)."""
    retry: frozenset[str] = frozenset()
    signals: bool = False
    """Also measure the signals of each response (`eval.signals`)."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Of the last call: samples without a response."""

    def generate(self, asked: Sequence[Asked], mode: str, receive: ReceiveGroup) -> None:
        """Pass on the responses to prompts, each as soon as its own are complete.

        A prompt that has none is one of `failures`.

        Args:
            asked: prompts with the samples that are missing.
            mode: `greedy`, `sampled`, or a blind one.
            receive: called once per prompt, in any order.
        """
        received: set[str] = set()

        def pass_on(request: RolloutRequest, group: tuple[Rollout, ...]) -> None:
            if request.key not in received:
                received.add(request.key)
                receive(request.key, group)

        try:
            self.generate_together(asked, mode, received, pass_on)
        except VistillError as error:
            if not is_of_one_sample(error):
                raise
            if len(asked) == 1:
                self.failures.extend(failures_of(*asked[0], mode, error))
                return
            for one in asked:
                if one[0].id not in received:
                    self.generate([one], mode, receive)

    def measure(
        self, prompt: Prompt, mode: str, rollouts: Sequence[Rollout]
    ) -> list[dict[str, float | None]] | list[None]:
        """The signals of the responses to a prompt; with less memory in several calls."""
        if not self.signals:
            return [None] * len(rollouts)

        def size(halvings: int) -> int:
            return max(1, len(rollouts) >> halvings)

        def attempt(halvings: int) -> list[dict[str, float | None]]:
            step = size(halvings)
            parts = (rollouts[start : start + step] for start in range(0, len(rollouts), step))
            return [one for part in parts for one in measure_signals(self.vlm, prompt, mode, part)]

        return MemoryRetry().run_halving("score", size, attempt)

    def generate_together(
        self, asked: Sequence[Asked], mode: str, received: set[str], receive: Receive
    ) -> None:
        """Ask prompts in one call; with less memory in several, of what was not received."""
        requests = [
            RolloutRequest(prompt.id, self.vlm.encode(prompt), samples, source=prompt)
            for prompt, samples in asked
        ]
        sampling = sampling_of(self.protocol, mode, self.seed, self.rows_per_call, self.noise)

        def size(halvings: int) -> int:
            return max(1, sampling.rows_per_call >> halvings)

        def attempt(halvings: int) -> None:
            left = [request for request in requests if request.key not in received]
            smaller = replace(sampling, rows_per_call=size(halvings))
            if isinstance(self.engine, GroupwiseEngine):
                groups = self.engine.generate_groups(left, smaller, receive)
            else:
                groups = self.engine.generate(left, smaller)
            for request, group in zip(left, groups, strict=True):
                receive(request, group)

        MemoryRetry().run_halving("rollout", size, attempt)


def ask_benchmark(
    asker: Asker,
    benchmark: Benchmark,
    pairs: Sequence[tuple[BenchmarkRow, Prompt]],
    done: set[tuple[str, str, int]],
    log: Path,
) -> None:
    """Ask what the log lacks, and append verdicts row by row."""
    for mode, count in asker.protocol.samples.items():
        is_blind = view_of(mode) != View.FULL
        shown = [pair for pair in pairs if pair[1].images or not is_blind]
        left = missing_samples(shown, mode, count, done)
        total = sum(len(samples) for _, _, samples in left)
        per_call = max(1, asker.rows_per_call // count)
        with open_phase(f"{EVALUATING} {benchmark.name} {mode}", total, RESPONSES):
            for start in range(0, len(left), per_call):
                ask_call(asker, benchmark, left[start : start + per_call], mode, log)
                write_failures(log, asker.failures)
                fault("benchmark.after_call")


def missing_samples(
    pairs: Sequence[tuple[BenchmarkRow, Prompt]],
    mode: str,
    count: int,
    done: set[tuple[str, str, int]],
) -> list[tuple[BenchmarkRow, Prompt, tuple[int, ...]]]:
    """The rows with the samples that the log lacks."""
    wanted = [
        (row, prompt, tuple(i for i in range(count) if (row.id, mode, i) not in done))
        for row, prompt in pairs
    ]
    return [(row, prompt, samples) for row, prompt, samples in wanted if samples]


def ask_call(
    asker: Asker,
    benchmark: Benchmark,
    part: Sequence[tuple[BenchmarkRow, Prompt, tuple[int, ...]]],
    mode: str,
    log: Path,
) -> None:
    """One call of the engine; what is finished is judged and appended while it writes the rest."""
    shown = [apply_view(prompt, view_of(mode)) for _, prompt, _ in part]
    asked = {one[1].id: (*one[:2], seen) for one, seen in zip(part, shown, strict=True)}
    begin, seconds, writing = time.perf_counter(), 0.0, sum(len(one[2]) for one in part)
    unmeasured: list[tuple[str, tuple[Rollout, ...], float]] = []

    def store(prompt_id: str, rollouts: tuple[Rollout, ...], seconds: float) -> None:
        measured = asker.measure(asked[prompt_id][1], mode, rollouts)
        for rollout, signals in zip(rollouts, measured, strict=True):
            answered = (rollout, asker.vlm.decode(rollout.ids), seconds)
            how = (benchmark, asker.protocol, asker.math)
            sample = judged_sample(*how, asked[prompt_id], mode, answered)
            append_line(log, replace(sample, signals=signals).to_dict())

    def receive(prompt_id: str, rollouts: tuple[Rollout, ...]) -> None:
        nonlocal begin, seconds, writing
        # the samples in writing share the time equally, so the sum is that of the call
        seconds += (time.perf_counter() - begin) / max(1, writing)
        writing -= len(rollouts)
        if asker.signals:  # the model cannot score while the engine writes with it
            unmeasured.append((prompt_id, rollouts, seconds))
        else:
            store(prompt_id, rollouts, seconds)
        begin = time.perf_counter()

    asked_samples = [samples for _, _, samples in part]
    asker.generate(list(zip(shown, asked_samples, strict=True)), mode, receive)
    for one in unmeasured:
        store(*one)
