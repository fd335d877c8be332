"""The target of a verb: recipe, run folder or model."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vistill.cli.messages import print_result
from vistill.config import (
    Recipe,
    build_recipe,
    find_recipe,
    load_recipe,
    method_schemas,
    override,
    parse_text,
    read_recipe_text,
    set_dotted,
    split_overrides,
)
from vistill.display.run_display import show_phases
from vistill.errors import ModelError, StorageError, in_place_of, quote_command
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import CHECKPOINT, RunFolder
from vistill.runs.near_runs import near_run
from vistill.training.recipe import stored_in
from vistill.training.run_lock import check_unmasked


def recipe_for(target: str, overrides: list[str], verb: str) -> Recipe:
    """Make the recipe of an evaluation.

    The target is a recipe file, a run folder (with its recipe, data and selected student), a
    student in a run folder (with the recipe and data of its run), or a model (evaluated on
    diagrams). Results go into `run`, by default a new folder next to the run.

    Raises:
        StorageError: S605, a run folder that does not name its data.
    """
    pairs = split_overrides(overrides)
    if target.endswith((".yaml", ".toml")):
        return load_recipe(target, overrides)
    folder, started = Path(target), ""
    run, name = run_of(target)
    if run:
        check_unmasked(RunFolder(Path(run)), pairs)
        tree, started = recipe_of_run(Path(run)), run
        tree["run"] = f"{run.rstrip('/')}-{verb}{name}"
        rollout = tree.get("rollout") or {}
        if rollout.get("engine") == "server":  # it served the teacher, not this student
            rollout["engine"] = "shared"
        pairs = {"eval.limit": pairs.get("eval.final_limit", tree["eval"]["final_limit"])} | pairs
    elif (folder / "run.lock.json").is_file() and "data.train" not in pairs:
        raise no_data_error(target, verb)
    else:
        tree = {
            "run": f"runs/{verb}-{folder.name.replace(':', '-')}",
            "method": "sft",
            "eval": {"limit": 200},
        }
        tree |= {"student": {}, "data": {"train": "diagrams"}}
    set_dotted(tree, "student.model", target)
    override(tree, pairs)
    origins = dict.fromkeys(pairs, "command line")
    return build_recipe(tree, name=verb, started=started, overrides=origins)


def run_of(target: str) -> tuple[str, str]:
    """The run folder with a recipe that a target belongs to, and what of it the target names.

    `RUN` names nothing more, `RUN/student` gives `-student`, and `RUN/checkpoint-000123/student`
    gives `-checkpoint-000123`. ("", "") for any other target.
    """
    folder = Path(target).absolute()  # `RUN/student` is a link, which is not followed
    if (folder / "recipe.json").is_file():
        return target, ""
    is_checkpoint = CHECKPOINT.fullmatch(folder.parent.name) is not None
    run = folder.parent.parent if is_checkpoint else folder.parent
    is_student = folder.name == "student" and (folder / "config.json").is_file()
    if not is_student or not (run / "recipe.json").is_file():
        return "", ""
    return str(run), f"-{folder.parent.name if is_checkpoint else folder.name}"


def evaluate_target(target: str, overrides: list[str], as_json: bool, advantage_only: bool) -> None:
    """Run `eval` or `probe` on a target and print the result."""
    from vistill.cli.table import facts_table, run_facts, summary_table

    verb = "probe" if advantage_only else "eval"
    recipe = recipe_for(target, overrides, verb)
    with naming_target(target):
        check_name(recipe.student.model)
    with naming_target(target), show_phases():
        from vistill.api import evaluate as run_evaluation
        from vistill.runtime import prepare_process

        prepare_process()
        run = run_evaluation(recipe, advantage_only=advantage_only)
    summary, facts = run.evaluations[-1], run_facts(recipe, run.path)
    if as_json:
        print(json.dumps({**facts, **summary}, indent=2))
        return
    print_result(facts_table(facts))
    print_result(summary_table(summary, recipe.eval.temperature))
    print_result(f"report   {run.path / 'report.html'}")


def check_name(model: str, role: str = "student") -> None:
    """M103 for a name that leads to no folder, before libraries are loaded. Asks no hub."""
    from vistill.studies.check import model_metadata

    if not Path(model).is_dir():
        model_metadata(resolve_model(model, role), role)


@contextmanager
def naming_target(target: str) -> Iterator[None]:
    """M103 for a target that does not exist, in words of the command: it has no student."""
    try:
        yield
    except ModelError as error:
        if error.code != "M103" or error.what != f'student "{target}" not found':
            raise
        model = shlex.split(error.fix)[0].removeprefix("student.model=")
        near = near_run(Path(target)) or ("" if model.startswith("FOLDER") else model)
        anything = "   a run folder, a model folder, a hub id or a recipe"
        fix = in_place_of(near, target) if near else f"{in_place_of('TARGET', target)}{anything}"
        what = f'target "{target}" not found'
        raise ModelError("M103", what, why=error.why, fix=fix) from error


def recipe_of_run(folder: Path) -> dict[str, Any]:
    """The recipe of a run folder for an evaluation, which needs no method of the user."""
    tree = stored_in(str(folder), json.loads((folder / "recipe.json").read_text(encoding="utf-8")))
    if tree["method"] not in method_schemas():
        tree.pop(tree["method"], None)
        tree["method"] = "sft"
    return tree


def no_data_error(target: str, verb: str) -> StorageError:
    """Make S605 for a run folder of an earlier version of `vistill.distill`."""
    return StorageError(
        "S605",
        f"{target} does not name the data of its run",
        where=target,
        why="it has no recipe.json, and accuracies on other data are not comparable",
        fix=f"{quote_command('vistill', verb, target)} data.train=FILE.jsonl   or   "
        "data.train=diagrams",
    )


def warn_dropped_knobs(recipe: str, overrides: list[str]) -> None:
    """Warn that `method=...` drops the knobs of the method in the file."""
    file = find_recipe(recipe)
    pairs = split_overrides(overrides)
    for method in override(parse_text(read_recipe_text(file), file), pairs):
        print(
            f"method={pairs['method']}: ignoring the block {method}: of {file.name}",
            file=sys.stderr,
        )
