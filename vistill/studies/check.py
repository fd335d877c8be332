"""`vistill check`: all start checks of a run; `--fast` makes only those without torch."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vistill.config import (
    Recipe,
    keys_of_stages,
    load_stages,
    method_schemas,
    naming_stage,
    split_overrides,
)
from vistill.data.data_sets import load_data
from vistill.data.keys import num_steps
from vistill.data.loading import QuarantinedRow, check_overlap, check_rows_per_step
from vistill.data.mixture import check_mixture, describe_mixture, mixture_of, set_of
from vistill.errors import ConfigError
from vistill.planning.shapes import COUNTED_FAMILY, ModelShape, shape_of_config, shipped_shapes
from vistill.planning.student_bytes import checkpoint_bytes
from vistill.report.preview_page import check_page_file
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in
from vistill.runs.model_families import check_family, check_known_type
from vistill.runs.model_not_found import looks_like_hub_id, model_not_found_error
from vistill.runs.recipe_changes import differences, key_class, unused_folder
from vistill.runs.storage import free_space, to_json
from vistill.studies.preview import Preview, full_first, parts_of
from vistill.studies.shown_rows import rows_in_words
from vistill.training.checks.benchmarks import (
    NOT_COMPARED,
    allowed_in_words,
    compare_with_benchmarks,
    find_evaluation_sets,
)
from vistill.training.checks.check import CheckResult
from vistill.training.checks.data import rows_by_set
from vistill.training.checks.disk import describe_disk, disk_needs, reads_average
from vistill.training.checks.gold import DRAWN, JudgedGolds, judge_gold_answers
from vistill.training.checks.notes import notes_on_run
from vistill.training.checks.rows import needs_in_words, needs_of_schema, usable_rows
from vistill.training.checks.set_aside import refused_rows
from vistill.training.disk_needs import size_text
from vistill.training.recipe import ModelSettings, default_settings
from vistill.training.run_lock import (
    WARMUP,
    check_changed_names,
    check_recipe_changes,
    read_lock,
)
from vistill.training.teachers import TeacherRules, describe_teachers
from vistill.types import Prompt


def check(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    fast: bool = False,
    preview: str | Path | None = None,
) -> dict[str, list[CheckResult]]:
    """Check every stage; the first mistake raises the same error as in `vistill train`.

    If settings on the command line differ from those of a run that has started, report the
    difference and check the run that they would make.

    Args:
        recipe: recipe file, or the name of a shipped one.
        overrides: settings as `key=value`.
        fast: check no weights.
        preview: HTML file that shows rows as the models will see them.
    """
    stages = load_stages(recipe, overrides)
    keys = [*split_overrides(overrides)]
    own_keys = keys_of_stages(recipe, overrides)
    if preview is not None:
        check_page_file(Path(preview))
    sheet = None if preview is None else Preview(Path(preview))
    findings, starts = {}, {}
    for name, stage in stages.items():
        overridden = [key.removeprefix(f"stages.{name}.") for key in keys]
        checked, notes = with_models_of_stages(stage, starts)
        starts[stage.run] = checked.student
        with naming_stage(name, own_keys.get(name)):
            findings[name] = [*check_stage(checked, fast, overridden, sheet), *notes]
    if sheet is not None:
        folder = sheet.file.absolute().parent
        where = "" if folder.is_dir() else ", in a new folder"
        sheet.write()
        written = f"written to {sheet.file}{where}"
        findings[next(reversed(findings))].append(CheckResult("preview", written))
    return findings


def with_models_of_stages(
    recipe: Recipe, starts: Mapping[str, ModelSettings]
) -> tuple[Recipe, list[CheckResult]]:
    """Replace the student of an earlier stage that has not run by the model it will start from.

    It has the same tokenizer, images and sizes.

    Args:
        recipe: of a stage.
        starts: the model that each earlier stage starts from, by its run folder.
    """
    notes = []
    for role in ("student", "teacher"):
        name = getattr(recipe, role).model
        if name in starts and not RunFolder(Path(name)).has_started():
            recipe = dataclasses.replace(recipe, **{role: starts[name]})
            text = f"student of {name}, which has not run; checked with {starts[name].model}"
            notes.append(CheckResult(f"{role} of a stage", text))
    for name, teacher in recipe.teachers.items():
        if teacher.model in starts and not RunFolder(Path(teacher.model)).has_started():
            start = starts[teacher.model].model
            own = dataclasses.replace(teacher, model=start)
            recipe = dataclasses.replace(recipe, teachers={**recipe.teachers, name: own})
            text = f"student of {teacher.model}, which has not run; checked with {start}"
            notes.append(CheckResult(f"teachers.{name} of a stage", text))
    return recipe, notes


def check_stage(
    recipe: Recipe, fast: bool, overridden: Sequence[str] = (), sheet: Preview | None = None
) -> list[CheckResult]:
    """Check recipe, run folder, data and model metadata; unless fast, also models and canary."""
    RunFolder(Path(recipe.run)).check_writable()
    RunFolder(Path(recipe.run)).try_to_write()
    try:
        recipe, state = run_state_in_words(recipe, overridden)
    except ConfigError:  # what is wrong in the new settings comes first
        lock = read_lock(RunFolder(Path(recipe.run)))
        check_changed_names(lock.get("recipe", {}), recipe.located())
        model_findings(recipe.located(), fast)
        data_findings(recipe.located())
        raise
    first = [
        CheckResult("recipe", f"{recipe.method}, {passes_in_words(recipe)}"),
        CheckResult("run", state),
    ]
    check_data = data_findings if fast else run_all_checks
    rest = check_data(recipe.located() if fast else recipe, sheet)
    disk = [disk_finding(recipe)] if fast else []
    return [*first, *model_findings(recipe.located(), fast), *rest, *disk]


def passes_in_words(recipe: Recipe) -> str:
    """The passes of the method."""
    return "passes " + ", ".join(method_schemas()[recipe.method]["x-passes"])


def run_state_in_words(recipe: Recipe, overridden: Sequence[str] = ()) -> tuple[Recipe, str]:
    """Say whether the run is new or from which step it resumes.

    Args:
        recipe: of this start.
        overridden: keys set on the command line. Only those may differ from the run's own.

    Returns:
        The recipe to check (that of a new run if the settings need one), and the text.

    Raises:
        ConfigError: C201, the recipe file itself differs from the run's.
    """
    folder = RunFolder(Path(recipe.run))
    if not folder.has_started():
        return recipe, f"{recipe.run}, new"
    now, lock = json.loads(to_json(recipe.to_dict())), read_lock(folder)  # both without secrets
    differing = differences(lock.get("recipe", {}), now, default_settings(recipe.method))
    changed = {key: text for key, text in differing.items() if is_overridden(key, overridden)}
    schedule = [key for key in changed if key_class(key) == "schedule"]
    if changed and changed == differing and "student" in lock["recipe"]:
        text = "; ".join(f"{key} {change}" for key, change in changed.items())
        if schedule != list(changed):
            new = dataclasses.replace(recipe, run=unused_folder(recipe.run))
            return new, f"{text}: {recipe.run} has started, so this is a new run, run={new.run}"
        accepted = check_recipe_changes(folder, lock, now, [*schedule, WARMUP])
        return recipe, f"{resume_point(folder)}; {text}: with --accept {','.join(accepted)}"
    check_recipe_changes(folder, lock, now, ())
    return recipe, resume_point(folder)


def resume_point(folder: RunFolder) -> str:
    """The step after which a run resumes, in words."""
    saved = checkpoints_in(folder.path)
    return f"{folder.path}, resumes after step {checkpoint_step(saved[-1]) if saved else 0:,}"


def is_overridden(key: str, overridden: Sequence[str]) -> bool:
    """Whether the command line sets a key, its group, or another method than the key's."""
    of_method = "method" in overridden and key.split(".")[0] in method_schemas()
    return of_method or any(key == name or key.startswith(f"{name}.") for name in overridden)


