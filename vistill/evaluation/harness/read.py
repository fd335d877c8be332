"""Results of lmms-eval and VLMEvalKit in our form, under the name of the program."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vistill.errors import StorageError
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.harness.folder import FACTS, OUT
from vistill.evaluation.harness.programs import LMMS_EVAL
from vistill.runs.storage import read_json, write_json, write_text

#: Half the width of a 95 % interval in standard errors.
NORMAL = 1.96


def read_results(folder: Path) -> dict[str, Any]:
    """The newest result of each task of a folder.

    Args:
        folder: that `vistill harness` wrote, after its `run.sh`.

    Raises:
        StorageError: S605, the folder has no results yet, or is of something else.
    """
    if not (folder / FACTS).is_file():
        raise absent_error(folder, f"it has no {FACTS}")
    facts = read_json(folder / FACTS, harness=str, model=str, protocol=str, tasks=dict)
    read = lmms_scores if facts["harness"] == LMMS_EVAL.name else kit_scores
    tasks: dict[str, Any] = {}
    missing: list[str] = []
    for name, task in facts["tasks"].items():
        scores = read(folder / OUT, name, task)
        if not scores:
            missing.append(name)
            continue
        benchmark = BENCHMARKS[task["benchmark"]]
        own = tasks.setdefault(
            benchmark.name,
            {"title": benchmark.title, "rule": f"{facts['harness']}", "whole": benchmark.rows,
             "headline": benchmark.headline, "modes": {}},
        )  # fmt: skip
        label = f"avg@{task['samples']}" if task["samples"] > 1 else "greedy"
        own["modes"][task["mode"]] = {"label": label, "task": name, "metrics": with_means(
            scores, benchmark.means)}  # fmt: skip
    if not tasks:
        raise absent_error(folder, f"no file below {OUT} has a result of {', '.join(missing)}")
    return {
        "model": facts["model"],
        "protocol": facts["protocol"],
        "harness": facts["harness"],
        "package": facts.get("package", ""),
        "tasks": tasks,
        "missing": missing,
    }


def with_means(
    scores: dict[str, dict[str, Any]], means: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, Any]]:
    """Scores with the means of them that the benchmark reports; no interval is known for one."""
    for name, parts in means.items():
        if name not in scores and all(part in scores for part in parts):
            value = sum(scores[part]["value"] for part in parts) / len(parts)
            scores[name] = {"value": value, "low": None, "high": None, "units": None}
    return scores


def lmms_scores(out: Path, name: str, task: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of a task in the newest `*_results.json` that has it."""
    files = sorted(out.rglob("*_results.json"), key=lambda file: file.name, reverse=True)
    for file in files:
        record = load(file)
        values = record.get("results", {}).get(name)
        if values:
            rows = record.get("n-samples", {}).get(name, {}).get("effective")
            return dict(lmms_values(values, task, rows))
    return {}


def lmms_values(
    values: Mapping[str, Any], task: Mapping[str, Any], rows: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each metric with the interval of its standard error; keys are `METRIC,FILTER`."""
    for ours, theirs in task["metrics"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if metric != theirs or not isinstance(value, int | float):
                continue
            error = values.get(f"{theirs}_stderr,{chosen}")
            is_known = isinstance(error, int | float)
            band = NORMAL * error if is_known else None
            low = None if band is None else max(0.0, value - band)
            high = None if band is None else min(1.0, value + band)
            yield ours, {"value": float(value), "low": low, "high": high, "units": rows}


def kit_scores(out: Path, name: str, task: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores in the newest `*_DATASET_acc.csv`, `_score.csv`, ... file."""
    middles, ends = ("", "_exact_matching"), ("_acc.csv", "_score.csv", "_score.json", "_acc.json")
    endings = tuple(f"_{name}{middle}{end}" for middle in middles for end in ends)
    files = [f for f in out.rglob(f"*_{name}_*") if f.name.endswith(endings) and f.is_file()]
    for file in sorted(files, key=lambda one: one.stat().st_mtime, reverse=True):
        values = chosen_record(file)
        scores = {
            ours: {"value": number, "low": None, "high": None, "units": None}
            for ours, theirs in task["metrics"].items()
            if (number := as_share(values.get(theirs), task["is_percent"])) is not None
        }
        if scores:
            return scores
    return {}


def chosen_record(file: Path) -> dict[str, Any]:
    """The record of all rows in a table of scores: that of the validation split, or the first."""
    if file.suffix == ".json":
        return load(file)
    with file.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    wanted = ("Overall", "validation", "test", "none")
    chosen = (row for split in wanted for row in rows if row.get("split") == split)
    return next(chosen, rows[0] if rows else {})


def as_share(value: Any, percent: bool) -> float | None:
    """A number in [0, 1], or None."""
    try:
        number = float(str(value).rstrip("%"))
    except ValueError:
        return None
    return number / 100 if percent else number


def load(file: Path) -> dict[str, Any]:
    """A JSON object of another program (S605)."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it is no object")
    except (ValueError, OSError) as error:
        raise StorageError(
            "S605",
            f"{file.name} cannot be read",
            where=str(file.parent),
            why=f"{error!s:.200}",
            fix="remove the file, or run the program again",
        ) from error
    return record


def absent_error(folder: Path, why: str) -> StorageError:
    """S605."""
    return StorageError(
        "S605",
        f"there are no results of a harness in {folder}",
        where=str(folder),
        why=why,
        fix="run its run.sh first; `vistill harness lmms-eval MODEL` writes such a folder",
    )


def harness_table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'model':<10} {results['model']}"]
    lines.append(f"{'protocol':<10} decoding of {results['protocol']}, prompts and rules of"
                 f" {results['package'] or results['harness']}")  # fmt: skip
    for task in results["tasks"].values():
        lines += ["", f"{task['title']}   rule: {task['rule']}"]
        for mode in task["modes"].values():
            lines.append(f"  {mode['label']}   {mode['task']}")
            order = sorted(mode["metrics"], key=lambda name: name != task["headline"])
            lines += [metric_line(name, mode["metrics"][name]) for name in order]
    if results["missing"]:
        lines += ["", f"no result yet: {', '.join(results['missing'])}"]
    return "\n".join(lines)


def metric_line(name: str, score: Mapping[str, Any]) -> str:
    """A value in percent, with the interval and the rows where the program gives them."""
    band = ""
    if score["low"] is not None:
        band = f"   95 % [{100 * score['low']:5.1f}, {100 * score['high']:5.1f}]"
    rows = f"   on {score['units']:,}" if score["units"] else ""
    return f"{'    ' + name:<38} {100 * score['value']:5.1f}{band}{rows}"


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """The results as JSON and as text, in the folder."""
    write_json(folder / "results.json", results)
    write_text(folder / "results.txt", harness_table(results) + "\n")
