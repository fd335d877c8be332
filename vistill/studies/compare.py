"""`vistill compare`: methods on matched runs over students, teachers and seeds.

Within a seed all arms have the same initial weights, prompts, order, keyed noise and updates. The
same command continues a comparison that was killed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vistill.config import Recipe, keys_of_stages, load_stages
from vistill.studies.arms import Arm, check_matched, check_started, make_arms, missing_evaluation
from vistill.studies.compare_table import (
    Comparison,
    RunResult,
    best_rates,
    print_table,
    read_result,
    write_files,
)
from vistill.studies.models_by_seed import TinyModels
from vistill.studies.processes import run_side_by_side

#: Settings of `--quick`: enough to see that every part works, too short to compare methods.
QUICK = (
    "train.steps=6",
    "train.prompts_per_step=4",
    "data.diagrams.train=64",
    "data.diagrams.eval=48",
    "eval.every=6",
    "eval.limit=48",
    "eval.final_limit=48",
    "eval.extra_limit=16",
    "eval.blind=false",
    "eval.reading=false",
    "save.every=0",
)
#: Run seeds of the tuning start here, so that no compared run has one of them.
TUNING_SEED = 1000
#: Models of a recipe that may be made by seed.
SHIPPED = ("vistill:student", "vistill:teacher")


@dataclass(frozen=True, order=True)
class Pairing:
    """The student, the teacher and the seed of a run."""

    seed: int
    student: int
    teacher: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"seed-{self.seed}-student-{self.student}-teacher-{self.teacher}"


@dataclass(frozen=True)
class Study:
    """What to compare. Nothing here depends on the machine."""

    recipe: str
    methods: tuple[str, ...]
    """Stages of the recipe, or names of methods; the first one is the baseline."""
    folder: Path
    overrides: tuple[str, ...] = ()
    seeds: int = 3
    students: int = 2
    teachers: int = 2
    rates: tuple[float, ...] = ()
    """Learning rates to choose from for each arm; empty keeps that of the recipe."""
    quick: bool = False
    student_plan: Mapping[str, object] = field(default_factory=dict)
    teacher_plan: Mapping[str, object] = field(default_factory=dict)
    first_model: int = 0
    at_once: int = 2

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Settings of all arms; a method that is no stage of the recipe becomes one."""
        short = self.in_stages(QUICK) if self.quick else ()
        new = [f"stages.{m}.method={m}" for m in self.methods if m not in self.own_keys]
        return (*short, *self.overrides, *self.in_stages(["profile=true"]), *new)

    @cached_property
    def own_keys(self) -> dict[str, tuple[str, ...]]:
        """By stage of the recipe: the keys that it sets itself."""
        load_stages(self.recipe, self.overrides)  # for its errors
        return keys_of_stages(self.recipe, self.overrides)

    def in_stages(self, words: Sequence[str]) -> tuple[str, ...]:
        """The settings, and the same for each stage that sets the key itself."""
        stages = [
            f"stages.{name}.{word}"
            for word in words
            for name, keys in self.own_keys.items()
            if word.partition("=")[0] in keys
        ]
        return (*words, *stages)

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The recipes of the methods in order, before seeds and models are set."""
        stages = load_stages(self.recipe, [*self.words, f"run={self.folder}"])
        return [stages[method] for method in self.methods]

    @property
    def base(self) -> Recipe:
        """The recipe of the baseline."""
        return self.recipes[0]

    @property
    def makes_models(self) -> bool:
        """Whether students and teachers are made by seed: tiny ones, and not with `--quick`."""
        pairs = {(recipe.student.model, recipe.teacher.model) for recipe in self.recipes}
        return pairs == {SHIPPED} and not self.quick

    @property
    def models(self) -> TinyModels:
        """The tiny models by seed."""
        return TinyModels(
            self.folder / "models", self.student_plan, self.teacher_plan, self.first_model
        )

    def pairings(self) -> list[Pairing]:
        """One per seed: along the diagonals of students and teachers, so that both vary early."""
        students, teachers = (self.students, self.teachers) if self.makes_models else (1, 1)
        grid = [(s, (s + d) % teachers) for d in range(teachers) for s in range(students)]
        return [Pairing(seed, *grid[seed % len(grid)]) for seed in range(self.seeds)]

    def arms(
        self, pairing: Pairing, rates: Mapping[str, float], folder: Path | None = None
    ) -> list[Arm]:
        """The arms of one pairing, with the learning rate of each; C301 if they do not match."""
        run = folder or self.folder / pairing.name
        own = [f"seed={pairing.seed}"]
        if self.base.data.train == "diagrams":
            own.append(f"data.diagrams.seed={pairing.seed}")
        if self.makes_models:
            own.append(f"student.model={self.models.source('student', pairing.student)}")
            own.append(f"teacher.model={self.models.source('teacher', pairing.teacher)}")
        words = [*self.words, f"run={run}", *self.in_stages(own)]
        words += [f"stages.{arm}.train.lr={rate:g}" for arm, rate in rates.items()]
        by_name = {arm.name: arm for arm in make_arms(self.recipe, words)}
        arms = [by_name[method] for method in self.methods]
        check_matched(arms, varies=("train.lr",) if self.rates else ())
        return arms


def run_compare(study: Study) -> Comparison:
    """Make the models, tune, train every arm of every seed, write and print the table."""
    pairings, costs = study.pairings(), study.folder / "cost.json"
    for pairing in pairings:  # what cannot be compared is refused before anything runs
        untuned = study.arms(pairing, {})
        check_started(untuned, study.folder, varies=("train.lr",) if study.rates else ())
        if untuned[0].settings.eval.every == 0:
            raise missing_evaluation(untuned[0])
    rates = tune(study)
    arms = {pairing: study.arms(pairing, rates) for pairing in pairings}
    for of_pairing in arms.values():
        check_started(of_pairing, study.folder)
    models = [] if study.rates else missing_models(study, pairings)  # tuning has made them
    label = f"{len(study.methods)} arms, {len(pairings)} seeds"
    if models:
        label = f"making {', '.join(arm.name for arm in models)}; {label}"
    run_side_by_side(label, [*models, *runs_of(study, arms)], costs, study.at_once)
    results = [
        read_result(arm, pairing.seed, pairing.student, pairing.teacher)
        for pairing in pairings
        for arm in arms[pairing]
    ]
    comparison = Comparison(study.methods, tuple(results), rates, notes(study, pairings))
    write_files(comparison, study.folder)
    print_table(comparison, study.folder)
    return comparison


def named(arm: Arm, pairing: Pairing) -> Arm:
    """The arm with its seed in its name, for the progress line and for errors."""
    return replace(arm, name=f"{arm.name} seed {pairing.seed}")


def runs_of(study: Study, arms: Mapping[Pairing, Sequence[Arm]]) -> list[Arm]:
    """The runs of all pairings; each starts when its own student and teacher exist."""

    def has_models(pairing: Pairing) -> bool:
        sides = (("student", pairing.student), ("teacher", pairing.teacher))
        return not study.makes_models or all(study.models.exists(*side) for side in sides)

    return [
        replace(named(arm, pairing), ready=lambda p=pairing: has_models(p))
        for pairing, of_pairing in arms.items()
        for arm in of_pairing
    ]


def missing_models(study: Study, pairings: Sequence[Pairing]) -> list[Arm]:
    """What makes the students and teachers of these pairings that are not in the cache."""
    if not study.makes_models:
        return []
    logs = study.folder / "models-log"
    return [
        *study.models.arms("teacher", {p.teacher for p in pairings}, logs),
        *study.models.arms("student", {p.student for p in pairings}, logs),
    ]


def tune(study: Study) -> dict[str, float]:
    """The learning rate of each arm: the best of one run each, on a student and seeds of its own.

    Empty if no rates are given. Ties take the lower rate.
    """
    if not study.rates:
        return {}
    student = study.students if study.makes_models else 0
    pairing = Pairing(TUNING_SEED, student, 0)
    runs: dict[str, list[RunResult]] = {method: [] for method in study.methods}
    by_rate = {
        rate: study.arms(
            pairing,
            dict.fromkeys(study.methods, rate),
            study.folder / "tuning" / f"rate-{rate:g}",
        )
        for rate in sorted(study.rates)
    }
    costs = study.folder / "cost.json"
    if missing := missing_models(study, [*study.pairings(), pairing]):
        run_side_by_side("making tiny models", missing, costs, study.at_once)
    run_side_by_side(
        f"tuning: {len(study.rates)} rates for each arm",
        [replace(a, name=f"{a.name} {rate:g}") for rate, arms in by_rate.items() for a in arms],
        costs,
        study.at_once,
    )
    for arms in by_rate.values():
        for arm in arms:
            runs[arm.name].append(read_result(arm, TUNING_SEED, student, 0))
    return best_rates(runs)


def notes(study: Study, pairings: Sequence[Pairing]) -> tuple[str, ...]:
    """What a reader must know of the design, in sentences."""
    students, teachers = len({p.student for p in pairings}), len({p.teacher for p in pairings})
    runs = "1 run" if len(pairings) == 1 else f"{len(pairings)} runs"
    lines = [f"{runs} per arm: students {students}, teachers {teachers}."]
    if students == teachers == 1:
        lines.append("One student and one teacher: intervals over them do not exist.")
    if study.rates:
        given = ", ".join(f"{rate:g}" for rate in sorted(study.rates))
        lines.append(f"Learning rate of each arm: the best of {given} on other seeds.")
    else:
        lines.append(f"Learning rate of every arm: {study.base.train.lr:g}, not tuned.")
    if study.quick:
        lines.append("--quick: a few updates on the shipped pair. Nothing follows about methods.")
    if study.makes_models:
        for kind, numbers in (
            ("student", sorted({p.student for p in pairings})),
            ("teacher", sorted({p.teacher for p in pairings})),
        ):
            for number in numbers:
                card = study.models.measured(kind, number)
                shares = ", ".join(
                    f"{100 * card[key]:.1f} % {key}" for key in ("greedy", "sampled")
                )
                lines.append(f"{kind} {study.first_model + number}: {shares} when it was made.")
    return tuple(lines)
