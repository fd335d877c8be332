"""A log of samples as a log of Inspect (`inspect_ai`), whose viewer shows samples and scores.

The form is version 2 of Inspect's JSON logs. Sample k of a row is epoch k + 1; pictures are named
by hash, because a log of samples has no pixels.
"""

import hashlib
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vistill.errors import StorageError
from vistill.evaluation.benchmarks.catalogue import find_benchmarks
from vistill.evaluation.benchmarks.lm_judge import FAILED, without_failed
from vistill.evaluation.benchmarks.protocols import GREEDY
from vistill.evaluation.benchmarks.results import Wanted, task_results
from vistill.evaluation.benchmarks.sample_log import Sample, read_header, read_samples
from vistill.runs.storage import write_json
from vistill.types import Finish

INSPECT_VERSION = 2
CORRECT, WRONG = "C", "I"
#: What Inspect calls the end of a response.
STOPS = {str(Finish.STOP): "stop", str(Finish.LENGTH): "max_tokens"}


def write_inspect_logs(logs: list[Path], to: Path) -> list[Path]:
    """Write one log of Inspect for each mode of each log of samples.

    Args:
        logs: of samples.
        to: the folder; files are `TIME_TASK-PROTOCOL-MODE_ID.json`: its viewer lists no others.

    Raises:
        StorageError: S605, a file is no log; S608, a file exists already.
    """
    written: list[Path] = []
    for log in logs:
        for mode in modes_of(log):
            record = inspect_log(log, mode)
            time = record["eval"]["created"].replace(":", "-")
            title = re.sub("[._/]", "-", f"{log.name.removesuffix('.jsonl')}-{mode}")
            file = to / f"{time}_{title}_{record['eval']['task_id']}.json"
            check_new(file)
            write_json(file, record)
            written.append(file)
    return written


def check_new(file: Path) -> None:
    """S608 for a file that exists."""
    if file.exists():
        raise StorageError(
            "S608",
            f"{file} exists already",
            where=str(file.parent),
            why="it may be of another log",
            fix="--to FOLDER",
        )


def modes_of(log: Path) -> list[str]:
    """The modes of a log, in order."""
    return list(dict.fromkeys(sample.mode for sample in read_samples(log)))


def inspect_log(log: Path, mode: str) -> dict[str, Any]:
    """One mode of a log of samples, as plain values of Inspect's `EvalLog`."""
    header = read_header(log)
    benchmark = find_benchmarks([header["task"]])[0]
    samples = [s for s in read_samples(log, benchmark.rules) if s.mode == mode]
    created = datetime.fromtimestamp(log.stat().st_mtime, UTC).isoformat(timespec="seconds")
    model = f"vistill/{Path(header['model']).name}"
    epochs = 1 + max((sample.sample for sample in samples), default=0)
    ids = list(dict.fromkeys(sample.row.id for sample in samples))
    counts = Counter({mode: epochs})
    checker = str(header.get("checker") or ", ".join(benchmark.rules))
    failures: Counter[str] = Counter()
    scored = without_failed(samples, failures)
    results = task_results(benchmark, scored, counts, checker, Wanted(len(ids)))
    own = f"{benchmark.name} {header['protocol']} {mode} {header.get('weights')} {header['model']}"
    identity = hashlib.sha256(own.encode()).hexdigest()[:22]
    facts = {key: value for key, value in header.items() if key not in ("log", "versions")}
    return {
        "version": INSPECT_VERSION,
        "status": "success",
        "eval": {
            "created": created,
            "eval_id": identity,
            "run_id": identity,
            "task_id": identity,
            "task": f"{benchmark.name}_{header['protocol']}",
            "task_version": 0,
            "dataset": {
                "name": benchmark.name,
                "location": str(header.get("source", "")),
                "samples": len(ids),
                "sample_ids": ids,
            },
            "model": model,
            "model_generate_config": generate_config(header, mode),
            "config": {"epochs": epochs},
            "packages": dict(header.get("versions") or {}),
            "metadata": {"vistill": facts, "mode": mode},
        },
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples) - sum(failures.values()),
            "scores": score_records(results, mode, checker),
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": [inspect_sample(sample, model, created) for sample in samples],
    }


def generate_config(header: dict[str, Any], mode: str) -> dict[str, Any]:
    """How the responses were sampled."""
    is_greedy = mode.startswith(GREEDY)
    values = {
        "temperature": 0.0 if is_greedy else header.get("temperature"),
        "top_p": 1.0 if is_greedy else header.get("top_p"),
        "max_tokens": header.get("max_new_tokens"),
        "seed": header.get("seed"),
    }
    return {name: value for name, value in values.items() if value is not None}


def score_records(results: dict[str, Any], mode: str, checker: str) -> list[dict[str, Any]]:
    """The metrics of the benchmark, with their intervals."""
    metrics = results["modes"].get(mode, {}).get("metrics", {})
    records = {
        name: {
            "name": name,
            "value": score["value"],
            "metadata": {k: score[k] for k in ("low", "high", "units", "clusters")},
        }
        for name, score in metrics.items()
    }
    return [{"name": checker, "scorer": checker, "metrics": records}] if records else []


def inspect_sample(sample: Sample, model: str, created: str) -> dict[str, Any]:
    """One response as plain values of Inspect's `EvalSample`."""
    row = sample.row
    target = list(row.answer) if isinstance(row.answer, tuple) else row.answer
    answer = {"role": "assistant", "content": sample.response, "source": "generate"}
    answer["model"] = model
    stop = STOPS.get(sample.finish, "unknown")
    usage = {"input_tokens": 0, "output_tokens": sample.tokens, "total_tokens": sample.tokens}
    return {
        "id": row.id,
        "epoch": sample.sample + 1,
        "input": sample.question,
        "choices": list(row.choices) or None,
        "target": target,
        "messages": [{"role": "user", "content": sample.question, "source": "input"}, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": stop}],
            "completion": sample.response,
            "usage": usage,
            "time": sample.seconds,
        },
        "model_usage": {model: usage},
        "scores": {name: score_of(verdict) for name, verdict in sample.verdicts.items()},
        "metadata": {
            **row.facts,
            "group": row.group,
            "pictures": list(sample.pictures),
            **({} if sample.signals is None else {"signals": dict(sample.signals)}),
        },
        "started_at": created,
        "completed_at": created,
        "total_time": sample.seconds,
    }


def score_of(verdict: Any) -> dict[str, Any]:
    """A verdict as Inspect's `Score`; one that failed has the value N, no answer."""
    extracted, score = verdict.get("extracted"), verdict.get("score")
    value = (CORRECT if verdict["correct"] else WRONG) if score is None else float(score)
    return {
        "value": value if verdict.get(FAILED) is None else "N",
        "answer": extracted,
        "explanation": verdict.get("reason") or verdict.get("rule") or "",
        "metadata": {k: verdict[k] for k in ("rule", "checker", "unparsed") if k in verdict},
    }
