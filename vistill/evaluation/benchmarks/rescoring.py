"""Judge the samples of a log again, by the benchmark's rule or another checker."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge, shared_judge
from vistill.errors import StorageError
from vistill.evaluation.benchmarks.benchmark import Benchmark, by_checker
from vistill.evaluation.benchmarks.catalogue import find_benchmarks
from vistill.evaluation.benchmarks.results import task_results
from vistill.evaluation.benchmarks.sample_log import (
    Sample,
    read_header,
    read_samples,
    verdict_dict,
)
from vistill.runs.storage import append_line


def logs_of(path: Path) -> list[Path]:
    """A log, or the logs of a run folder.

    Raises:
        StorageError: S605, there is none.
    """
    if path.is_file():
        return [path]
    logs = sorted((path / "samples").glob("*.*.jsonl"))
    if not logs:
        raise StorageError(
            "S605",
            f"there is no log of samples in {path}",
            where=str(path),
            why="vistill eval --tasks writes RUN/samples/TASK.PROTOCOL.jsonl",
            fix="name such a file, or the run folder that holds it",
        )
    return logs


def judge_again(
    benchmark: Benchmark, sample: Sample, checker: str, take: Take, math: MathJudge
) -> Sample:
    """A sample with new verdicts; a checker decides in place of every rule of the benchmark."""
    rules = benchmark.rules
    if checker:
        verdict = by_checker(checker)(sample.response, sample.row, take, math)
        verdicts = dict.fromkeys(rules, verdict_dict(verdict))
    else:
        verdicts = {
            name: verdict_dict(rule(sample.response, sample.row, take, math))
            for name, rule in rules.items()
        }
    return replace(sample, verdicts=verdicts)


def rescore_log(log: Path, checker: str, take: Take | None, out: Path | None) -> dict[str, Any]:
    """The results of a log judged again; nothing is generated, and the log stays as it is.

    Args:
        log: what `vistill eval --tasks` wrote.
        checker: one of `vistill list checkers`; empty takes the benchmark's own rule.
        take: which commitment counts; None takes that of the log.
        out: a new log with the new verdicts.

    Raises:
        StorageError: S605, the file is no log.
    """
    header = read_header(log)
    benchmark = find_benchmarks([header["task"]])[0]
    taken: Take = take or header["take"]
    counts: Counter[str] = Counter()
    for sample in read_samples(log):
        counts[sample.mode] = max(counts[sample.mode], sample.sample + 1)

    def judged() -> Iterator[Sample]:
        math = shared_judge()
        for sample in read_samples(log):
            again = judge_again(benchmark, sample, checker, taken, math)
            if out is not None:
                append_line(out, again.to_dict())
            yield again

    if out is not None:
        append_line(out, {**header, "take": taken, "checker": checker, "rescored": str(log)})
    results = task_results(benchmark, judged(), counts, checker)
    return {
        "model": header["model"],
        "protocol": header["protocol"],
        "changed": {"take": taken} if taken != header["take"] else {},
        "data": header.get("source", ""),
        "tasks": {benchmark.name: {**results, "log": str(log)}},
        "missing": {},
    }
