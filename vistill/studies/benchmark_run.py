"""`vistill eval --tasks`: ask a model the rows of benchmarks, judge, log, and score.

The noise of a response is keyed by seed, row and sample, so neither its batch nor an interruption
changes it. Only what a log lacks is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vistill.answers.math_process import shared_judge
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow
from vistill.evaluation.benchmarks.catalogue import Suite
from vistill.evaluation.benchmarks.protocols import Protocol, view_of
from vistill.evaluation.benchmarks.reducers import Reducer
from vistill.evaluation.benchmarks.rescoring import renew_log
from vistill.evaluation.benchmarks.results import (
    CSV_COLUMNS,
    Wanted,
    csv_rows,
    results_table,
    suite_results,
    task_results,
)
from vistill.evaluation.benchmarks.sample_failures import (
    kept_failures,
)
from vistill.evaluation.benchmarks.sample_log import (
    change_facts,
    open_log,
    other_log_error,
    read_samples,
)
from vistill.evaluation.benchmarks.sample_signals import NAMES, check_can_measure
from vistill.evaluation.benchmarks.sources import (
    BenchmarkRows,
    find_present,
    make_prompts,
    read_benchmark,
)
from vistill.models.backends import with_kernels
from vistill.models.loading import VLM, load_weights
from vistill.models.selftest import run_selftest
from vistill.phases import open_phase, send_record
from vistill.report.csv_file import write_csv
from vistill.rollouts.build import make_engine
from vistill.runs.folder import RunFolder
from vistill.runs.storage import write_json, write_text
from vistill.runtime import prepare_process
from vistill.studies.benchmark_asker import Asker, ask_benchmark
from vistill.studies.benchmark_judge import CountedSamples, judge_of
from vistill.training.adapted_student import loading_options
from vistill.training.checks.arguments import training_folder_error
from vistill.training.checks.devices import choose_device
from vistill.training.checks.models import load_encoder_of
from vistill.training.recipe import Recipe
from vistill.training.run_lock import hash_weights, package_versions
from vistill.types import Prompt, View


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to run."""

    benchmarks: Sequence[Benchmark]
    protocol: Protocol
    suite: Suite | None = None
    """If the benchmarks are those of a suite: what is not here is listed, not an error."""
    data: Path | None = None
    limit: int | None = None
    changed: Mapping[str, Any] | None = None
    """What the user changed in the protocol, as it is shown."""
    reducers: tuple[Reducer, ...] = ()
    retry: frozenset[str] = frozenset()
    """Codes of failed samples that are asked again."""


def run_benchmarks(recipe: Recipe, request: BenchmarkRequest) -> dict[str, Any]:
    """Run benchmarks on `recipe.student`; write logs, `results.json`, `.csv` and `.txt`.

    Args:
        recipe: model, engine (`rollout.engine`), picture limits (`data`), seed and
            `eval.rows_per_call`, and the folder `run`.
        request: benchmarks, protocol and rows.

    Raises:
        DataError: D101, D102, a benchmark is absent or unreadable.
        ConfigError: C203, the folder has samples of another model or of other settings.
    """
    prepare_process()
    folder = RunFolder(Path(recipe.run))
    folder.check_writable()
    if folder.has_started():
        raise training_folder_error(recipe.run)
    present, missing = find_rows(request)
    tasks: dict[str, Any] = {}
    with folder.locked():
        if present:
            tasks = ask_all(recipe, request, present)
        results: dict[str, Any] = {
            "model": recipe.student.model,
            "protocol": request.protocol.name,
            "protocol_source": request.protocol.source,
            "changed": dict(request.changed or {}),
            "data": "" if request.data is None else str(request.data),
            "tasks": tasks,
            "missing": missing,
        }
        if request.suite is not None:
            results["suite"] = suite_results(request.suite, tasks)
        write_results(folder.path, results)
    return results


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """The results as JSON, CSV and text."""
    write_json(folder / "results.json", results)
    write_csv(folder / "results.csv", CSV_COLUMNS, csv_rows(results))
    write_text(folder / "results.txt", results_table(results) + "\n")


def find_rows(request: BenchmarkRequest) -> tuple[list[BenchmarkRows], dict[str, str]]:
    """The rows of each benchmark; for a suite also what is not here."""
    names, protocol = request.benchmarks, request.protocol.name
    if request.suite is not None:
        return find_present(names, request.data, protocol, request.limit)
    rows = [read_benchmark(one, request.data, protocol, request.limit) for one in names]
    return rows, {}


