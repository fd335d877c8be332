"""The plan of a run: what it needs, whether it fits on a GPU, and which settings make it fit."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vistill.batch import Objective
from vistill.data.settings import DataSettings
from vistill.errors import ConfigError
from vistill.planning.cost import Cost
from vistill.planning.gpus import GPUS, Gpu
from vistill.planning.memory import Memory, PhaseBytes
from vistill.planning.shapes import ModelShape
from vistill.planning.workload import MEAN_SHARE, Workload, prompt_sizes
from vistill.training.recipe import Recipe, rows_of_teacher

ROWS = Path(__file__).parent / "datasets.json"
Setting = tuple[str, Any]
#: Settings of fixes that change what a run learns.
CHANGE_RESULT = ("teacher.precision", "rollout.max_new_tokens", "train.freeze", "student.train")


@dataclass(frozen=True)
class Sizes:
    """Lengths that a plan assumes where the command line does not give them."""

    prompt_tokens: int | None = None
    response_tokens: int | None = None
    rows: int | None = None
    """Training rows."""
    rows_of_sets: Mapping[str, int] = field(default_factory=dict)
    """Training rows of data sets on this machine, by name."""
    rows_problem: str = ""
    """Why the rows of the data source could not be counted."""


@dataclass(frozen=True)
class RunPlan:
    """One run on one GPU."""

    recipe: Recipe
    objective: Objective
    student: ModelShape
    teacher: ModelShape | None
    gpu: Gpu
    sizes: Sizes = Sizes()
    gpus: int = 1
    price: float | None = None
    teachers: Mapping[str, ModelShape] = field(default_factory=dict)
    """Several teachers by name; `teacher` is the largest of them."""

    @cached_property
    def work(self) -> Workload:
        """What a step reads and writes."""
        requirements = self.objective.requirements
        prompt, image = prompt_sizes(self.recipe, self.student, self.sizes.prompt_tokens)
        longest = self.recipe.rollout.max_new_tokens
        mean = self.sizes.response_tokens or max(1, round(MEAN_SHARE * longest))
        return Workload(
            recipe=self.recipe,
            passes=self.objective.passes(),
            writer=requirements.writer,
            teacher_share=requirements.teacher_share,
            prompt_tokens=prompt,
            image_tokens=image,
            response_tokens=min(mean, longest),
            longest_response=longest,
        )

    @cached_property
    def memory(self) -> Memory:
        """The bytes of the run."""
        return Memory(self.work, self.student, self.teacher, self.gpu, self.teachers_once)

    @cached_property
    def cost(self) -> Cost:
        """Tokens, operations, seconds, disk and money."""
        return Cost(self.memory, self.rows, self.price, self.gpus, self.teacher_shares)

    @property
    def teachers_once(self) -> tuple[tuple[ModelShape, str], ...]:
        """Every teacher with its precision, the largest first, each model once."""
        named = self.recipe.teachers
        every = [(shape, named[name].precision) for name, shape in self.teachers.items()]
        if self.teacher is not None and not every:
            every = [(self.teacher, self.recipe.teacher.precision)]
        every.sort(key=lambda one: -one[0].parameters.total)
        return tuple({(id(shape), own): (shape, own) for shape, own in every}.values())

    @property
    def teacher_shares(self) -> tuple[tuple[ModelShape, float], ...]:
        """Each of several teachers with its share of the prompts.

        Data sets that name their teacher give the shares, if their rows are known; else all
        teachers have the same.
        """
        shares = dict.fromkeys(self.teachers, 1.0 / max(1, len(self.teachers)))
        by_set = self.shares_of_sets()
        if by_set is not None and self.teachers:
            takes = {
                key: name
                for name, one in self.recipe.teachers.items()
                for key in rows_of_teacher(name, one)
            }
            others = next((n for n, one in self.recipe.teachers.items() if one.others), None)
            names = {key: takes.get(key, others) for key in by_set}
            if all(names.values()):
                shares = {
                    name: sum(share for key, share in by_set.items() if names[key] == name)
                    for name in self.teachers
                }
        return tuple((self.teachers[name], share) for name, share in shares.items())

    def shares_of_sets(self) -> dict[str, float] | None:
        """Share of the prompts of each data set; None where a weight is not known yet."""
        weights = {
            name: self.rows_of_set(name) if one.weight == "rows" else float(one.weight)
            for name, one in self.recipe.data.sets.items()
        }
        known = {name: weight for name, weight in weights.items() if weight}
        if not known or len(known) < len(weights):
            return None
        return {name: weight / sum(known.values()) for name, weight in known.items()}

    def rows_of_set(self, name: str) -> int | None:
        """Training rows of a data set without those held out; None if they are not known."""
        if name in self.sizes.rows_of_sets:
            return self.sizes.rows_of_sets[name]
        data = self.recipe.data.of_set(name)
        rows = rows_of_source(data)
        if rows is None or data.eval or data.holdout >= rows:
            return rows
        return rows - data.holdout

    @cached_property
    def phases(self) -> list[PhaseBytes]:
        """The phases in order."""
        return self.memory.phases()

    @property
    def rows(self) -> int | None:
        """Training rows: given or counted, drawn, or of a data set that a shipped recipe names."""
        data = self.recipe.data
        if self.sizes.rows is not None:
            return self.sizes.rows
        if data.sets:
            rows = [self.rows_of_set(name) for name in data.sets]
            known = [count for count in rows if count is not None]
            return sum(known) if len(known) == len(rows) else None
        return rows_of_source(data)

    @property
    def peak(self) -> PhaseBytes:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        """Whether every phase fits, in smaller parts where a run makes them by itself."""
        return self.budget_problem is None and self.peak.total <= self.memory.capacity

    @property
    def budget_problem(self) -> ConfigError | None:
        """C104, as the run itself raises it."""
        try:
            self.memory.split()
        except ConfigError as error:
            return error
        return None

    def fitting_gpus(self) -> list[str]:
        """The GPUs on which the run fits as it is."""
        return [name for name, gpu in GPUS.items() if replace(self, gpu=gpu).fits]

    def smallest_gpu(self) -> tuple[str, dict[str, Any]] | None:
        """The smallest larger GPU on which the run fits, and the settings that it needs there.

        One on which it fits as it is comes first, then one with settings that change no number.
        """
        larger = [gpu for gpu in GPUS.values() if gpu.memory_gib > self.gpu.memory_gib]
        fitting = [
            (gpu.name, settings)
            for gpu in sorted(larger, key=lambda gpu: gpu.memory_gib)
            if (settings := replace(self, gpu=gpu).settings_that_fit()) is not None
        ]
        return min(
            fitting,
            key=lambda one: (any(key in CHANGE_RESULT for key in one[1]), bool(one[1])),
            default=None,
        )

    def with_settings(self, settings: Mapping[str, Any]) -> "RunPlan":
        """The plan with other settings."""
        recipe = self.recipe
        for key, value in settings.items():
            recipe = with_value(recipe, key.split("."), value)
        return replace(self, recipe=recipe)

    def settings_that_fit(self) -> dict[str, Any] | None:
        """Few settings with which the run fits, those that change no number first; else None."""
        chosen: dict[str, Any] = {}
        if self.fits:
            return chosen
        for options in self.remedies():
            for key, value in options:
                trial = self.with_settings({**chosen, key: value})
                if trial.fits:
                    return without_needless(self, {**chosen, key: value})
            if options:
                key, value = options[-1]
                chosen[key] = value
        return None

    def remedies(self) -> Iterator[list[Setting]]:
        """Settings to try, one list after another; the last of a list is the strongest."""
        recipe = self.recipe
        if recipe.train.memory is not None:
            yield [("train.memory", None)]
        if recipe.train.micro_batch != "auto":
            yield [("train.micro_batch", "auto")]
        if self.teacher is not None and not recipe.train.keeps_teacher_on_host:
            yield [("train.offload_teacher", True)]
        if not recipe.train.gradient_checkpointing:
            yield [("train.gradient_checkpointing", True)]
        if recipe.train.precision == "fp32":
            yield [("train.precision", "bf16")]
        if self.teacher is not None and recipe.teacher.precision in ("auto", "bf16", "fp32"):
            yield [("teacher.precision", "int8")]
        tokens = recipe.rollout.max_new_tokens
        yield [("rollout.max_new_tokens", t) for t in halves(tokens, max(256, tokens // 8))]
        yield [("train.freeze", ("vision",))] if not recipe.train.freeze else []
        yield [("student.train", "lora")] if recipe.student.train == "full" else []

    def smaller_rows(self) -> dict[str, int]:
        """Settings with which the run starts at the number of rows that it would come to."""
        keys = {"rollout": "rollout.rows_per_call", "evaluate": "eval.rows_per_call"}
        phases = [p for p in self.phases if p.note and p.name in keys]
        return {keys[p.name]: p.rows for p in phases}


def halves(value: int, least: int) -> list[int]:
    """Half of a value, a quarter, ..., down to a least one."""
    values = []
    while value // 2 >= least:
        value //= 2
        values.append(value)
    return values


def without_needless(plan: RunPlan, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that are not needed, first those that change what is learned."""
    for key in sorted(settings, key=lambda key: key not in CHANGE_RESULT):
        fewer = {k: v for k, v in settings.items() if k != key}
        if plan.with_settings(fewer).fits:
            settings = fewer
    return settings


def with_value(settings: Any, path: list[str], value: Any) -> Any:
    """Frozen settings with another value at a dotted key."""
    assert is_dataclass(settings)
    assert not isinstance(settings, type)
    assert path[0] in {one.name for one in fields(settings)}, path
    inner = value if len(path) == 1 else with_value(getattr(settings, path[0]), path[1:], value)
    return replace(settings, **{path[0]: inner})


def rows_of_source(data: DataSettings) -> int | None:
    """Training rows of a source: drawn, or of a data set that a shipped recipe names."""
    known = data.diagrams.train if data.train == "diagrams" else known_rows(data.train)
    return known if known is None or data.limit is None else min(known, data.limit)


def known_rows(source: str) -> int | None:
    """Rows of a data set that a shipped recipe names."""
    entry = json.loads(ROWS.read_text(encoding="utf-8")).get(source)
    return None if entry is None else int(entry["rows"])
