"""What the page needs from run folders, tolerant of runs that are still going, dead or empty."""

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.errors import StorageError
from vistill.runs.folder import RunFolder

#: What `pictures/index.json` may name; nothing outside its folder is ever shown.
PICTURE_NAME = re.compile(r"[\w-]{1,64}")


@dataclass(frozen=True)
class RunData:
    """One run as the page sees it."""

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
    pictures: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.recipe.get("method", "?"))

    @property
    def first(self) -> dict[str, Any]:
        """The first evaluation."""
        return self.evaluations[0] if self.evaluations else {}

    @property
    def last(self) -> dict[str, Any]:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else {}

    def picture(self, prompt: str, view: str) -> str | None:
        """A stored picture as a data URI."""
        entry = self.pictures.get(prompt)
        name = str(entry["file"]) if entry else ""
        file = self.path / "pictures" / f"{name}-{view}.png"
        if not PICTURE_NAME.fullmatch(name) or not file.is_file():
            return None
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()

    @property
    def has_recipe(self) -> bool:
        """Whether the folder holds a recipe that can be run again."""
        return (self.path / "recipe.json").is_file()

    def seconds(self) -> dict[str, float]:
        """Seconds per phase over the run."""
        total: dict[str, float] = {}
        for record in self.timing:
            for name, value in record.get("seconds", {}).items():
                total[name] = total.get(name, 0.0) + float(value)
        return total

    def peak_mib(self) -> float | None:
        """Peak memory of the run's process or device."""
        return max((r["peak_mib"] for r in self.timing if "peak_mib" in r), default=None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON document, or nothing where it is missing or half-written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_run(path: Path) -> RunData:
    """Everything the page shows of one run (S605 where there is nothing)."""
    folder = RunFolder(path)
    lock = read_json(folder.lock_file)
    if not lock and not folder.metrics.exists():
        raise StorageError(
            "S605",
            "no run here",
            where=str(path),
            why="neither run.lock.json nor metrics.jsonl was found",
            fix="vistill report runs/NAME",
        )
    rollouts = folder.rollout_files()
    tokens = {p.stem.removeprefix("step-"): read_json(p) for p in folder.token_files()}
    return RunData(
        path.name,
        path,
        lock.get("recipe", {}),
        lock,
        folder.read(folder.metrics),
        folder.read(folder.timing),
        folder.read(folder.evaluations),
        [*folder.read(folder.quarantine), *folder.read(folder.replaced)],
        folder.read(rollouts[-1]) if rollouts else [],
        tokens,
        read_json(path / "result.json"),
        read_json(path / "data.json"),
        read_json(path / "pictures" / "index.json"),
        read_json(path / "profile.json"),
    )
