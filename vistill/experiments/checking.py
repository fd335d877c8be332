"""`vistill check`: everything that can be known before step 1, without taking it. `--fast` needs no torch."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vistill.config import Recipe, compare_recipes, load_stages, method_schemas
from vistill.data.loading import LoadedData, check_enough, check_overlap, load_both
from vistill.errors import ModelError
from vistill.runs.chosen import resolve_model
from vistill.runs.folder import RunFolder, checkpoints_in, step_of
from vistill.runs.missing import KNOWN_FAMILIES, looks_like_hub_id, not_found
from vistill.runs.storage import to_json


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    found: str


def check(recipe: str, overrides: Sequence[str] = (), *, fast: bool = False) -> dict[str, list[Finding]]:
    """Findings of every stage; the first mistake is raised as it would be by `vistill train`."""
    stages = load_stages(recipe, overrides)
    return {name: check_one(made, fast) for name, made in stages.items()}


def check_one(recipe: Recipe, fast: bool) -> list[Finding]:
    """Recipe, run folder, data, models' metadata; with the models themselves and the canary unless fast."""
    RunFolder(Path(recipe.run)).check_place()
    found = [Finding("recipe", f"{recipe.method}, {passes_of(recipe)}"), Finding("run", state_of(recipe))]
    if fast:
        train, held = load_both(recipe.data)
        check_overlap(train, held, recipe.data)
        check_enough(recipe.train.prompts_per_step, len(train.prompts))
        return [*found, *rows_of(train, held), *models_of(recipe), disk_of(recipe)]
    return [*found, *models_of(recipe), *in_full(recipe), disk_of(recipe)]


def passes_of(recipe: Recipe) -> str:
    """What the method reads."""
    return "reads " + ", ".join(method_schemas()[recipe.method]["x-passes"])


def state_of(recipe: Recipe) -> str:
    """Whether the run folder is new, or which step it would go on from (C201 where the recipe is another)."""
    folder = RunFolder(Path(recipe.run))
    saved = checkpoints_in(folder.path)
    if not folder.lock_file.exists() or not saved:
        return f"{recipe.run}, new"
    before = json.loads(folder.lock_file.read_text(encoding="utf-8"))["recipe"]
    compare_recipes(before, json.loads(to_json(recipe.to_dict())), ())  # both without secrets
    return f"{recipe.run}, goes on after step {step_of(saved[-1]):,}"


def rows_of(train: LoadedData, held: LoadedData) -> list[Finding]:
    """Rows, all pictures decoded, and what was set aside."""
    bad = [*train.quarantined, *held.quarantined]
    lines = [Finding("data", f"{len(train.prompts):,} training rows, {len(held.prompts):,} to evaluate on")]
    if bad:
        lines.append(Finding("set aside", f"{len(bad):,} rows, first: {bad[0].where} {bad[0].code} {bad[0].reason}"))
    return lines


def models_of(recipe: Recipe) -> list[Finding]:
    """What `config.json` says, without loading weights; hub ids are not asked for."""
    lines = []
    for role, model in (("student", recipe.student.model), ("teacher", recipe.teacher.model)):
        if model:
            lines.append(Finding(role, metadata_of(resolve_model(model, role), role)))
    return lines


def metadata_of(name: str, role: str) -> str:
    """Family and size of a local folder (M103, M105)."""
    folder = Path(name)
    if not folder.is_dir():
        if looks_like_hub_id(name):
            return f"{name}, on the hub or in its cache"
        raise not_found(name, role)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise not_found(name, role) from error
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


def disk_of(recipe: Recipe) -> Finding:
    """Free space where the run will be written."""
    place = next(p for p in (Path(recipe.run).absolute(), *Path(recipe.run).absolute().parents) if p.exists())
    return Finding("disk", f"{shutil.disk_usage(place).free / 1e9:,.1f} GB free at {recipe.run}")


def in_full(recipe: Recipe) -> list[Finding]:
    """Models loaded and held against each other, every view read once, the canary heard. Nothing is kept."""
    from vistill.assembly import plan_of
    from vistill.runtime import quiet, use_one_thread_on_cpu
    from vistill.training.canary import weak
    from vistill.training.checkpoint import Saved, TrainState
    from vistill.training.clock import Clock
    from vistill.training.interrupt import Interrupt
    from vistill.training.loop import update_of
    from vistill.training.measuring import split_of
    from vistill.training.optim import make_optimizer
    from vistill.training.preparation import checked
    from vistill.training.replay import aside
    from vistill.training.roster import enrolled
    from vistill.training.watching import examine

    quiet()
    use_one_thread_on_cpu()
    with aside(RunFolder(Path(recipe.run))) as folder:
        plan = checked(plan_of(recipe, folder, lambda record: None), folder)
        if folder.has_started():
            plan = enrolled(plan, folder)
        split_of(plan, folder)
        bad = folder.read(folder.quarantine)
        facts = json.loads((folder.path / "data.json").read_text(encoding="utf-8"))
    lines = [Finding("data", f"{facts['train_rows']:,} training rows, {facts['eval_rows']:,} to evaluate on")]
    if bad:
        lines.append(
            Finding("set aside", f"{len(bad):,} rows, first: {bad[0]['where']} {bad[0]['code']} {bad[0]['reason']}")
        )
    steps = f"{plan.num_steps:,} steps of {plan.train.prompts_per_step} prompts x {plan.rollout.per_prompt} rollouts"
    optimizer = make_optimizer(plan.cast.student.model, plan.train)
    saved = Saved(plan.cast.student, optimizer, TrainState())
    plan = replace(plan, save=replace(plan.save, journal=False))
    effects = examine(update_of(plan, folder, saved, None, Interrupt(), Clock()), plan.train_prompts)
    told = ", ".join(f"{name.split('/')[1].removesuffix('_image_effect')} {x:.3g}" for name, x in effects.items())
    lines += [
        Finding("steps", steps),
        Finding("canary", f"everybody sees: {told} nats a token" if told else "no pictures"),
    ]
    return [*lines, *(Finding("warning", text) for text in weak(effects))]


def table(stages: dict[str, list[Finding]], fast: bool = False) -> str:
    """One line a finding."""
    lines = []
    for name, found in stages.items():
        if len(stages) > 1:
            lines.append(f"stage {name}")
        lines += [f"{line.what:<10} {line.found}" for line in found]
    return "\n".join([*lines, "ok, as far as can be seen without the models" if fast else "ok"])
