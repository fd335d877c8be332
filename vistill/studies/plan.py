"""`vistill plan`: what every stage of a recipe needs, before any weights are fetched."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.config import Recipe, keys_of_stages, load_stages, naming_stage
from vistill.data.counting import count_training_rows, missing_rows_reason
from vistill.data.settings import DataSettings
from vistill.errors import ConfigError, DataError, quote_command, quote_setting
from vistill.planning.gpus import DEFAULT_GPU, PROFILES, find_gpu, find_profile
from vistill.planning.memory import GIB
from vistill.planning.run_plan import CHANGE_RESULT, RunPlan, Sizes, known_rows
from vistill.planning.shapes import COUNTED_FAMILY, ModelShape, shape_of_config, shipped_shapes
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.model_not_found import (
    HUB_MODELS,
    looks_like_hub_id,
    model_name,
    model_not_found_error,
)
from vistill.runs.storage import free_space
from vistill.studies.check import with_models_of_stages
from vistill.studies.stages import no_stage_error
from vistill.training.build import make_objective
from vistill.training.checks.disk import bytes_in
from vistill.training.disk_needs import disk_too_small_error


@dataclass(frozen=True)
class PlanOptions:
    """The options of `vistill plan`."""

    stage: str | None = None
    gpu: str | None = None
    gpus: int = 1
    price: float | None = None
    configs: tuple[Path, ...] = ()
    """Folders with `config.json`, for models that the package does not know."""
    profile: str | None = None
    disk: float | None = None
    """Free disk space in GB. None takes that of the run folder."""
    sizes: Sizes = Sizes()

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings of the profile."""
        return find_profile(self.profile).settings if self.profile else ()

    @property
    def gpu_name(self) -> str:
        """The GPU, that of the profile, or the default one."""
        return self.gpu or (find_profile(self.profile).gpu if self.profile else DEFAULT_GPU)


def plan_stages(recipe: str, overrides: Sequence[str], options: PlanOptions) -> dict[str, RunPlan]:
    """The plan of every stage. Settings of the command line win over those of the profile.

    Raises:
        ConfigError: C132, the plan does not know a GPU, a profile or a model.
        ModelError: M103, there is no such model.
    """
    words = [*options.settings, *overrides]
    stages = load_stages(recipe, words)
    if options.stage is not None:
        find_stage(stages, options.stage)
    return plan_recipes(stages, keys_of_stages(recipe, words), options)


def plan_recipes(
    stages: Mapping[str, Recipe], own_keys: Mapping[str, Sequence[str]], options: PlanOptions
) -> dict[str, RunPlan]:
    """The plan of every stage, or of the one that the options name.

    Args:
        stages: all stages in order: a later one may read the student of an earlier one.
        own_keys: the keys that each stage sets itself, for messages.
        options: those of the verb.
    """
    gpu = find_gpu(options.gpu_name)
    finder = ShapeFinder(list(options.configs))
    plans, starts = {}, {}
    for name, stage in stages.items():
        located, _ = with_models_of_stages(stage, starts)
        starts[stage.run] = located.student
        if options.stage not in (None, name):
            continue
        with naming_stage(name, own_keys.get(name)):
            student = finder.find(located.student.model, "student")
            one = located.teacher.model
            several = {
                key: finder.find(model.model, f"teachers.{key}")
                for key, model in located.teachers.items()
            }
            teacher = finder.find(one, "teacher") if one else None
            largest = max(several.values(), key=lambda s: s.parameters.total, default=teacher)
            plans[name] = RunPlan(
                recipe=stage,
                objective=make_objective(stage),
                student=student,
                teacher=largest,
                teachers=several,
                gpu=gpu,
                sizes=with_rows(options.sizes, stage),
                gpus=options.gpus,
                price=options.price,
            )
    finder.check_all_used()
    return plans


def with_rows(sizes: Sizes, recipe: Recipe) -> Sizes:
    """The sizes with the training rows of a source on this machine, unless they are given."""
    data = recipe.located().data
    if data.sets and sizes.rows is None:
        return with_rows_of_sets(sizes, data)
    if sizes.rows is not None or data.train == "diagrams" or known_rows(data.train) is not None:
        return sizes
    try:
        return dataclasses.replace(sizes, rows=count_training_rows(data))
    except DataError as error:
        return dataclasses.replace(sizes, rows_problem=missing_rows_reason(data, error))


def with_rows_of_sets(sizes: Sizes, data: DataSettings) -> Sizes:
    """The sizes with the training rows of every data set on this machine."""
    rows: dict[str, int] = {}
    problem = ""
    for name in data.sets:
        own = data.of_set(name)
        if own.train == "diagrams" or known_rows(own.train) is not None:
            continue
        try:
            counted = count_training_rows(own)
        except DataError as error:
            problem = problem or missing_rows_reason(own, error)
            continue
        if counted is not None:
            rows[name] = counted
    return dataclasses.replace(sizes, rows_of_sets=rows, rows_problem=problem)


def find_stage(stages: Mapping[str, Recipe], name: str) -> Recipe:
    """One stage of a recipe (C002 if it has none of that name)."""
    if name not in stages:
        raise no_stage_error(name, list(stages))
    return stages[name]


