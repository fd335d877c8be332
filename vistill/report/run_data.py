"""Read run folders for the report; running, stopped and incomplete runs work too."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.errors import StorageError, in_place_of
from vistill.evaluation.paired import Question, questions_by_id
from vistill.runs.folder import RunFolder
from vistill.runs.near_runs import missing_run_error, runs_inside

#: Allowed names in `pictures/index.json`, so that the page shows no file outside that folder.
PICTURE_NAME = re.compile(r"[\w-]{1,64}")


@dataclass(frozen=True)
class RunData:
    """The files of one run that the report uses."""

    name: str
    path: Path
    recipe: dict[str, Any]
    lock: dict[str, Any]
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    tokens: dict[str, Any]
    """Step -> {"tail": ..., "items": ...}."""
    result: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    answer_cache: dict[int, dict[str, dict[str, Question]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.recipe.get("method", "?"))

    @property
    def temperature(self) -> float:
        """The sampling temperature of the evaluation."""
        return float(self.recipe.get("eval", {}).get("temperature", 1.0))

    @property
    def first(self) -> dict[str, Any]:
        """The record of the first evaluation."""
        return self.evaluations[0] if self.evaluations else {}

    @property
    def last(self) -> dict[str, Any]:
        """The record of the last evaluation."""
        return self.evaluations[-1] if self.evaluations else {}

    def answers(self, step: int, mode: str = "sampled") -> dict[str, Question]:
        """The questions of an evaluation with the full image, by prompt id; empty if not stored."""
        return self.answers_by_mode(step).get(mode, {})

    def answers_by_mode(self, step: int) -> dict[str, dict[str, Question]]:
        """The questions of an evaluation by mode. Reads the file once."""
        if step not in self.answer_cache:
            folder = RunFolder(self.path)
            records = [
                r
                for r in folder.read(folder.samples(f"step-{step:06d}"))
                if r.get("view") == "full"
            ]
            self.answer_cache[step] = {
                mode: questions_by_id(records, mode=mode) for mode in ("sampled", "greedy")
            }
        return self.answer_cache[step]

    def image_uri(self, prompt: str, view: str, question: str | None = None) -> str | None:
        """A stored image as a data URI; None if it is missing or belongs to another question."""
        entry = self.images.get(prompt)
        if entry and question is not None and entry.get("question", question) != question:
            return None
        name = str(entry["file"]) if entry else ""
        file = self.path / "pictures" / f"{name}-{view}.png"
        if not PICTURE_NAME.fullmatch(name) or not file.is_file():
            return None
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()

    @property
    def has_recipe(self) -> bool:
        """Whether the folder holds its recipe."""
        return (self.path / "recipe.json").is_file()

    def seconds(self) -> dict[str, float]:
        """Seconds per phase, summed over the run."""
        total: dict[str, float] = {}
        for record in self.timing:
            for name, value in record.get("seconds", {}).items():
                total[name] = total.get(name, 0.0) + float(value)
        return total

    def peak_mib(self) -> float | None:
        """Peak memory of the process or the device, MiB."""
        return max((r["peak_mib"] for r in self.timing if "peak_mib" in r), default=None)


def temperature_label(runs: Sequence[RunData]) -> str:
    """`T = 1`: the sampling temperature, or the one of each run if they differ."""
    by_run = {run.name: f"{run.temperature:g}" for run in runs}
    values = set(by_run.values())
    if len(values) > 1:
        return "T = " + ", ".join(f"{value} ({name})" for name, value in by_run.items())
    return f"T = {min(values, default='1')}"


def describe_rows(data: Mapping[str, Any], part: str) -> str:
    """The source of the rows of a `data` block; `part` is `train` or `eval`; may be empty."""
    sets = data.get("sets") or {}
    if sets:
        sources = ", ".join(
            str(sets[name].get(part) or sets[name]["train"]) for name in sorted(sets)
        )
        return sources if part == "train" else f"the data sets {', '.join(sorted(sets))}"
    train = str(data.get("train") or "")
    if part == "train" or not train:
        return "the built-in diagrams" if train == "diagrams" else train
    if data.get("eval") not in (None, "", "diagrams"):
        return str(data["eval"])
    if data.get("eval") == "diagrams" or train == "diagrams":
        return "the built-in diagrams"
    return f"{data['holdout']:,} held out of {train}" if data.get("holdout") else ""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or incomplete."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read run folders; of one that does not exist, another one is proposed."""
    for path in paths:
        if not path.exists():
            raise missing_run_error(path, [other for other in paths if other != path])
    return [read_run(path) for path in paths]


def read_run(path: Path) -> RunData:
    """Read one run folder; S605 if it holds no run."""
    if not path.exists():
        raise missing_run_error(path)
    folder = RunFolder(path)
    lock = read_json(folder.lock_file)
    if not lock and not folder.metrics.exists():
        raise StorageError(
            "S605",
            "the folder holds no run",
            where=str(path),
            why="it has neither run.lock.json nor metrics.jsonl",
            fix=runs_inside(path) or in_place_of("RUN_FOLDER", str(path)),
        )
    rollouts = folder.rollout_files()
    evaluations = folder.read(folder.evaluations)
    # Token files of other steps are from before a resume that started at an earlier step.
    steps = {f"{int(r.get('step', 0)):06d}" for r in evaluations}
    files = {p.stem.removeprefix("step-"): p for p in folder.token_files()}
    tokens = {step: read_json(p) for step, p in files.items() if step in steps or not steps}
    return RunData(
        path.name,
        path,
        lock.get("recipe", {}),
        lock,
        folder.read(folder.metrics),
        folder.read(folder.timing),
        evaluations,
        [*folder.read(folder.quarantine), *folder.read(folder.replaced)],
        folder.read(rollouts[-1]) if rollouts else [],
        tokens,
        read_json(path / "result.json"),
        read_json(path / "data.json"),
        read_json(path / "pictures" / "index.json"),
        read_json(path / "profile.json"),
    )
