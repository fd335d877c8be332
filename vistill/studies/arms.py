"""Matched arms: runs that differ only in the compared settings.

A study is a list of arms. This module trains them in order in this process; `processes.py` trains
them side by side. The same command continues a study. Only training in this process imports torch.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistill.config import Recipe, keys_of_stages, load_stages, method_schemas, naming_stage
from vistill.errors import ConfigError, StorageError, quote_setting
from vistill.phases import LOADING_LIBRARIES, PhaseProgress
from vistill.registry import plugin_words
from vistill.report.run_data import read_json
from vistill.runs.folder import RunFolder
from vistill.runs.recipe_changes import differences, flatten, in_new_folder, key_class
from vistill.runs.storage import read_lines, to_json

if TYPE_CHECKING:  # report a mistake in the recipe before the slow import of torch
    from vistill.api import Run


@dataclass(frozen=True)
class Arm:
    """One run of a study."""

    name: str
    folder: Path
    """The run folder. `console.log` in it has the output of the process."""
    recipe: Recipe | None = None
    """The recipe to train; None for a command without a recipe."""
    command: tuple[str, ...] = ()
    """The command line that runs the arm in its own process."""
    done: Callable[[], bool] = lambda: False
    """For a command without a recipe: whether its result exists."""
    ready: Callable[[], bool] = lambda: True
    """Whether what it reads exists, such as a model that another arm makes."""
    own_keys: tuple[str, ...] | None = None
    """The keys that a stage sets itself; None for a recipe without stages."""

    @property
    def settings(self) -> Recipe:
        """The recipe of the arm."""
        assert self.recipe is not None, f"the arm {self.name} has no recipe"
        return self.recipe

    @property
    def seed(self) -> int:
        """The seed of the recipe."""
        return self.settings.seed

    def values(self) -> dict[str, Any]:
        """All settings by dotted key; the knobs of the method are under the name of the method."""
        return flatten(self.settings.to_dict())

    def is_finished(self) -> bool:
        """Whether the folder holds a finished run of this recipe. Does not read data or models."""
        if self.recipe is None:
            return self.done()
        result = read_json(self.folder / "result.json")
        lock = read_json(RunFolder(self.folder).lock_file)
        recipe = json.loads(to_json(self.recipe.to_dict()))  # without secrets, like the lock
        return lock.get("recipe") == recipe and bool(result.get("finished"))


def vistill_command(*words: str) -> tuple[str, ...]:
    """A vistill command with this interpreter."""
    return (sys.executable, "-m", "vistill", *words)


def make_arms(recipe: str, overrides: Sequence[str] = ()) -> list[Arm]:
    """Make one arm per stage of a recipe, in order; a recipe without stages is one arm."""
    words = (*overrides, *plugin_words())
    stages, own_keys = load_stages(recipe, overrides), keys_of_stages(recipe, overrides)

    def arm(name: str, stage: Recipe) -> Arm:
        command = vistill_command("train", recipe, *words, "--stage", name)
        return Arm(name, Path(stage.run), stage, command, own_keys=own_keys.get(name))

    return [arm(name, stage) for name, stage in stages.items()]


def train_in_order(
    arms: Sequence[Arm], progress: Callable[[dict[str, Any]], None], accept: Sequence[str] = ()
) -> Iterator[tuple[Arm, "Run"]]:
    """Train the arms in order in this process and yield each finished one.

    A finished run checks its recipe, data and models again and takes no step. An error or a signal
    ends the study. With several arms, each record of the progress names its arm as `stage`.
    """
    progress(PhaseProgress(LOADING_LIBRARIES).to_record())
    from vistill.api import train
    from vistill.runtime import prepare_process

    prepare_process()
    for arm in arms:

        def show(record: dict[str, Any], stage: str = arm.name) -> None:
            progress({"stage": stage, **record} if len(arms) > 1 else record)

        with naming_stage(arm.name, arm.own_keys):
            finished = train(arm.settings, accept=accept, progress=show)
        yield arm, finished


def setting_differences(base: Arm, other: Arm, varies: Collection[str] = ()) -> list[str]:
    """Settings in which two arms differ, apart from the method, its knobs and `varies`.

    Keys that change neither data nor update (devices, kernels, micro-batches, checkpoints) may
    differ. `eval` settings may not.

    Args:
        base: the baseline arm.
        other: another arm.
        varies: further compared keys or groups, such as `views`.
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


def check_started(arms: Sequence[Arm], folder: Path, varies: Collection[str] = ()) -> None:
    """Raise C201 if a run of a study was started with other settings than its arm has now.

    The process of the arm would find that too, but late, and its fix would be about its own run.

    Args:
        arms: of one or several seeds.
        folder: of the study.
        varies: settings that are not known yet.
    """
    for arm in arms:
        lock = read_json(RunFolder(arm.folder).lock_file).get("recipe", {})
        now = json.loads(to_json(arm.settings.to_dict()))
        changed = differences(lock, now, defaults=now)  # a version may have added keys
        lines = [f"{key}   {change}" for key, change in changed.items() if key not in varies]
        if lines:
            shown = [*lines[:5], *([f"and {len(lines) - 5} more"] if len(lines) > 5 else [])]
            raise ConfigError(
                "C201",
                "the folder has runs of another comparison",
                where=str(arm.folder),
                why="\n".join(shown),
                fix=in_new_folder(folder),
            )


