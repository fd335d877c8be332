"""The Python API: run a recipe, distil your own models and prompts, or only measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from vistill.answers.math_process import shared_judge
from vistill.batch import Objective
from vistill.config import build_recipe, load_recipe, override, split_overrides
from vistill.data.loading import load_source
from vistill.data.settings import Columns, DataSettings, with_options
from vistill.data.stored_prompts import with_content_hashes
from vistill.display.heatmaps import TokenAdvantage, TokenAdvantages
from vistill.display.run_display import RunDisplay
from vistill.display.run_summary import run_html, run_summary
from vistill.evaluation.runner import heatmap_rows
from vistill.evaluation.settings import EvalSettings
from vistill.export import Exported, export_model
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, score
from vistill.phases import count_items, open_phase, report_phases
from vistill.python_fixes import fixes_in_python, in_python
from vistill.registry import load_plugins, tasks
from vistill.report.page import write_report
from vistill.rollouts.build import make_engine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.storage import append_line, to_json, write_json
from vistill.schema.other_trainers import OUR_KEYS
from vistill.signals.visual_advantage import visual_advantage as advantage_of
from vistill.training.build import build, check_objective, make_setup, run_start_checks
from vistill.training.checks.arguments import (
    check_distill_arguments,
    check_method_argument,
    check_model,
    check_options,
    check_recipe,
    check_responses,
    check_share,
    check_source_of_rows,
    check_teachers,
    training_folder_error,
)
from vistill.training.checks.data import check_prompts, no_answers_error, no_prompts_error
from vistill.training.loop import run
from vistill.training.provided_inputs import make_recipe, store_inputs
from vistill.training.recipe import Recipe
from vistill.training.results import record_failures, store_pictures, write_result
from vistill.training.run_lock import lock_recipe
from vistill.training.settings import RewardSettings, SaveSettings, TrainSettings
from vistill.training.setup import Progress, ProvidedInputs, RunSetup
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view
from vistill.views.settings import ViewSettings


@dataclass(frozen=True)
class Run:
    """A finished (or stopped) run."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # of a text too

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary a step."""
        return self.folder.read(self.folder.metrics)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One dictionary an evaluation."""
        return self.folder.read(self.folder.evaluations)

    @property
    def student(self) -> Path:
        """Model folder of the best checkpoint on validation, else of the last."""
        return Path(resolve_model(str(self.path)))

    def report(self) -> Path:
        """Write `report.html` and return its path."""
        return write_report([self.path], self.path / "report.html")

    def export(self, to: str | Path | None = None, *, dtype: str = "", push: str = "") -> Exported:
        """Write the student with a model card for transformers and vLLM (`vistill/export.py`)."""
        with fixes_in_python(f"Run({str(self.path)!r}).export", ("to", "dtype", "push")):
            return export_model(self.path, to, dtype=dtype, push=push)

    def _repr_html_(self) -> str:
        """The run in a notebook: before, after, student."""
        return run_html(self.path)


def train(
    recipe: Recipe | str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    accept: Sequence[str] = (),
    progress: Progress | None = None,
    plugins: Sequence[str | Path] = (),
) -> Run:
    """Run a recipe; resumes by itself where its folder has a valid checkpoint and the same recipe.

    Args:
        recipe: a file, the name of a shipped one, or `vistill.load_recipe(...)`.
        overrides: `{"train.lr": 2e-6}` or `["train.lr=2e-6"]`.
        accept: on resume, schedule keys (`train.lr`) and plug-ins (`methods.mine`) whose change is
            intended.
        progress: is called with each record (docs/overview.md). None shows the run: a live line on
            a terminal, plain lines elsewhere, and a table at the end.
        plugins: files of your own that are executed first, so that the recipe can name what they
            register.
    """
    load_plugins(plugins)
    check_recipe(recipe, "train")
    settings = (
        with_overrides(recipe, overrides)
        if isinstance(recipe, Recipe)
        else load_recipe(recipe, overrides)
    )
    folder = RunFolder(Path(settings.run))
    folder.check_writable()
    with folder.locked():
        lock_recipe(folder, settings, accept)
        with record_failures(folder):
            return train_setup(make_setup(settings, folder), progress, accept)


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any] | Sequence[str]) -> Recipe:
    """A recipe with some settings changed, checked like a file."""
    pairs = overrides if isinstance(overrides, Mapping) else split_overrides(overrides)
    if not pairs:
        return recipe
    tree = recipe.to_dict()
    override(tree, pairs)
    return build_recipe(tree)


