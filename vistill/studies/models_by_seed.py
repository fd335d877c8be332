"""Tiny teachers and students by seed: made once, kept in the cache folder, used by `compare`."""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vistill.report.run_data import read_json
from vistill.runs.start_cache import cache_folder, hash_text, source_hash
from vistill.studies.arms import Arm
from vistill.studies.demo import is_complete_model
from vistill.studies.tiny_plans import PLANS, changed_plan

#: Difference of the plan's seed between two models of one kind.
SEED_STEP = 100
#: Source files that decide the weights of a tiny model.
SOURCES = (
    "studies/make_tiny_models.py",
    "studies/tiny_plans.py",
    "models/tiny.py",
    "data/diagrams.py",
    "data/wording.py",
    "data/drawing.py",
)


@dataclass(frozen=True)
class TinyModels:
    """The tiny students and teachers of a comparison.

    Model 0 without changes is the shipped one. Model i has the seed of its plan plus 100 i.
    """

    folder: Path
    """Where models are kept if there is no cache folder."""
    student: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the student's plan, such as `wrong_share`."""
    teacher: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the teacher's plan."""
    first: int = 0
    """Index of the first model; 1 leaves out the shipped pair."""

    def source(self, kind: str, number: int) -> str:
        """What a recipe names as `student.model` or `teacher.model`."""
        index = self.first + number
        return str(self.path(kind, index)) if self.is_made(kind, index) else f"vistill:{kind}"

    def is_made(self, kind: str, index: int) -> bool:
        """Whether the model is made here, not shipped."""
        return index > 0 or bool(self.changes(kind))

    def changes(self, kind: str) -> Mapping[str, Any]:
        """The changed fields of the plan of a kind."""
        return self.student if kind == "student" else self.teacher

    def plan_words(self, kind: str, index: int) -> dict[str, Any]:
        """The changed fields of one model, its seed included."""
        return {**self.changes(kind), "seed": PLANS[kind].seed + SEED_STEP * index}

    def path(self, kind: str, index: int) -> Path:
        """The folder of one model; its name has a hash of everything that decides its weights."""
        plan = changed_plan(kind, self.plan_words(kind, index))
        facts = json.dumps(asdict(plan), sort_keys=True)
        cache = cache_folder()
        root = self.folder if cache is None else cache / "tiny-models"
        return root / f"{kind}-{index}-{hash_text(kind, facts, source_hash(*SOURCES))[:12]}"

    def arms(self, kind: str, numbers: Iterable[int], logs: Path) -> list[Arm]:
        """The commands that make the models that do not exist yet.

        A folder that a killed command left is removed.
        """
        arms = []
        for number in sorted(set(numbers)):
            if self.exists(kind, number):
                continue
            index = self.first + number
            target = self.path(kind, index)
            shutil.rmtree(target, ignore_errors=True)
            words = json.dumps(self.plan_words(kind, index))
            module = "vistill.studies.make_tiny_models"
            command = (sys.executable, "-m", module, kind, str(target), "--plan", words)
            name = f"{kind} {index}"
            arms.append(
                Arm(
                    name,
                    logs / name.replace(" ", "-"),
                    command=command,
                    done=lambda target=target: is_complete_model(target),
                )
            )
        return arms

    def exists(self, kind: str, number: int) -> bool:
        """Whether a model is shipped, or made already."""
        index = self.first + number
        return not self.is_made(kind, index) or is_complete_model(self.path(kind, index))

    def measured(self, kind: str, number: int) -> dict[str, float]:
        """Accuracies on the model's card."""
        index = self.first + number
        folder = Path(__file__).parent.parent / "assets" / kind
        if self.is_made(kind, index):
            folder = self.path(kind, index)
        return dict(read_json(folder / "CARD.json").get("measured", {}))
