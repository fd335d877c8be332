"""The Python API at three depths: a recipe, your own models and prompts, or only the measurement."""

import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from vistill.assembly import (
    Progress,
    cast_of,
    choose_device,
    lock,
    note_data,
    open_folder,
    plan_of,
    without_bad_gold,
)
from vistill.batch import Objective
from vistill.config import Recipe, load_recipe
from vistill.data.keys import num_steps
from vistill.data.loading import LoadedData, load_both, load_source
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError, Preempted, VistillError
from vistill.evaluation.runner import evaluate as judge
from vistill.evaluation.settings import EvalSettings
from vistill.models.backends import with_kernels
from vistill.models.loading import VLM, check_pair, load_vlm
from vistill.models.scoring import EncodedGroup, score
from vistill.models.selftest import proven
from vistill.report.page import write_report
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.chosen import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json, write_json
from vistill.runtime import quiet
from vistill.signals.visual_advantage import visual_advantage as advantage_of
from vistill.training.checkpoint import TrainState, newest, weights_hash
from vistill.training.loop import Plan, run
from vistill.training.preparation import prepare_run
from vistill.training.reading import Cast
from vistill.training.settings import RewardSettings, SaveSettings, TrainSettings
from vistill.types import Prompt, View
from vistill.views import ViewContext, see


@dataclass(frozen=True)
class Run:
    """A finished (or stopped) run."""

    path: Path

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


@dataclass(frozen=True)
class TokenAdvantage:
    """Tokens of one response with their visual advantage in nats."""

    tokens: list[str]
    values: list[float]

    def _repr_html_(self) -> str:
        from vistill.report.heatmap import tokens_html

        return tokens_html(self.tokens, self.values)


def load(source: str, *, frozen: bool = False, device: str = "auto", **options: Any) -> VLM:
    """Load a model: a folder, a hub id, or a run folder (its best student)."""
    quiet()
    vlm = with_kernels(proven(load_vlm(resolve_model(source), device=choose_device(device), **options)), "auto")
    return vlm.freeze() if frozen else vlm


def train(
    recipe: Recipe | str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    accept: Sequence[str] = (),
    progress: Progress = lambda record: None,
) -> Run:
    """Run a recipe; resumes by itself where its folder has a valid checkpoint and the same recipe."""
    made = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    folder = RunFolder(Path(made.run))
    folder.check_place()
    with folder.owned():
        open_folder(folder, made, accept)
        with noting_failures(folder):
            plan = prepare_run(plan_of(made, folder, progress), folder)
            return finish(folder, plan, run(plan, folder))


@contextmanager
def noting_failures(folder: RunFolder) -> Iterator[None]:
    """What ends a run stands in its folder: `error.json`, and where in the code it came from in `events.log`.

    A folder that another process owns (S602) is left as it is.
    """
    (folder.path / "error.json").unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if getattr(error, "code", "") != "S602":
            with suppress(OSError):  # a full disk has its own message
                note_failure(folder, error)
        raise


def note_failure(folder: RunFolder, error: Exception) -> None:
    """Message for machines, bad rows where there are any, traceback for whoever mends the code."""
    if isinstance(error, VistillError):
        write_json(folder.path / "error.json", error.to_dict())
    if isinstance(error, DataError) and error.bad_rows:
        folder.write("quarantine.jsonl", "".join(to_json(row) + "\n" for row in error.bad_rows))
    if not isinstance(error, Preempted):
        folder.event("".join(traceback.format_exception(error)).rstrip())


def evaluate(recipe: Recipe, *, advantage_only: bool = False) -> Run:
    """Judge `recipe.student` without training and write the report; nothing is resumed.

    Args:
        recipe: data, views and protocol; the teacher, where there is one, measures visual advantage, else the
            student measures its own.
        advantage_only: only visual advantage and its heatmaps (`vistill probe`).
    """
    folder = RunFolder(Path(recipe.run))
    folder.check_place()
    with folder.owned():
        open_folder(folder, recipe, ())
        with noting_failures(folder):
            return evaluated(recipe, folder, advantage_only)