def train_setup(setup: RunSetup, progress: Progress | None, accept: Sequence[str]) -> Run:
    """Build, train and write the results: the same for a recipe and for Python."""
    if progress is None:
        with RunDisplay(has_summary=True) as display:
            finished = train_setup(setup, display.show, accept)
            display.print_text(run_summary(finished.path))
        return finished
    setup.progress, setup.accept = progress, accept
    with shared_judge().kept_in(setup.folder.path, append_line), report_phases(progress):
        plan = build(setup)
        write_result(setup.folder, plan, run(plan, setup.folder))
        with open_phase("writing the report"):
            return write_run_report(setup.folder.path)


def write_run_report(path: Path) -> Run:
    """The run of a folder, its report written."""
    finished = Run(path)
    finished.report()
    return finished


class DistillOptions(TypedDict, total=False):
    """Optional arguments of `distill`, such as `train=vistill.TrainSettings(lr=1e-5)`."""

    eval_prompts: Sequence[Prompt]
    train: TrainSettings
    rollout: RolloutSettings
    save: SaveSettings
    evaluation: EvalSettings
    reward: RewardSettings
    views: ViewSettings | ViewContext
    data: DataSettings
    seed: int
    progress: Progress | None
    profile: bool
    accept: Sequence[str]
    plugins: Sequence[str | Path]


OPTIONS = tuple(DistillOptions.__annotations__)


@in_python("distill", "student", "teacher", "prompts", "objective", "out", *OPTIONS)
def distill(
    student: VLM,
    teacher: VLM | Mapping[str, VLM] | None,
    prompts: Sequence[Prompt],
    objective: Objective,
    out: str | Path,
    **options: Unpack[DistillOptions],
) -> Run:
    """Distil with your own models and prompts.

    Checks, training loop, resume and run folder are those of a recipe. The run folder stores the
    prompts, the settings as `recipe.json`, and models that cannot be loaded again from their
    source, so `vistill eval`, `replay` and `report` work on it.

    Args:
        student: learns, in place.
        teacher: is frozen; None for methods that have none (`vistill explain METHOD`). Several by
            name, if the label `teacher` (or `data_set`) of each prompt names one of them.
        prompts: training prompts.
        objective: `OPD()`, `VAOPD(high_share=0.2)`, any class in `vistill.METHODS`, or a class of
            your own.
        out: run folder; an unfinished run in it is resumed.
        **options: see `vistill.DistillOptions`.
    """
    check_distill_arguments(options, OPTIONS, out, OUR_KEYS)
    load_plugins(options.get("plugins", ()))
    check_model(student, "student")
    several = check_teachers(teacher)
    check_method_argument(objective)
    check_objective(objective)
    check_prompts(prompts)
    check_prompts(options.get("eval_prompts", ()), "eval_prompts")
    if not prompts:
        raise no_prompts_error("the data set is empty")
    held = with_content_hashes(options.get("eval_prompts", ()))
    single = teacher.freeze() if isinstance(teacher, VLM) else None
    given = ProvidedInputs(
        student, single, with_content_hashes(prompts), held,
        teachers={name: vlm.freeze() for name, vlm in several.items()},
    )  # fmt: skip
    renamed = {"eval" if name == "evaluation" else name: value for name, value in options.items()}
    settings: dict[str, Any] = {
        f.name: renamed[f.name] for f in fields(Recipe) if f.name in renamed
    }
    folder = RunFolder(Path(out))
    folder.check_writable()
    with folder.locked():
        recipe = make_recipe(folder.path, given, objective, settings)
        lock_recipe(folder, recipe, options.get("accept", ()))
        with record_failures(folder):
            store_inputs(folder, recipe, given)
            setup = make_setup(recipe, folder, given=given, objective=objective)
            return train_setup(setup, options.get("progress"), options.get("accept", ()))


def evaluate(
    recipe: Recipe | str | Path,
    *,
    advantage_only: bool = False,
    plugins: Sequence[str | Path] = (),
) -> Run:
    """Judge `recipe.student` without training and write the report; nothing is resumed.

    Args:
        recipe: data, views and protocol, as a recipe or its file. The teacher measures visual
            advantage; without a teacher, the student does.
        advantage_only: only visual advantage and its heatmaps (`vistill probe`).
        plugins: files of your own that are executed first.
    """
    load_plugins(plugins)
    check_recipe(recipe, "evaluate")
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = RunFolder(Path(recipe.run))
    folder.check_writable()
    if folder.has_started():
        raise training_folder_error(recipe.run)
    with folder.locked():
        lock_recipe(folder, recipe, ())
        with record_failures(folder):
            return run_evaluation(make_setup(recipe, folder, "eval"), advantage_only)