def model_findings(recipe: Recipe, fast: bool) -> list[CheckResult]:
    """The metadata of the models from `config.json`; loads no weights and no hub id."""
    lines = []
    several = {f"teachers.{name}": one.model for name, one in recipe.teachers.items()}
    roles = {"student": recipe.student.model, "teacher": recipe.teacher.model, **several}
    for role, model in roles.items():
        if model or role == "student":
            lines.append(CheckResult(role, model_metadata(resolve_model(model, role), role, fast)))
    return lines


def model_metadata(name: str, role: str, fast: bool = False) -> str:
    """Family and size of a model in a local folder (M103, M105)."""
    folder = Path(name)
    if not folder.is_dir():
        if looks_like_hub_id(name):
            return f"{name}, on the hub or in its cache" + (": not looked at" if fast else "")
        raise model_not_found_error(name, role)
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise model_not_found_error(name, role) from error
    if not isinstance(config, dict):
        raise model_not_found_error(name, role)
    family = check_family(config, name, role)
    check_known_type(config, name, role)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"{name}, family {family}, {size / 1e6:,.1f} MB of weights"


def disk_finding(recipe: Recipe) -> CheckResult:
    """What the run needs of its disk (C131), if the shape of its student is known without torch."""
    folder, shape = RunFolder(Path(recipe.run)), known_shape(recipe.student.model)
    if shape is None:
        free = size_text(free_space(folder.path))
        text = f"{free} free at {recipe.run}; without --fast also the size of a checkpoint"
        return CheckResult("disk", text)
    schema = method_schemas()[recipe.method]
    size = checkpoint_bytes(shape, recipe, reads_average(schema["x-passes"]))
    needs = disk_needs(recipe, size, recipe.train.steps)
    return CheckResult("disk", describe_disk(needs, folder, recipe.run))