def evaluated(recipe: Recipe, folder: RunFolder, advantage_only: bool) -> Run:
    """The evaluation itself."""
    train_data, eval_data = load_both(recipe.data)
    data = eval_data if eval_data.prompts else train_data
    data = without_bad_gold(data, recipe)
    cast = cast_of(recipe)
    note_data(folder, LoadedData([], train_data.quarantined, []), replace(data, quarantined=[]))
    if not eval_data.prompts and not advantage_only:
        folder.event("no evaluation rows are named (data.eval, data.holdout): these are training rows")
    if cast.teacher is None:
        cast = replace(cast, teacher=cast.student)
    settings = recipe.eval
    if advantage_only:
        settings = replace(settings, greedy=False, blind=False, reading=False, limit=recipe.eval.extra_limit)
    prompts = [p if p.answer is not None else replace(p, answer="") for p in data.prompts]
    result = judge(cast, prompts, settings, diagrams=data.diagrams)
    folder.write("evaluations.jsonl", to_json({"step": 0, **result.summary}) + "\n")
    folder.write("samples/step-000000.jsonl", result.to_lines())
    items = {"tail": result.tail(), "items": result.heatmaps(cast.student)}
    folder.write("tokens/step-000000.json", to_json(items))
    trained_on = not eval_data.prompts
    write_json(
        folder.path / "result.json", {"finished": True, "step": 0, "kind": "evaluation", "training_rows": trained_on}
    )
    store_pictures(folder, prompts[: settings.heatmaps], cast.view)
    made = Run(folder.path)
    made.report()
    return made


def finish(folder: RunFolder, plan: Plan, state: TrainState) -> Run:
    """Name the chosen checkpoint, store the demo pictures, write the report."""
    last = newest(folder)
    best = folder.checkpoint(int(state.best["step"])) if state.best else None
    chosen = best if best is not None and best.exists() else last
    result = {
        "finished": state.step >= plan.num_steps,
        "step": state.step,
        "best": state.best,
        "checkpoint": chosen.name if chosen else None,
        "weights_sha256": weights_hash(plan.cast.student),
        "skipped_updates": state.skipped,
    }
    write_json(folder.path / "result.json", result)
    store_pictures(folder, pictured_prompts(folder, plan), plan.cast.view)
    made = Run(folder.path)
    made.report()
    return made


def pictured_prompts(folder: RunFolder, plan: Plan) -> list[Prompt]:
    """The prompts whose heatmaps the report shows: held-out ones, and those of the last logged rollouts."""
    logged = {r["prompt"] for path in folder.rollout_files()[-1:] for r in folder.read(path)}
    answered = [p for p in plan.eval_prompts if p.answer is not None]
    return [*answered[: plan.evaluation.heatmaps], *(p for p in plan.train_prompts if p.id in logged)]


def store_pictures(folder: RunFolder, prompts: Sequence[Prompt], context: ViewContext) -> None:
    """The pictures behind the heatmaps and their pixelated twins, so that the report needs nothing else."""
    pictures = folder.path / "pictures"
    pictures.mkdir(exist_ok=True)
    index: dict[str, Any] = {}
    for number, prompt in enumerate(p for p in prompts if p.images):
        for view in (View.FULL, View.PIXELATED):
            try:
                image = see(prompt, view, context).images[0].load().convert("RGB")
            except DataError as error:  # it was readable when it was needed; the page goes without
                folder.event(f"no picture in the report: {error.what}")
                break
            image.thumbnail((320, 320))
            image.save(pictures / f"{number:03d}-{view}.png")
        else:
            index[prompt.id] = {"file": f"{number:03d}", "question": prompt.text, "gold": prompt.answer}
    write_json(pictures / "index.json", index)


class DistillOptions(TypedDict, total=False):
    """Optional keyword arguments of `distill`; each has the class defaults of the recipe."""

    eval_prompts: Sequence[Prompt]
    train: TrainSettings
    rollout: RolloutSettings
    save: SaveSettings
    evaluation: EvalSettings
    reward: RewardSettings
    views: ViewContext
    seed: int
    progress: Progress
    profile: bool


