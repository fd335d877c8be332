"""Judge the samples of a log again, by the benchmark's rule or another checker."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge, shared_judge
from vistill.errors import StorageError
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow, by_checker
from vistill.evaluation.benchmarks.catalogue import find_benchmarks
from vistill.evaluation.benchmarks.lm_judge import LMJudge, judge_results, without_failed
from vistill.evaluation.benchmarks.reducers import Reducer
from vistill.evaluation.benchmarks.results import Wanted, task_results
from vistill.evaluation.benchmarks.sample_failures import FAILURE, read_failures
from vistill.evaluation.benchmarks.sample_log import (
    Sample,
    read_header,
    read_samples,
    verdict_dict,
)
from vistill.runs.storage import append_line, sync_file, sync_folder

#: Packages whose versions decide a verdict.
JUDGES = ("vistill", "math-verify")


def logs_of(path: Path) -> list[Path]:
    """A log, or the logs of a run folder or of a folder that `vistill rescore --out` wrote.

    Raises:
        StorageError: S605, there is none.
    """
    if path.is_file():
        return [path]
    logs = sorted((path / "samples").glob("*.*.jsonl")) or sorted(path.glob("*.*.jsonl"))
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


def judged_facts(row: BenchmarkRow) -> str:
    """What a verdict or a metric reads of a row, besides its question."""
    return json.dumps([row.answer, row.choices, row.group, dict(row.facts)], sort_keys=True)


def renew_log(
    log: Path,
    benchmark: Benchmark,
    rows: Mapping[str, BenchmarkRow],
    versions: Mapping[str, str],
    math: MathJudge,
) -> int:
    """Judge stored responses again whose row changed, or all if another version judged them.

    A response without the verdict of a rule is judged again too.

    The log is replaced as a whole, so a process that is killed leaves the old or the new one.

    Args:
        log: of samples.
        benchmark: its rules.
        rows: as they are now, by id; a sample of another row keeps its own.
        versions: of packages, as the log has them from now on.
        math: for formulas.

    Returns:
        How many responses were judged again.
    """
    header = read_header(log)
    before = header.get("versions") or {}
    is_other = any(before.get(name) != versions.get(name) for name in JUDGES)

    def is_old(sample: Sample) -> bool:
        row = rows.get(sample.row.id, sample.row)
        lacks_rule = not benchmark.rules.keys() <= sample.verdicts.keys()
        return is_other or lacks_rule or judged_facts(row) != judged_facts(sample.row)

    count = sum(map(is_old, read_samples(log)))
    if not count:
        return 0
    new = log.with_name(f".{log.name}.new")
    new.unlink(missing_ok=True)
    append_line(new, {**header, "versions": dict(versions)})
    for record in read_failures(log).values():
        append_line(new, {FAILURE: record})
    for sample in read_samples(log):
        kept = sample
        if is_old(sample):
            own = replace(sample, row=rows.get(sample.row.id, sample.row))
            kept = judge_again(benchmark, own, "", header["take"], math)
        append_line(new, kept.to_dict())
    sync_file(new)
    new.replace(log)
    sync_folder(log.parent)
    return count


def samples_of(log: Path) -> dict[str, int]:
    """Responses per question by mode: those asked for, else the most that a question has."""
    asked = read_header(log).get("asked") or {}
    counts: Counter[str] = Counter(asked.get("samples"))
    for sample in () if asked else read_samples(log):
        counts[sample.mode] = max(counts[sample.mode], sample.sample + 1)
    return dict(counts)


def rescore_log(
    log: Path,
    checker: str,
    take: Take | None,
    out: Path | None,
    lm: LMJudge | None = None,
    reducers: tuple[Reducer, ...] = (),
) -> dict[str, Any]:
    """The results of a log judged again; nothing is generated, and the log stays as it is.

    Args:
        log: what `vistill eval --tasks` wrote.
        checker: one of `vistill list checkers`; empty takes the benchmark's own rule.
        take: which commitment counts; None takes that of the log.
        out: a new log with the new verdicts.
        lm: a language model that judges in place of every rule.
        reducers: of several samples of a question (`find_reducers`).

    Raises:
        StorageError: S605, the file is no log.
    """
    header = read_header(log)
    benchmark = find_benchmarks([header["task"]])[0]
    taken: Take = take or header["take"]
    rule = lm.name if lm else checker
    asked = header.get("asked") or {}
    counts = samples_of(log)

    def judged() -> Iterator[Sample]:
        math, samples = shared_judge(), read_samples(log)
        by_rule = (judge_again(benchmark, sample, checker, taken, math) for sample in samples)
        again_judged = lm.judged(benchmark, samples, taken, math) if lm else by_rule
        for number, again in enumerate(again_judged):
            if out is not None and number == 0:  # no file where a judge is down
                append_line(out, facts)
            if out is not None:
                append_line(out, again.to_dict())
            yield again

    facts = {**header, "take": taken, "checker": rule, "rescored": str(log)}
    failures: Counter[str] = Counter()
    samples = without_failed(judged(), failures)
    wanted = Wanted(asked.get("rows", 0), asked.get("blind_rows"), reducers)
    results = task_results(benchmark, samples, counts, rule, wanted)
    results |= judge_results(lm, failures)
    kept = {name: asked[name] for name in ("available", "subset", "failed") if name in asked}
    return {
        "model": header["model"],
        "protocol": header["protocol"],
        "changed": {"take": taken} if taken != header["take"] else {},
        "data": header.get("source", ""),
        "tasks": {benchmark.name: {**results, **kept, "log": str(log)}},
        "missing": {},
    }
