"""Checks of the training rows against benchmarks: sets for evaluation only, and rows in both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vistill.data.set_settings import in_set
from vistill.data.settings import DataSettings
from vistill.errors import DataError
from vistill.evaluation.benchmarks.contamination import Contamination, find_contamination
from vistill.evaluation.benchmarks.licences import reason_for_evaluation_only
from vistill.runs.storage import write_json
from vistill.training.checks.check import StartCheck
from vistill.types import Prompt

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

#: The file of a run folder that lists the matches.
FILE = "contamination.json"
#: What is said where nothing is compared.
NOT_COMPARED = "training rows are compared with none (data.benchmarks=FOLDER)"


def find_evaluation_sets(settings: DataSettings) -> dict[str, str]:
    """The sources of training rows that are for evaluation only, and why.

    Raises:
        DataError: D312, there is one, and `data.evaluation_only` does not allow it.
    """
    sources = {name: one.train for name, one in sorted(settings.sets.items())}
    reasons: dict[str, str] = {}
    for name, source in (sources or {"": settings.train}).items():
        reason = reason_for_evaluation_only(source)
        if reason and settings.evaluation_only == "stop":
            raise in_set(evaluation_only_error(source, reason), name)
        if reason:
            reasons[source] = reason
    return reasons


def evaluation_only_error(source: str, reason: str) -> DataError:
    """D312."""
    return DataError(
        "D312",
        f"the training rows of {source} are for evaluation only",
        where=source,
        why=reason,
        fix="data.train=FILE   with other rows   or, where you may train on them,  "
        " data.evaluation_only=allow",
    )


def compare_with_benchmarks(
    settings: DataSettings, prompts: Sequence[Prompt], is_drawn: bool
) -> Contamination | None:
    """The training rows that are rows of the benchmarks in a folder.

    Args:
        settings: of the data; `benchmarks` is the folder.
        prompts: training rows.
        is_drawn: whether they are procedural diagrams.

    Returns:
        The result; None without a folder, and for diagrams.

    Raises:
        DataError: D102, the folder holds no benchmark.
    """
    if not settings.benchmarks or is_drawn:
        return None
    result = find_contamination(prompts, settings, Path(settings.benchmarks))
    if not result.compared:
        raise DataError(
            "D102",
            f"the folder {settings.benchmarks} holds no benchmark",
            why="it holds NAME/data.jsonl and the like; docs/benchmarks.md lists the names",
            fix="data.benchmarks=FOLDER   or, to compare with none,   data.benchmarks=",
        )
    return result


def check_evaluation_sets(setup: "RunSetup") -> str:
    """Refuse sources that are for evaluation only, or record that they are allowed (D312)."""
    if setup.provided is not None:
        return "rows that are passed in name no source"
    allowed = find_evaluation_sets(setup.recipe.located().data)
    for source, reason in allowed.items():
        note(setup, f"trains on {source}, which is for evaluation only: {reason}")
    return allowed_in_words(allowed)


def allowed_in_words(allowed: Mapping[str, str]) -> str:
    """The sources that are trained on although they are for evaluation only."""
    if not allowed:
        return "no source is known to be for evaluation only"
    return "allowed: " + "; ".join(f"{source}: {reason}" for source, reason in allowed.items())


def check_contamination(setup: "RunSetup") -> str:
    """Report training rows that are rows of a benchmark, and list them in the run folder."""
    is_drawn = bool(setup.train_data.diagrams or setup.diagrams) and not setup.recipe.data.sets
    result = compare_with_benchmarks(setup.recipe.data, setup.train_prompts, is_drawn)
    if result is None:
        return NOT_COMPARED
    record = {
        "compared": dict(result.compared),
        "unreadable": result.unreadable,
        "matches": [match.to_dict() for match in result.matches],
    }
    write_json(setup.folder.path / FILE, record)
    if result.matches:
        note(setup, f"{result.summary()}; all are in {FILE}")
    return result.summary()


def note(setup: "RunSetup", text: str) -> None:
    """Say something at the start of a run, and keep it."""
    if setup.purpose == "train":
        setup.folder.event(f"note: {text}")
        setup.progress({"event": f"note: {text}"})


EVALUATION_ONLY_CHECK = StartCheck(
    "evaluation only",
    "no source of training rows is for evaluation only, unless the recipe allows it",
    check_evaluation_sets,
    ("train", "check"),
)
CONTAMINATION_CHECK = StartCheck(
    "contamination",
    "training rows that are rows of a benchmark are said",
    check_contamination,
    ("train", "check"),
    phase="comparing rows with benchmarks",
)