def run_evaluation(setup: RunSetup, advantage_only: bool) -> Run:
    """The evaluation itself."""
    folder, settings = setup.folder, setup.evaluation
    run_start_checks(setup)
    if setup.evaluates_training_rows and not advantage_only:
        folder.event(
            "all evaluated rows are training rows: name others by data.eval or data.holdout"
        )
    models = (
        setup.models
        if setup.models.has_teacher
        else replace(setup.models, teacher=setup.models.student)
    )
    answered = [p for p in setup.eval_prompts if p.answer is not None]
    if advantage_only:
        settings = replace(
            settings, greedy=False, blind=False, reading=False, limit=settings.extra_limit
        )
    elif not answered:
        raise no_answers_error(setup.eval_prompts)
    prompts = (
        [with_empty_answer(p) for p in setup.eval_prompts] if advantage_only else setup.eval_prompts
    )
    kept = shared_judge().kept_in(folder.path, append_line)
    with kept, make_engine(models.student, setup.rollout.without_image_skips()) as engine:
        measure = tasks.get(settings.task)
        result = measure(models, prompts, settings, lambda: None, setup.diagrams, engine)
    folder.write("evaluations.jsonl", to_json({"step": 0, **result.summary}) + "\n")
    folder.write("samples/step-000000.jsonl", result.to_lines())
    items = {"tail": result.tail(), "items": result.heatmaps(models.student)}
    folder.write("tokens/step-000000.json", to_json(items))
    facts = {
        "finished": True,
        "step": 0,
        "kind": "evaluation",
        "training_rows": setup.evaluates_training_rows,
        "model": models.student.source,
        "without_answer": len(setup.eval_prompts) - len(answered),
    }
    write_json(folder.path / "result.json", facts)
    store_pictures(folder, heatmap_rows(prompts, settings), models.view)
    with open_phase("writing the report"):
        return write_run_report(folder.path)


def with_empty_answer(prompt: Prompt) -> Prompt:
    """The prompt with an empty answer if it has none: its tokens are measured, but not judged."""
    return prompt if prompt.answer is not None else replace(prompt, answer="")


@in_python("load_prompts")
def load_prompts(
    source: str | Path, *, image_folder: str | Path = "", **settings: Any
) -> list[Prompt]:
    """Prompts from a data file, `hf:owner/name[split]`, or `diagrams`.

    Args:
        source: as `data.train` in a recipe.
        image_folder: as `data.images` in a recipe; by default the folder of the file.
        **settings: fields of `DataSettings`, or of its columns: `prompt="problem"`,
            `images="images"`, `template=...`.
    """
    known = [f.name for f in (*fields(Columns), *fields(DataSettings)) if f.name != "columns"]
    check_options(settings, sorted({*known} - {"train", "sets"}), "load_prompts")
    check_source_of_rows(source, image_folder, settings)
    plain = DataSettings(train=str(source), images=str(image_folder))
    data = with_options(plain, settings)
    return load_source(data.train, data, "train", data.limit).prompts


@torch.no_grad()
def visual_advantage(
    model: VLM, prompts: Sequence[Prompt], responses: Sequence[str], degraded: float = 0.10
) -> TokenAdvantages:
    """Visual advantage of each token of written responses, by any model, without training.

    `log p(token | image) - log p(token | pixelated image)`, rectified, in nats (VA-OPD Eq. 2).

    Args:
        model: the reader, usually a teacher.
        prompts: questions with images.
        responses: one text per prompt.
        degraded: side of the reduced image as a share of the original.

    Raises:
        ConfigError: C002, the model is not loaded, there is not one text per prompt, or `degraded`
            is not above 0 and at most 1.
    """
    check_model(model, "model")
    check_prompts(prompts)
    check_responses(prompts, responses)
    check_share(degraded)
    prompts = with_content_hashes(prompts)
    context = ViewContext(pixel_share=degraded)
    out = TokenAdvantages()
    pairs = list(zip(prompts, responses, strict=True))
    for prompt, text in count_items("reading responses", pairs):
        ids = model.response_ids(text)
        index = torch.tensor(ids, device=model.device)
        log_probs = []
        for view in (View.FULL, View.PIXELATED):
            group = EncodedGroup(model.encode(apply_view(prompt, view, context)), (ids,))
            with model.on_device():
                log_probs.append(
                    score(model, [group], index, model.vocabulary_size, "log_prob").sampled()
                )
        values = advantage_of(*log_probs).tolist()
        out.append(TokenAdvantage(model.tokens(ids), values))
    return out
