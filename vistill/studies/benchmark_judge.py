"""The verdicts that the results of a benchmark count: by rule, or by a language model."""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge
from vistill.errors import ConfigError
from vistill.evaluation.benchmarks.benchmark import Benchmark
from vistill.evaluation.benchmarks.judge_prompts import JUDGED
from vistill.evaluation.benchmarks.lm_judge import (
    LMJudge,
    judge_results,
    judged_samples,
    open_judge,
)
from vistill.evaluation.benchmarks.protocols import Protocol
from vistill.evaluation.benchmarks.sample_failures import count_failures, read_failures
from vistill.evaluation.benchmarks.sample_log import Sample, read_samples
from vistill.training.recipe import Recipe


def judge_of(
    recipe: Recipe, names: Collection[str], protocol: str, retry: Collection[str]
) -> LMJudge | None:
    """The language model that judges, or None where the settings name none.

    Args:
        recipe: with `eval.judge`, and the folder `run`, whose `samples` keep the verdicts.
        names: of the benchmarks.
        protocol: its name.
        retry: codes of failures that are asked again.

    Raises:
        ConfigError: C101, no benchmark of the request is judged by one under the protocol.
    """
    own, folder = recipe.eval, Path(recipe.run) / "samples"
    lm = open_judge(own.judge, own.judge_model, own.judge_limit, folder, retry)
    if lm is not None and not set(names) & set(JUDGED.get(protocol, ())):
        judged = ", ".join(JUDGED.get(protocol, ())) or "no benchmark"
        raise ConfigError(
            "C101",
            f"eval.judge is given, and no benchmark named is judged by a model under {protocol}",
            why=f"under this protocol a model judges {judged}; others are judged by rule",
            fix="eval.judge= eval.judge_model=",
            note="vistill rescore LOG --judge URL --judge-model NAME judges any log",
        )
    return lm


class CountedSamples:
    """The samples of a log that count, with their verdicts; what failed is counted."""

    def __init__(
        self, lm: LMJudge | None, benchmark: Benchmark, protocol: Protocol, log: Path
    ) -> None:
        is_judged = benchmark.name in JUDGED.get(protocol.name, ())
        self.lm = lm if is_judged else None
        self.benchmark, self.protocol, self.log = benchmark, protocol, log
        self.failures: Counter[str] = Counter()

    @property
    def rule(self) -> str:
        """What judged, if it is not the benchmark's own rule."""
        return self.lm.name if self.lm else ""

    def read(self, rows: Collection[str], math: MathJudge) -> Iterator[Sample]:
        """The samples of rows, one at a time."""
        failed = read_failures(self.log).values()
        self.failures = count_failures(failed, self.protocol.samples, rows)
        stored = read_samples(self.log, self.benchmark.rules)
        samples = (sample for sample in stored if sample.row.id in rows)
        how: tuple[Take, MathJudge] = self.protocol.take, math
        return judged_samples(self.lm, self.benchmark, samples, how, self.failures)

    def results(self) -> dict[str, Any]:
        """What the results say about judge and failures, after the samples are read."""
        return judge_results(self.lm, self.failures)