def ask_all(
    recipe: Recipe, request: BenchmarkRequest, present: Sequence[BenchmarkRows]
) -> dict[str, Any]:
    """Load the model, ask every benchmark, and score it."""
    settings, protocol = recipe.located(), request.protocol
    names = [one.name for one in request.benchmarks]
    if recipe.eval.signals:
        check_can_measure(recipe.rollout.engine)
    lm = judge_of(recipe, names, protocol.name, request.retry)
    with open_phase("loading the model"):
        encoder = load_encoder_of(settings.student, "student", settings.data.max_image_tokens)
        device = choose_device(recipe.student.device)
        vlm = load_weights(encoder, device=device, **loading_options(recipe, device))
        vlm = with_kernels(run_selftest(vlm), "auto").freeze()
    tasks: dict[str, Any] = {}
    with (
        make_engine(vlm, recipe.rollout.without_image_skips()) as engine,
        shared_judge() as math,
    ):
        own = recipe.eval
        asker = Asker(
            vlm, engine, protocol, own.seed, own.rows_per_call, math, own.noise, request.reducers
        )
        asker = replace(asker, lm=lm, retry=request.retry, signals=own.signals)
        facts = facts_of(recipe, vlm, protocol)
        folder = RunFolder(Path(recipe.run))
        for one in present:
            pairs, failed = make_prompts(one, protocol, settings.data)
            part = replace(one, failed=[*one.failed, *failed])
            tasks[one.benchmark.name] = ask_part(asker, part, pairs, facts, folder)
    return tasks


def ask_part(
    asker: Asker,
    part: BenchmarkRows,
    pairs: Sequence[tuple[BenchmarkRow, Prompt]],
    facts: Mapping[str, Any],
    folder: RunFolder,
) -> dict[str, Any]:
    """Continue the log of one benchmark, ask what it lacks, and score it.

    Stored responses are judged again if their rows, or the versions that judged them, changed.
    """
    benchmark, protocol = part.benchmark, asker.protocol
    kept = {"available": part.available, "subset": part.subset, "failed": part.failed}
    blind_rows = sum(bool(prompt.images) for _, prompt in pairs)
    asked = {"rows": len(pairs), "samples": dict(protocol.samples), **kept}
    if any(view_of(mode) != View.FULL for mode in protocol.samples):
        asked["blind_rows"] = blind_rows
    log = log_path(folder.path, benchmark, protocol)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = {"task": benchmark.name, "source": part.source, **facts, "asked": asked}
    open_log(log, start)
    done = find_done(pairs, log)
    rows = {row.id: row for row, _ in pairs}
    renewed = renew_log(log, benchmark, rows, facts["versions"], asker.math)
    if renewed:
        text = f"{benchmark.name}: rows or rules changed, {renewed:,} stored responses judged again"
        folder.event(text)
        send_record({"event": text})
    change_facts(log, {"asked": asked})
    contents = {row.id: prompt.content for row, prompt in pairs}
    done |= set(kept_failures(log, contents, asker.retry))
    ask_benchmark(asker, benchmark, pairs, done, log)
    counted = CountedSamples(asker.lm, benchmark, protocol, log)
    samples = counted.read(rows, asker.math)
    wanted = Wanted(len(pairs), blind_rows, asker.reducers)
    results = task_results(benchmark, samples, protocol.samples, counted.rule, wanted)
    return {**results, **counted.results(), **kept, "log": str(log)}


def facts_of(recipe: Recipe, vlm: VLM, protocol: Protocol) -> dict[str, Any]:
    """What decides a response, besides the row itself."""
    data = recipe.data
    return {
        "protocol": protocol.name,
        "model": recipe.student.model,
        "weights": hash_weights(vlm.model),
        "seed": recipe.eval.seed,
        "engine": recipe.rollout.engine,
        "noise": recipe.eval.noise,
        "rollout_weights": recipe.rollout.weights,
        "device": vlm.device.type,
        "temperature": protocol.temperature,
        "top_p": protocol.top_p,
        "max_new_tokens": protocol.max_new_tokens,
        "take": protocol.take,
        "max_image_tokens": data.max_image_tokens,
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "signals": list(NAMES) if recipe.eval.signals else None,
        "versions": package_versions(),
    }


def log_path(run: Path, benchmark: Benchmark, protocol: Protocol) -> Path:
    """`RUN/samples/TASK.PROTOCOL.jsonl`."""
    return run / "samples" / f"{benchmark.name}.{protocol.name}.jsonl"


def find_done(pairs: Sequence[tuple[BenchmarkRow, Prompt]], log: Path) -> set[tuple[str, str, int]]:
    """The samples that the log has (C203 for a row that was asked in another way)."""
    known = {prompt.id: prompt.content for _, prompt in pairs}
    done = set[tuple[str, str, int]]()
    for sample in read_samples(log):
        if known.get(sample.row.id, sample.content) != sample.content:
            why = f"row {sample.row.id} was asked in other words or with another picture"
            raise other_log_error(log, why)
        done.add(sample.key)
    return done