def known_shape(model: str) -> ModelShape | None:
    """The shape of a model that the package has, or that follows from its `config.json`."""
    folder = Path(resolve_model(model, "student"))
    if not (folder / "config.json").is_file():
        return shipped_shapes().get(model)
    config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != COUNTED_FAMILY:
        return None
    try:
        return shape_of_config(config, model)
    except (KeyError, TypeError, ValueError):
        return None


def data_findings(recipe: Recipe, sheet: Preview | None = None) -> list[CheckResult]:
    """Check the data without models: all start checks of the rows that need no torch."""
    schema = method_schemas().with_knobs(recipe.method, recipe.knobs)
    needs = needs_of_schema(recipe.method, schema)
    allowed = find_evaluation_sets(recipe.data)
    loaded, held_out = load_data(recipe.data)
    check_overlap(loaded, held_out, recipe.data)
    train, evaluation, is_drawn = loaded.prompts, held_out.prompts, bool(loaded.diagrams)
    bad = [*loaded.quarantined, *held_out.quarantined]
    gold = JudgedGolds(DRAWN)
    if not (is_drawn or held_out.diagrams) or recipe.data.sets:
        gold = judge_gold_answers(recipe, train, evaluation, needs.answers)
    if gold.error is not None:
        bad += refused_rows(train, recipe.data, gold.refused, gold.error)
        train = [p for p in train if p.id not in gold.refused]
    check_rows_per_step(recipe.train.prompts_per_step, len(train), recipe.data.holdout)
    usable = usable_rows(needs, train, recipe.views.thought, is_drawn)
    taught = teacher_findings(recipe, train, evaluation)
    if sheet is not None:
        parts = parts_by_set(usable, evaluation)
        views = full_first(name.partition(".")[2] for name in schema["x-passes"])
        sheet.add(f"{recipe.method}, {recipe.run}", parts, views, recipe.view_context(), None)
    meant = notes_on_run(recipe, needs.needs, usable, evaluation)
    notes = [*loaded.notes, *held_out.notes, *meant]
    compared = compare_with_benchmarks(recipe.data, usable, is_drawn and not recipe.data.sets)
    return [
        CheckResult("evaluation only", allowed_in_words(allowed)),
        CheckResult("data", rows_in_numbers(train, evaluation, bad)),
        CheckResult("benchmarks", NOT_COMPARED if compared is None else compared.summary()),
        *mixture_findings(recipe, usable),
        *taught,
        CheckResult("gold answers", gold.summary),
        *rows_in_words(usable, evaluation, recipe.eval, parts_of),
        CheckResult("notes", "; ".join(dict.fromkeys(notes)) or "none"),
        CheckResult("method", f"{needs_in_words(needs)}: satisfied by {len(usable):,} rows"),
    ]