def distill(
    student: VLM,
    teacher: VLM | None,
    prompts: Sequence[Prompt],
    objective: Objective,
    out: str | Path,
    **options: Unpack[DistillOptions],
) -> Run:
    """Distil with your own models and prompts; the same loop and resume as a recipe.

    Args:
        student: learns, in place.
        teacher: is frozen; None for methods that have none (`vistill explain METHOD`).
        prompts: training prompts.
        objective: `OPD()`, `VAOPD(high_share=0.2)`, or any class in `vistill.METHODS`.
        out: run folder; an unfinished run in it is resumed.
        **options: see `DistillOptions`.
    """
    check_prompts(prompts)
    settings, rollout = options.get("train", TrainSettings()), options.get("rollout", RolloutSettings())
    seed, folder = options.get("seed", 42), RunFolder(Path(out))
    vocabulary = check_pair(student, teacher) if teacher is not None else student.vocabulary_size
    steps = settings.steps or num_steps(len(prompts), settings.prompts_per_step, settings.epochs)
    method = type(objective).__name__
    identity: dict[str, Any] = {"method": method, method: repr(objective), "train": asdict(settings)}
    identity |= {"rollout": asdict(rollout), "seed": seed, "run": str(out), "prompts": [p.id for p in prompts]}
    views = options.get("views", view_of(student))
    folder.check_place()
    with folder.owned():
        lock(folder, json.loads(to_json(identity)), ())
        plan = Plan(
            cast=Cast(student, teacher.freeze() if teacher else None, vocabulary, views),
            objective=objective,
            train_prompts=prompts,
            eval_prompts=options.get("eval_prompts", ()),
            train=settings,
            rollout=rollout,
            save=options.get("save", SaveSettings()),
            evaluation=options.get("evaluation", EvalSettings()),
            seed=seed,
            num_steps=steps,
            fingerprint=hashlib.sha256(to_json(identity).encode()).hexdigest()[:16],
            progress=options.get("progress", lambda record: None),
            reward=options.get("reward", RewardSettings()),
            profile=options.get("profile", False),
        )
        with noting_failures(folder):
            plan = prepare_run(plan, folder)
            return finish(folder, plan, run(plan, folder))


def view_of(student: VLM) -> ViewContext:
    """The default parameters of the views, with the model's own patch size."""
    return ViewContext(patch=int(student.family.image_grid()["patch"]))


def load_prompts(source: str, **settings: Any) -> list[Prompt]:
    """Prompts from a .jsonl or .parquet file, `hf:owner/name[split]`, or `diagrams`.

    Args:
        source: as `data.train` in a recipe.
        **settings: fields of `DataSettings`, or of its columns: `prompt="problem"`, `images="images"`, `template=...`.
    """
    names = {f.name for f in fields(Columns)}
    columns = Columns(**{k: v for k, v in settings.items() if k in names and k != "images"})
    if "images" in settings:
        columns = replace(columns, images=settings["images"])
    rest = {k: v for k, v in settings.items() if k not in names}
    return load_source(source, DataSettings(train=source, columns=columns, **rest), "train", rest.get("limit")).prompts


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """D102 for an empty list or for something that is no prompt."""
    if not prompts or not all(isinstance(p, Prompt) for p in prompts):
        what = "the data set is empty" if not prompts else "prompts must be vistill.Prompt objects"
        raise DataError(
            "D102",
            what,
            fix='vistill.load_prompts("data/train.jsonl", prompt="question"), or vistill.Prompt("id", ("text",))',
        )


@torch.no_grad()
def visual_advantage(
    model: VLM, prompts: Sequence[Prompt], responses: Sequence[str], degraded: float = 0.10
) -> list[TokenAdvantage]:
    """Visual advantage of each token of written responses, by any model, without training.

    `log p(token | picture) - log p(token | pixelated picture)`, rectified, in nats (VA-OPD Eq. 2).

    Args:
        model: the reader, usually a teacher.
        prompts: questions with pictures.
        responses: one text per prompt.
        degraded: side of the reduced picture as a share of the original.
    """
    check_prompts(prompts)
    context = ViewContext(pixel_share=degraded)
    out = []
    for prompt, text in zip(prompts, responses, strict=True):
        ids = model.response_ids(text)
        index = torch.tensor(ids, device=model.device)
        log_probs = []
        for view in (View.FULL, View.PIXELATED):
            group = EncodedGroup(model.encode(see(prompt, view, context)), (ids,))
            log_probs.append(score(model, [group], index, model.vocabulary_size, "log_prob").sampled())
        values = advantage_of(*log_probs).tolist()
        out.append(TokenAdvantage(model.tokens(ids), values))
    return out
