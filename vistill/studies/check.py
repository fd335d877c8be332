"""`vistill check`: all start checks of a run; `--fast` makes only those without torch."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistill.config import Recipe, load_stages, method_schemas
from vistill.data.loading import check_overlap, check_rows_per_step, load_train_and_eval
from vistill.errors import ModelError
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in
from vistill.runs.model_not_found import KNOWN_FAMILIES, looks_like_hub_id, model_not_found_error
from vistill.runs.storage import to_json
from vistill.training.checks.check import CheckResult
from vistill.training.run_lock import check_recipe_changes, read_lock


def check(
    recipe: str, overrides: Sequence[str] = (), *, fast: bool = False
) -> dict[str, list[CheckResult]]:
    """Check every stage; the first mistake raises the same error as in `vistill train`."""
    stages = load_stages(recipe, overrides)
    return {name: check_stage(stage, fast) for name, stage in stages.items()}


def check_stage(recipe: Recipe, fast: bool) -> list[CheckResult]:
    """Check recipe, run folder, data and model metadata; unless fast, also models and canary."""
    RunFolder(Path(recipe.run)).check_writable()
    first = [
        CheckResult("recipe", f"{recipe.method}, {passes_in_words(recipe)}"),
        CheckResult("run", run_state_in_words(recipe)),
    ]
    rest = data_findings(recipe.located()) if fast else run_all_checks(recipe)
    return [*first, *model_findings(recipe.located()), *rest, disk_finding(recipe)]


def passes_in_words(recipe: Recipe) -> str:
    """The passes of the method."""
    return "passes " + ", ".join(method_schemas()[recipe.method]["x-passes"])


def run_state_in_words(recipe: Recipe) -> str:
    """Whether the run is new or from which step it resumes; C201 if the recipe has changed."""
    folder = RunFolder(Path(recipe.run))
    if not folder.has_started():
        return f"{recipe.run}, new"
    settings = json.loads(to_json(recipe.to_dict()))  # without secrets, like the lock
    check_recipe_changes(folder, read_lock(folder), settings, ())
    saved = checkpoints_in(folder.path)
    return f"{recipe.run}, resumes after step {checkpoint_step(saved[-1]) if saved else 0:,}"


def model_findings(recipe: Recipe) -> list[CheckResult]:
    """The metadata of the models from `config.json`; loads no weights and no hub id."""
    lines = []
    for role, model in (("student", recipe.student.model), ("teacher", recipe.teacher.model)):
        if model:
            lines.append(CheckResult(role, model_metadata(resolve_model(model, role), role)))
    return lines


def model_metadata(name: str, role: str) -> str:
    """Family and size of a model in a local folder (M103, M105)."""
    folder = Path(name)
    if not folder.is_dir():
        if looks_like_hub_id(name):
            return f"{name}, on the hub or in its cache"
        raise model_not_found_error(name, role)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise model_not_found_error(name, role) from error
    family = config.get("model_type")
    if family not in KNOWN_FAMILIES:
        raise ModelError(
            "M105",
            f"the family {family!r} has no adapter",
            where=name,
            why="image tokens and positions differ between families",
            fix=f"{role}.model=Qwen/Qwen3-VL-2B-Instruct",
            note=f"families with an adapter: {', '.join(KNOWN_FAMILIES)}",
        )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"{name}, {family}, {size / 1e6:,.1f} MB of weights"


def disk_finding(recipe: Recipe) -> CheckResult:
    """The free disk space at the run folder."""
    run = Path(recipe.run).absolute()
    existing = next(path for path in (run, *run.parents) if path.exists())
    return CheckResult(
        "disk", f"{shutil.disk_usage(existing).free / 1e9:,.1f} GB free at {recipe.run}"
    )


def data_findings(recipe: Recipe) -> list[CheckResult]:
    """Check the data without models."""
    train, evaluation = load_train_and_eval(recipe.data)
    check_overlap(train, evaluation, recipe.data)
    check_rows_per_step(recipe.train.prompts_per_step, len(train.prompts))
    bad = [*train.quarantined, *evaluation.quarantined]
    quarantined = (
        f"; {len(bad):,} quarantined, first: {bad[0].where} {bad[0].code} {bad[0].reason}"
        if bad
        else ""
    )
    return [
        CheckResult(
            "data",
            f"{len(train.prompts):,} training rows, "
            f"{len(evaluation.prompts):,} evaluation rows{quarantined}",
        )
    ]


def run_all_checks(recipe: Recipe) -> list[CheckResult]:
    """Run every start check and the canary in a temporary copy of the run folder."""
    from vistill.runtime import prepare_process
    from vistill.training.build import make_setup, run_start_checks
    from vistill.training.loop import run_canary_check
    from vistill.training.replay import copied_run_folder

    prepare_process()
    with copied_run_folder(RunFolder(Path(recipe.run))) as folder:
        setup = make_setup(recipe, folder, "check")
        findings = run_start_checks(setup)
        return [*findings, *run_canary_check(setup.plan(), folder)]


def format_table(stages: dict[str, list[CheckResult]], fast: bool = False) -> str:
    """One line per finding."""
    lines = []
    for name, findings in stages.items():
        if len(stages) > 1:
            lines.append(f"stage {name}")
        width = max(len(line.what) for line in findings)
        lines += [f"{line.what:<{width}}  {line.summary}" for line in findings]
    return "\n".join([*lines, "ok; models and canary not checked (--fast)" if fast else "ok"])