def mixture_findings(recipe: Recipe, train: Sequence[Prompt]) -> list[CheckResult]:
    """Rows, share and epochs of each data set of a mixture (C101 if a set is too small)."""
    mixture = mixture_of(train, recipe.data.sets)
    if mixture is None:
        return []
    per_step = recipe.train.prompts_per_step
    check_mixture(mixture, per_step)
    steps = recipe.train.steps or num_steps(len(train), per_step, recipe.train.epochs)
    text = describe_mixture(mixture, steps, per_step).replace("; ", "\n")
    return [CheckResult("data sets", text)]


def teacher_findings(
    recipe: Recipe, train: Sequence[Prompt], evaluation: Sequence[Prompt]
) -> list[CheckResult]:
    """Rows of each of several teachers (D310, D311)."""
    if not recipe.teachers:
        return []
    rules = TeacherRules(recipe.teachers)
    names = rules.assign(train, "training")
    rules.check_used(names, train)
    if recipe.eval.advantage and recipe.eval.every:
        rules.assign(evaluation, "evaluation")
    return [CheckResult("teachers", describe_teachers(names, train))]


def parts_by_set(
    train: Sequence[Prompt], evaluation: Sequence[Prompt]
) -> dict[str, Sequence[Prompt]]:
    """Training and evaluation rows, those of each data set apart."""
    parts: dict[str, list[Prompt]] = {}
    for part, prompts in (("training", train), ("evaluation", evaluation)):
        for name in sorted({set_of(p) for p in prompts}) or [""]:
            title = f"{part}, {name}" if name else part
            parts[title] = [p for p in prompts if set_of(p) == name]
    return dict(parts)


def rows_in_numbers(
    train: Sequence[Prompt], evaluation: Sequence[Prompt], bad: Sequence[QuarantinedRow]
) -> str:
    """How many rows there are, by data set, and the first bad one."""
    first = f", first: {bad[0].where} {bad[0].code} {bad[0].reason}" if bad else ""
    quarantined = f"; {len(bad):,} quarantined{first}" if bad else ""
    sets = rows_by_set(train, evaluation)
    return f"{len(train):,} training rows, {len(evaluation):,} evaluation rows{sets}{quarantined}"


def run_all_checks(recipe: Recipe, sheet: Preview | None = None) -> list[CheckResult]:
    """Run every start check and the canary in a temporary copy of the run folder."""
    from vistill.models.loading import render_prompt
    from vistill.runtime import prepare_process
    from vistill.training.build import make_setup, run_start_checks
    from vistill.training.checks.code import views_of
    from vistill.training.loop import run_canary_check
    from vistill.training.replay import copied_run_folder

    prepare_process()
    with copied_run_folder(RunFolder(Path(recipe.run))) as folder:
        setup = make_setup(recipe, folder, "check")
        findings = run_start_checks(setup)
        render = partial(render_prompt, setup.student)
        shown = rows_in_words(setup.train_prompts, setup.eval_prompts, recipe.eval, render)
        at = [line.what for line in findings].index("rows") + 1
        findings = [*findings[:at], *shown, *findings[at:]]
        if sheet is not None:
            parts = parts_by_set(setup.train_prompts, setup.eval_prompts)
            views = full_first(views_of(setup.objective))
            sheet.add(f"{recipe.method}, {recipe.run}", parts, views, setup.models.view, render)
        return [*findings, *run_canary_check(setup.plan(), folder)]


def format_table(stages: dict[str, list[CheckResult]], fast: bool = False) -> str:
    """One line per finding; rows that an earlier stage shows are not repeated."""
    lines: list[str] = []
    shown: set[str] = set()
    for name, findings in stages.items():
        if len(stages) > 1:
            lines.append(f"stage {name}")
        width = max(len(line.what) for line in findings)
        gap = "\n" + " " * (width + 2)
        new = [f for f in findings if f.what != "row" or f.summary not in shown]
        lines += [f"{f.what:<{width}}  {f.summary.replace(chr(10), gap)}" for f in new]
        shown |= {f.summary for f in findings if f.what == "row"}
    return "\n".join([*lines, "ok; models and canary not checked (--fast)" if fast else "ok"])
