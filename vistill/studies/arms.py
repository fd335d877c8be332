"""Matched arms: runs that differ only in what is compared. How they are made, checked, trained in order, paired.

A study is a list of arms. They are trained here in this process in order, or side by side (`processes.py`).
The same command continues a study. Nothing here needs torch until an arm is trained in this process.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistill.config import Recipe, load_stages, method_schemas
from vistill.errors import ConfigError, StorageError
from vistill.report.run_data import read_json
from vistill.runs.folder import RunFolder
from vistill.runs.recipe_changes import flatten, key_class
from vistill.runs.storage import read_lines, to_json

if TYPE_CHECKING:  # a mistake in the recipe is reported before torch is imported
    from vistill.api import Run


@dataclass(frozen=True)
class Arm:
    """One run of a study."""

    name: str
    folder: Path
    """The run folder; the output of its process goes to `console.log` in it."""
    recipe: Recipe | None = None
    """What it trains; None for a command that trains no recipe."""
    command: tuple[str, ...] = ()
    """The words that run it in a process of its own."""
    done: Callable[[], bool] = lambda: False
    """For a command without a recipe: whether its result is there already."""

    @property
    def settings(self) -> Recipe:
        """The recipe of an arm that trains one."""
        assert self.recipe is not None, f"the arm {self.name} trains no recipe"
        return self.recipe

    @property
    def seed(self) -> int:
        """The seed of its recipe."""
        return self.settings.seed

    def values(self) -> dict[str, Any]:
        """Every setting by its dotted key, the method's knobs under the method's name."""
        return flatten(self.settings.to_dict())

    def is_finished(self) -> bool:
        """Whether its folder holds the finished run of this very recipe. Data and models are not read again."""
        if self.recipe is None:
            return self.done()
        result, lock = (
            read_json(self.folder / "result.json"),
            read_json(RunFolder(self.folder).lock_file),
        )
        same = lock.get("recipe") == json.loads(
            to_json(self.recipe.to_dict())
        )  # both without secrets
        return same and bool(result.get("finished"))


def vistill_command(*words: str) -> tuple[str, ...]:
    """This interpreter, this package."""
    return (sys.executable, "-m", "vistill", *words)


def arms_of(recipe: str, overrides: Sequence[str] = ()) -> list[Arm]:
    """Every stage of a recipe as an arm, in order; a recipe without stages is one arm."""
    return [
        Arm(
            name,
            Path(stage.run),
            stage,
            vistill_command("train", recipe, *overrides, "--stage", name),
        )
        for name, stage in load_stages(recipe, overrides).items()
    ]


def train_in_order(
    arms: Sequence[Arm], progress: Callable[[dict[str, Any]], None], accept: Sequence[str] = ()
) -> Iterator[tuple[Arm, "Run"]]:
    """Train one arm after the other in this process; each is yielded when it is finished.

    A finished run checks its recipe, data and models again and takes no step. An error or a signal ends the study.
    """
    from vistill.api import train
    from vistill.runtime import prepare_process

    prepare_process()
    for arm in arms:
        yield arm, train(arm.settings, accept=accept, progress=progress)


def differences(base: Arm, other: Arm, varies: Collection[str] = ()) -> list[str]:
    """Settings in which two arms differ, apart from the method, its knobs and what else is compared.

    Keys that change neither data nor update (devices, kernels, micro-batches, checkpoints) may differ; `eval` may not.

    Args:
        base: the arm that others are compared with.
        other: another arm.
        varies: more keys or groups that are compared, such as `views`.
    """
    compared = ("method", *method_schemas(), *varies)
    first, second = base.values(), other.values()
    return [
        key
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
        and (key_class(key) != "free" or key.startswith("eval."))
        and not any(key == name or key.startswith(f"{name}.") for name in compared)
    ]


def check_matched(arms: Sequence[Arm], varies: Collection[str] = ()) -> None:
    """C301 where an arm differs from the first in more than what is compared."""
    for other in arms[1:]:
        different = differences(arms[0], other, varies)
        if different:
            raise ConfigError(
                "C301",
                f"the arms {arms[0].name} and {other.name} differ in {', '.join(different)}",
                where=str(other.folder),
                why="compared runs share student, teacher, data, seed and evaluation; else the cause is not known",
                fix="\n".join(
                    f"stages.{other.name}.{key}={shown_value(arms[0], key)}"
                    for key in different[:5]
                ),
            )


def shown_value(arm: Arm, key: str) -> str:
    """A setting of an arm, as it is typed after `key=`."""
    value = arm.values().get(key)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def unmatched_sentence(arms: Sequence[Arm], base: Arm, varies: Collection[str] = ()) -> str:
    """One sentence that names the arms which cannot be compared with the base, or nothing."""
    names_of: dict[str, list[str]] = {}
    for arm in arms:
        different = ", ".join(differences(base, arm, varies))
        if different:
            names_of.setdefault(different, []).append(arm.name)
    if not names_of:
        return ""
    parts = [f"{', '.join(names)} (other {keys})" for keys, names in names_of.items()]
    return f"not matched with {base.name}, so a difference from it is not the method's alone: {'; '.join(parts)}"


@dataclass(frozen=True)
class Comparison:
    """Two methods over the same seeds and, within a seed, over the same questions."""

    base: str
    other: str
    seeds: tuple[int, ...]
    accuracy: dict[str, list[float]]
    """By name: the accuracy of the last evaluation, one value per seed."""
    scores: dict[str, list[dict[str, float]]]
    """By name: prompt id -> share of its samples that are right, one mapping per seed."""

    @property
    def differences(self) -> list[float]:
        """Other minus base, one value per seed."""
        return [
            b - a for a, b in zip(self.accuracy[self.base], self.accuracy[self.other], strict=True)
        ]

    @property
    def mean(self) -> float:
        """Mean difference over the seeds."""
        return sum(self.differences) / len(self.seeds)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the difference over the seeds; None for one seed."""
        if len(self.seeds) < 2:
            return None
        return (sum((d - self.mean) ** 2 for d in self.differences) / (len(self.seeds) - 1)) ** 0.5