@dataclass
class ShapeFinder:
    """Finds the shape of a model: shipped, in its folder, or in a folder of `--config`."""

    configs: list[Path]
    """Folders that are not used yet, in order."""
    known: dict[str, ModelShape] = dataclasses.field(default_factory=dict)

    def find(self, model: str, role: str) -> ModelShape:
        """The shape of a model of the recipe."""
        if model not in self.known:
            self.known[model] = self.read(model, role)
        return self.known[model]

    def read(self, model: str, role: str) -> ModelShape:
        """The same, not from memory."""
        folder = Path(resolve_model(model, role))
        if (folder / "config.json").is_file():
            return shape_of_folder(folder, model_name(str(folder)), role)
        if model in shipped_shapes():
            return shipped_shapes()[model]
        if self.configs:
            return shape_of_folder(self.configs.pop(0), model, role)
        if not looks_like_hub_id(model):
            raise model_not_found_error(model, role)
        raise unknown_model_error(model, role)

    def check_all_used(self) -> None:
        """C132 if a folder of `--config` is for no model."""
        if self.configs:
            raise ConfigError(
                "C132",
                f"no model of the recipe needs --config {self.configs[0]}",
                why=f"the plan knows the shapes of: {', '.join(self.known)}",
                fix=quote_setting("student.model", self.configs[0])
                + f"   in place of {quote_command('--config', self.configs[0])}",
            )


def unknown_model_error(model: str, role: str) -> ConfigError:
    """C132 for a model whose shape is not part of the package."""
    folder = f"configs/{model.rpartition('/')[2]}"
    return ConfigError(
        "C132",
        f'the plan does not know the shape of {role} "{model}"',
        why=f"the package has those of: {', '.join(hub_shapes())}",
        fix=f"hf download {model} config.json --local-dir {folder}   and then   --config {folder}",
    )


def shape_of_folder(folder: Path, name: str, role: str) -> ModelShape:
    """The shape that a folder's `config.json` describes (C132 if it does not)."""
    file = folder / "config.json"
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        if config.get("model_type") == COUNTED_FAMILY:
            return dataclasses.replace(shape_of_config(config, name), source=str(file))
        from vistill.planning.meta import shape_on_meta

        return shape_on_meta(folder, config, name)
    except (OSError, AttributeError, KeyError, TypeError) as error:
        raise unreadable_config_error(file, error, role) from error


def unreadable_config_error(file: Path, error: Exception, role: str) -> ConfigError:
    """C132 for a configuration without the sizes that the plan needs."""
    missing = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
    return ConfigError(
        "C132",
        f"the plan cannot read the sizes of the {role}",
        where=str(file),
        why=missing,
        fix=f"{role}.model=FOLDER_OR_HUB_ID",
    )


def check_fits(plans: Mapping[str, RunPlan], options: PlanOptions) -> None:
    """C130 or C131 for the first stage that does not fit."""
    for plan in plans.values():
        if not plan.fits:
            raise gpu_too_small_error(plan)
    for plan in plans.values():
        check_disk(plan, options.disk)


def gpu_too_small_error(plan: RunPlan) -> ConfigError:
    """C130 with settings that fit, and a GPU that does."""
    peak, gib = plan.peak, plan.memory.capacity / GIB
    largest = sorted(peak.kinds.items(), key=lambda item: -item[1])[:4]
    fixes = []
    settings, larger = plan.settings_that_fit(), plan.smallest_gpu()
    if settings:
        fixes.append(setting_words(settings))
    if larger is not None:
        fixes.append(" ".join([f"--gpu {larger[0]}", setting_words(larger[1])]).strip())
    if not fixes:
        fixes.append(quote_setting("student.model", smallest_model()))
    shown = {**(settings or {}), **(larger[1] if larger is not None else {})}
    changed = [key for key in shown if key in CHANGE_RESULT]
    verb = "changes" if len(changed) == 1 else "change"
    return ConfigError(
        "C130",
        f"the run does not fit on one {plan.gpu.name}: {peak.name} needs {peak.total / GIB:.1f} GiB"
        f" of {gib:.1f} GiB",
        where=plan.recipe.run,
        why=", ".join(f"{kind} {size / GIB:.1f}" for kind, size in largest if size),
        fix="   or   ".join(fixes),
        note=f"{' and '.join(changed)} {verb} what the run learns" if changed else "",
    )


def setting_words(settings: Mapping[str, Any]) -> str:
    """Settings as words of the command line."""
    return " ".join(setting_word(key, value) for key, value in settings.items())


def setting_word(key: str, value: Any) -> str:
    """A setting as a word of the command line."""
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if value is None:
        return f"{key}=null"
    if isinstance(value, tuple):
        return quote_setting(key, f"[{','.join(value)}]")
    return quote_setting(key, value)


def smallest_model() -> str:
    """The model of a hub with the fewest parameters."""
    hub = hub_shapes()
    return min(hub, key=lambda name: hub[name].parameters.total)


def hub_shapes() -> dict[str, ModelShape]:
    """Shipped shapes of models that a hub has."""
    return {name: s for name, s in shipped_shapes().items() if name in HUB_MODELS}


def check_disk(plan: RunPlan, free: float | None) -> None:
    """C131 if the disk of the run folder, or one of this size, is too small for the run."""
    needs, folder = plan.cost.disk_needs(), RunFolder(Path(plan.recipe.run))
    available = free_space(folder.path) + bytes_in(folder) if free is None else 1e9 * free
    if needs.total > available:
        another = f"--disk {1.05 * needs.total / 1e9:.3g}   for another disk"
        raise disk_too_small_error(needs, available, plan.recipe.run, [another])


def profiles_that_fit(recipe: str, overrides: Sequence[str], options: PlanOptions) -> list[str]:
    """Each memory profile, and whether every stage fits on its GPU with its settings."""
    lines = []
    for name, profile in PROFILES.items():
        own = dataclasses.replace(options, profile=name, gpu=None)
        fits = all(plan.fits for plan in plan_stages(recipe, overrides, own).values())
        verdict = "fits" if fits else "does not fit"
        lines.append(f"--profile {name} ({profile.gpu}): {verdict}: {' '.join(profile.settings)}")
    return lines