def check_matched(arms: Sequence[Arm], varies: Collection[str] = ()) -> None:
    """Raise C301 if an arm differs from the first one in a setting that is not compared."""
    for other in arms[1:]:
        different = setting_differences(arms[0], other, varies)
        if different:
            raise ConfigError(
                "C301",
                f"the arms {arms[0].name} and {other.name} differ in {', '.join(different)}",
                where=str(other.folder),
                why="compared runs need equal student, teacher, data, seed and evaluation",
                fix=" ".join(
                    quote_setting(f"stages.{other.name}.{key}", format_setting(arms[0], key))
                    for key in different
                ),
            )


def format_setting(arm: Arm, key: str) -> str:
    """Format a setting of an arm for the command line, after `key=`."""
    value = arm.values().get(key)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def unmatched_sentence(arms: Sequence[Arm], base: Arm, varies: Collection[str] = ()) -> str:
    """A sentence that names the arms that do not match the base; empty if all match."""
    names_by_keys: dict[str, list[str]] = {}
    for arm in arms:
        different = ", ".join(setting_differences(base, arm, varies))
        if different:
            names_by_keys.setdefault(different, []).append(arm.name)
    if not names_by_keys:
        return ""
    parts = [f"{', '.join(names)} (different {keys})" for keys, names in names_by_keys.items()]
    prefix = f"not matched with {base.name}, so a difference has other causes than the method"
    return f"{prefix}: {'; '.join(parts)}"


@dataclass(frozen=True)
class SeedComparison:
    """Two methods on the same seeds and, within a seed, on the same questions."""

    base: str
    other: str
    seeds: tuple[int, ...]
    accuracy: dict[str, list[float]]
    """By name: the accuracies of the last evaluation, one per seed."""
    scores: dict[str, list[dict[str, float]]]
    """By name: prompt id -> share of correct samples, one mapping per seed."""

    @property
    def differences(self) -> list[float]:
        """Other minus base, one value per seed."""
        return [
            b - a for a, b in zip(self.accuracy[self.base], self.accuracy[self.other], strict=True)
        ]

    @property
    def mean(self) -> float:
        """Mean difference over seeds."""
        return sum(self.differences) / len(self.seeds)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the difference over seeds; None for one seed."""
        if len(self.seeds) < 2:
            return None
        return (sum((d - self.mean) ** 2 for d in self.differences) / (len(self.seeds) - 1)) ** 0.5


def compare_arms(
    base: Sequence[Arm], other: Sequence[Arm], varies: Collection[str] = ()
) -> SeedComparison:
    """Pair two methods by seed and by question.

    Args:
        base: one finished arm per seed.
        other: the arms of the other method with the same seeds.
        varies: as for `setting_differences`.

    Raises:
        ConfigError: C301, the arms of a seed do not match or answered different questions.
        StorageError: S605, an arm has no evaluation.
    """
    names, by_seed = (base[0].name, other[0].name), {arm.seed: arm for arm in other}
    seeds = [arm.seed for arm in base]
    if sorted(seeds) != sorted(arm.seed for arm in other):
        raise ConfigError(
            "C301",
            f"{names[0]} and {names[1]} have different seeds",
            why=f"{names[0]}: {seeds}; {names[1]}: {sorted(by_seed)}",
            fix="run both with the same seeds",
        )
    accuracy: dict[str, list[float]] = {name: [] for name in names}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for arm in base:
        pair = (arm, by_seed[arm.seed])
        check_matched(pair, varies)
        for name, paired_arm in zip(names, pair, strict=True):
            value, by_question = last_evaluation(paired_arm)
            accuracy[name].append(value)
            scores[name].append(by_question)
        check_questions(pair, *(scores[name][-1] for name in names))
    return SeedComparison(*names, tuple(seeds), accuracy, scores)


def last_evaluation(arm: Arm) -> tuple[float, dict[str, float]]:
    """The accuracy of the last evaluation, and the share of correct samples per question."""
    records = list(read_lines(RunFolder(arm.folder).evaluations))
    last = records[-1] if records else {}
    correct: dict[str, list[float]] = {}
    for sample in read_lines(RunFolder(arm.folder).samples(f"step-{last.get('step', 0):06d}")):
        if sample["view"] == "full" and sample["mode"] == "sampled":
            correct.setdefault(sample["prompt"], []).append(float(sample["correct"]))
    if "accuracy" not in last or not correct:
        raise missing_evaluation(arm)
    return last["accuracy"], {
        prompt: sum(values) / len(values) for prompt, values in correct.items()
    }


def missing_evaluation(arm: Arm) -> StorageError:
    """S605 for an arm that has no evaluation, or will have none."""
    return StorageError(
        "S605",
        f"the arm {arm.name} has no evaluation with its samples",
        where=str(arm.folder),
        why="the comparison needs the answers of the last evaluation",
        fix="eval.every=32 run=NEW",
    )


def check_questions(
    pair: Sequence[Arm], first: Mapping[str, float], second: Mapping[str, float]
) -> None:
    """Raise C301 if the last evaluations of two arms have different questions."""
    unmatched, total = sorted(first.keys() ^ second.keys()), len(first.keys() | second.keys())
    if unmatched:
        raise ConfigError(
            "C301",
            f"the last evaluations of {pair[0].name} and {pair[1].name} differ in their questions",
            where=str(pair[1].folder),
            why=f"{len(unmatched)} of {total} questions are only in one, first: {unmatched[0]}",
            fix="train both again into a new folder: run=NEW",
        )
