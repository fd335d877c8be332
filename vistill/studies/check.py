"""`vistill check`: every start check of a run, without its first step. `--fast` makes those that need no torch."""

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
    """Findings of every stage; the first mistake is raised as it would be by `vistill train`."""
    stages = load_stages(recipe, overrides)
    return {name: check_one(made, fast) for name, made in stages.items()}


def check_one(recipe: Recipe, fast: bool) -> list[CheckResult]:
    """Recipe, run folder, data, models' metadata; with the models themselves and the canary unless fast."""
    RunFolder(Path(recipe.run)).check_writable()
    head = [
        CheckResult("recipe", f"{recipe.method}, {passes_of(recipe)}"),
        CheckResult("run", state_of(recipe)),
    ]
    rest = without_models(recipe.located()) if fast else format_findings(recipe)
    return [*head, *models_of(recipe.located()), *rest, disk_of(recipe)]


def passes_of(recipe: Recipe) -> str:
    """What the method reads."""
    return "reads " + ", ".join(method_schemas()[recipe.method]["x-passes"])


def state_of(recipe: Recipe) -> str:
    """Whether the run folder is new, or which step it would go on from (C201 where the recipe is another)."""
    folder = RunFolder(Path(recipe.run))
    if not folder.has_started():
        return f"{recipe.run}, new"
    now = json.loads(to_json(recipe.to_dict()))  # both without secrets
    check_recipe_changes(folder, read_lock(folder), now, ())
    saved = checkpoints_in(folder.path)
    return f"{recipe.run}, goes on after step {checkpoint_step(saved[-1]) if saved else 0:,}"


def models_of(recipe: Recipe) -> list[CheckResult]:
    """What `config.json` says, without loading weights; hub ids are not asked for."""
    lines = []
    for role, model in (("student", recipe.student.model), ("teacher", recipe.teacher.model)):
        if model:
            lines.append(CheckResult(role, metadata_of(resolve_model(model, role), role)))
    return lines


def metadata_of(name: str, role: str) -> str:
    """Family and size of a local folder (M103, M105)."""
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
            fix=f"{role}.model=Qwen/Qwen3-VL-2B-Instruct   or another model of: {', '.join(KNOWN_FAMILIES)}",
        )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"{name}, {family}, {size / 1e6:,.1f} MB of weights"


def disk_of(recipe: Recipe) -> CheckResult:
    """Free space where the run will be written."""
    place = next(
        p for p in (Path(recipe.run).absolute(), *Path(recipe.run).absolute().parents) if p.exists()
    )
    return CheckResult(
        "disk", f"{shutil.disk_usage(place).free / 1e9:,.1f} GB free at {recipe.run}"
    )


def without_models(recipe: Recipe) -> list[CheckResult]:
    """The checks of the data alone."""
    train, held = load_train_and_eval(recipe.data)
    check_overlap(train, held, recipe.data)
    check_rows_per_step(recipe.train.prompts_per_step, len(train.prompts))
    bad = [*train.quarantined, *held.quarantined]
    aside = (
        f"; set aside {len(bad):,}, first: {bad[0].where} {bad[0].code} {bad[0].reason}"
        if bad
        else ""
    )
    return [
        CheckResult(
            "data",
            f"{len(train.prompts):,} training rows, {len(held.prompts):,} to evaluate on{aside}",
        )
    ]


def format_findings(recipe: Recipe) -> list[CheckResult]:
    """Every start check by name, the canary last. Nothing is kept."""
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
    """One line a finding."""
    lines = []
    for name, found in stages.items():
        if len(stages) > 1:
            lines.append(f"stage {name}")
        width = max(len(line.what) for line in found)
        lines += [f"{line.what:<{width}}  {line.summary}" for line in found]
    return "\n".join([*lines, "ok, as far as can be seen without the models" if fast else "ok"])