def compare(base: Sequence[Arm], other: Sequence[Arm], varies: Collection[str] = ()) -> Comparison:
    """Pair two methods by seed and by question.

    Args:
        base: one finished arm per seed.
        other: the arms of the other method with the same seeds.
        varies: as for `differences`.

    Raises:
        ConfigError: C301, the arms of a seed are not matched or answered other questions.
        StorageError: S605, an arm has no evaluation.
    """
    names, by_seed = (base[0].name, other[0].name), {arm.seed: arm for arm in other}
    seeds = [arm.seed for arm in base]
    if sorted(seeds) != sorted(arm.seed for arm in other):
        raise ConfigError(
            "C301",
            f"{names[0]} and {names[1]} were run with other seeds",
            why=f"{names[0]}: {seeds}; {names[1]}: {sorted(by_seed)}",
            fix="run both with the same seeds",
        )
    accuracy: dict[str, list[float]] = {name: [] for name in names}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for arm in base:
        pair = (arm, by_seed[arm.seed])
        check_matched(pair, varies)
        for name, one in zip(names, pair, strict=True):
            value, by_question = last_evaluation(one)
            accuracy[name].append(value)
            scores[name].append(by_question)
        check_questions(pair, *(scores[name][-1] for name in names))
    return Comparison(*names, tuple(seeds), accuracy, scores)


def last_evaluation(arm: Arm) -> tuple[float, dict[str, float]]:
    """The accuracy of the last evaluation, and of each of its questions the share of samples that are right."""
    records = list(read_lines(RunFolder(arm.folder).evaluations))
    last = records[-1] if records else {}
    right: dict[str, list[float]] = {}
    for sample in read_lines(RunFolder(arm.folder).samples(f"step-{last.get('step', 0):06d}")):
        if sample["view"] == "full" and sample["mode"] == "sampled":
            right.setdefault(sample["prompt"], []).append(float(sample["correct"]))
    if "accuracy" not in last or not right:
        raise StorageError(
            "S605",
            f"the arm {arm.name} has no evaluation with its samples",
            where=str(arm.folder),
            why="methods are compared by the answers of the last evaluation",
            fix="eval.every=32   and train it again",
        )
    return last["accuracy"], {prompt: sum(values) / len(values) for prompt, values in right.items()}


def check_questions(
    pair: Sequence[Arm], first: Mapping[str, float], second: Mapping[str, float]
) -> None:
    """C301 where two arms did not answer the same questions in their last evaluation."""
    alone, total = sorted(first.keys() ^ second.keys()), len(first.keys() | second.keys())
    if alone:
        raise ConfigError(
            "C301",
            f"the last evaluations of {pair[0].name} and {pair[1].name} ask other questions",
            where=str(pair[1].folder),
            why=f"{len(alone)} of {total} questions stand in one of them alone, first: {alone[0]}",
            fix="train both again into a new folder: run=runs/another",
        )
