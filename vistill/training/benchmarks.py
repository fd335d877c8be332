"""Benchmarks that a run evaluates on the way (`eval.tasks`): fixed rows, the same noise each time.

The student is asked with an engine of its own and keyed noise, so training keeps its bits.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

from vistill.answers.math_process import MathJudge, shared_judge
from vistill.evaluation.benchmarks.asking import judged_sample, sampling_of
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow
from vistill.evaluation.benchmarks.catalogue import find_benchmarks, naming_settings
from vistill.evaluation.benchmarks.measuring import measure_signals
from vistill.evaluation.benchmarks.protocols import (
    Protocol,
    find_protocol,
    view_of,
    with_blind,
)
from vistill.evaluation.benchmarks.results import Wanted, task_results
from vistill.evaluation.benchmarks.sample_log import KIND, VERSION, Sample
from vistill.evaluation.benchmarks.sources import make_prompts, read_benchmark
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import VLM
from vistill.phases import EVALUATING, RESPONSES, open_phase
from vistill.rollouts.engine import RolloutEngine, RolloutRequest
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json
from vistill.training.checks.check import TRAINING_PURPOSES, StartCheck
from vistill.types import Prompt, View
from vistill.views import apply_view

if TYPE_CHECKING:
    from vistill.training.plan import Plan
    from vistill.training.setup import RunSetup


@dataclass(frozen=True)
class BenchmarkPart:
    """The rows of a benchmark that every evaluation of a run asks."""

    benchmark: Benchmark
    protocol: Protocol
    """With the length of `eval.max_new_tokens`, if that is smaller."""
    pairs: Sequence[tuple[BenchmarkRow, Prompt]]
    num_failed: int = 0
    """Rows that cannot be read."""

    @property
    def num_responses(self) -> int:
        """Responses of one evaluation."""
        counts = self.protocol.samples
        return sum(len(self.pairs_of(mode)) * count for mode, count in counts.items())

    def pairs_of(self, mode: str) -> Sequence[tuple[BenchmarkRow, Prompt]]:
        """The rows of a mode: all, or of a blind one those with a picture."""
        if view_of(mode) == View.FULL:
            return self.pairs
        return [pair for pair in self.pairs if pair[1].images]

    def wanted(self) -> Wanted:
        """What is to be asked."""
        is_blind = any(view_of(mode) != View.FULL for mode in self.protocol.samples)
        blind_rows = sum(bool(prompt.images) for _, prompt in self.pairs) if is_blind else None
        return Wanted(len(self.pairs), blind_rows)

    def key(self) -> float:
        """Hash of rows and protocol; figures with different hashes do not compare."""
        contents = [[row.id, row.answer, prompt.content] for row, prompt in self.pairs]
        asked = [dict(self.protocol.samples), self.protocol.max_new_tokens, self.protocol.take]
        return float(crc32(json.dumps([contents, asked]).encode()))


def read_benchmarks(setup: "RunSetup") -> str:
    """Read the rows of `eval.tasks` (C105, D101, D102)."""
    settings, data = setup.recipe.eval, setup.recipe.located().data
    if not settings.tasks or not settings.every:
        return "none"
    named = find_protocol(settings.task_protocol)
    protocol = replace(named, max_new_tokens=min(named.max_new_tokens, settings.max_new_tokens))
    protocol = with_blind(protocol) if settings.task_blind else protocol
    parts = []
    with naming_settings():
        for benchmark in find_benchmarks(settings.tasks):
            folder = settings.task_folder()
            rows = read_benchmark(benchmark, folder, protocol.name, settings.task_limit)
            pairs, failed = make_prompts(rows, protocol, data)
            parts.append(BenchmarkPart(benchmark, protocol, pairs, len(rows.failed) + len(failed)))
    setup.benchmarks = parts
    shown = (f"{one.benchmark.name} {len(one.pairs):,} rows" for one in parts)
    return f"{', '.join(shown)}; {protocol.name}, at most {protocol.max_new_tokens:,} tokens"


BENCHMARK_CHECK = StartCheck(
    "benchmarks", "the benchmarks of eval.tasks can be read", read_benchmarks, TRAINING_PURPOSES
)


def evaluate_benchmarks(
    plan: "Plan",
    folder: RunFolder,
    step: int,
    engine: RolloutEngine,
    run_halving: Callable[..., list[Sample]],
) -> dict[str, float]:
    """Ask every benchmark of the run, write the samples, and return the figures.

    Figures: `benchmark/NAME/accuracy` (its headline) with interval, rows and shares of the first
    mode of the protocol, and `benchmark/NAME/MODE/METRIC` for every metric, with
    `.../gap/METRIC` of a blind mode.

    Args:
        plan: of the run.
        folder: gets `samples/step-000100.NAME.PROTOCOL.jsonl`, which `vistill rescore` reads.
        step: of the evaluation.
        engine: writes the student's responses.
        run_halving: runs an attempt again with fewer rows per call where memory runs out.
    """
    facts: dict[str, float] = {}
    with shared_judge() as math:
        for part in plan.benchmarks:
            asker = TaskAsker(plan.models.student, engine, plan.evaluation, math)
            samples = asker.ask(part, run_halving)
            name = f"samples/step-{step:06d}.{part.benchmark.name}.{part.protocol.name}.jsonl"
            folder.write(name, log_text(plan, part, f"student of step {step}", samples))
            facts |= figures_of(part, samples)
    return facts


@dataclass(frozen=True)
class TaskAsker:
    """The student as it is, and how it is asked."""

    vlm: VLM
    engine: RolloutEngine
    settings: EvalSettings
    math: MathJudge

    def ask(self, part: BenchmarkPart, run_halving: Callable[..., list[Sample]]) -> list[Sample]:
        """All samples of a benchmark."""
        samples: list[Sample] = []
        for mode, count in part.protocol.samples.items():
            responses = count * len(part.pairs_of(mode))
            if not responses:  # a blind mode of rows without pictures
                continue
            most = min(self.settings.rows_per_call, responses)

            def size(times: int, most: int = most) -> int:
                return max(1, most >> times)

            def attempt(
                times: int, mode: str = mode, count: int = count, most: int = most
            ) -> list[Sample]:
                return list(self.samples(part, mode, count, max(1, most >> times)))

            title = f"{EVALUATING} {part.benchmark.name} {mode}"
            with open_phase(title, responses, RESPONSES):
                samples += run_halving("evaluate", size, attempt)
        return samples

    def samples(
        self, part: BenchmarkPart, mode: str, count: int, rows_per_call: int
    ) -> Iterator[Sample]:
        """The judged samples of one mode."""
        own = self.settings
        sampling = sampling_of(part.protocol, mode, own.seed, rows_per_call, own.noise)
        per_call = max(1, rows_per_call // count)
        every = part.pairs_of(mode)
        for start in range(0, len(every), per_call):
            pairs = every[start : start + per_call]
            shown = [apply_view(prompt, view_of(mode)) for _, prompt in pairs]
            requests = [
                RolloutRequest(p.id, self.vlm.encode(p), tuple(range(count)), source=p)
                for p in shown
            ]
            begin = time.perf_counter()
            groups = self.engine.generate(requests, sampling)
            seconds = (time.perf_counter() - begin) / (len(pairs) * count)
            for (row, prompt), seen, rollouts in zip(pairs, shown, groups, strict=True):
                measured: Sequence[Any] = [None] * count
                if own.signals:
                    measured = measure_signals(self.vlm, prompt, mode, rollouts)
                for rollout, signals in zip(rollouts, measured, strict=True):
                    answered = rollout, self.vlm.decode(rollout.ids), seconds
                    asked = row, prompt, seen
                    sample = judged_sample(
                        part.benchmark, part.protocol, self.math, asked, mode, answered
                    )
                    yield replace(sample, signals=signals)


def log_text(plan: "Plan", part: BenchmarkPart, model: str, samples: Sequence[Sample]) -> str:
    """The samples as a log that `vistill rescore` reads, without seconds, which always differ."""
    protocol, wanted = part.protocol, part.wanted()
    asked = {"rows": len(part.pairs), "samples": dict(protocol.samples)}
    if wanted.blind_rows is not None:
        asked["blind_rows"] = wanted.blind_rows
    header = {
        "log": KIND,
        "version": VERSION,
        "task": part.benchmark.name,
        "protocol": protocol.name,
        "model": model,
        "seed": plan.evaluation.seed,
        "noise": plan.evaluation.noise,
        "temperature": protocol.temperature,
        "top_p": protocol.top_p,
        "max_new_tokens": protocol.max_new_tokens,
        "take": protocol.take,
        "asked": asked,
    }
    lines = [header, *(replace(sample, seconds=0.0).to_dict() for sample in samples)]
    return "".join(to_json(line) + "\n" for line in lines)


def figures_of(part: BenchmarkPart, samples: Sequence[Sample]) -> dict[str, float]:
    """The figures of one benchmark."""
    name, counts = f"benchmark/{part.benchmark.name}", part.protocol.samples
    results = task_results(part.benchmark, samples, counts, wanted=part.wanted())
    facts = {f"{name}/key": part.key(), f"{name}/failed_rows": float(part.num_failed)}
    for index, (mode, values) in enumerate(results["modes"].items()):
        facts |= {f"{name}/{mode}/{k}": score["value"] for k, score in values["metrics"].items()}
        gaps = values.get("gap", {}).get("metrics", {})
        facts |= {f"{name}/{mode}/gap/{k}": gap["value"] for k, gap in gaps.items()}
        means = values.get("signals", {}).get("means", {})
        facts |= {f"{name}/{mode}/{k}": mean["value"] for k, mean in means.items()}
        main = values["metrics"].get(part.benchmark.headline)
        if index or main is None:
            continue
        facts |= {
            f"{name}/accuracy": main["value"],
            f"{name}/accuracy_low": main["low"],
            f"{name}/accuracy_high": main["high"],
            f"{name}/rows": float(values["questions"]),
            f"{name}/unparsed_share": values["unparsed_share"],
            f"{name}/truncated_share": values["truncated_share"],
            f"{name}/tokens": values["tokens"],
        }
    return facts


def changed_benchmarks(earlier: Sequence[dict[str, float]], facts: dict[str, float]) -> list[str]:
    """The benchmarks whose rows or protocol differ from those of the evaluation before."""
    before = next((record for record in reversed(earlier)), {})
    keys = [key for key in facts if key.startswith("benchmark/") and key.endswith("/key")]
    return [key.split("/")[1] for key in keys if before.get(key, facts[key]) != facts[key]]
