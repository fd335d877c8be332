"""The Python API at three depths: a recipe, your own models and prompts, or only the measurement."""

import datetime
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from vistill.batch import Objective
from vistill.config import Recipe, compare_recipes, load_recipe
from vistill.data.answers import gold_response, judge_answer
from vistill.data.keys import num_steps
from vistill.data.loading import LoadedData, load_both, load_source
from vistill.data.math_judge import MathJudge
from vistill.errors import DataError
from vistill.evaluation.runner import evaluate as judge
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import VLM, check_pair, load_vlm
from vistill.models.scoring import EncodedGroup, score
from vistill.objectives import METHODS
from vistill.report.page import write_report
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.chosen import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json, write_json
from vistill.signals.visual_advantage import visual_advantage as advantage_of
from vistill.training.checkpoint import TrainState, newest, weights_hash
from vistill.training.loop import Plan, run
from vistill.training.reading import Cast
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import Prompt, View
from vistill.views import ViewContext, see

Progress = Callable[[dict[str, Any]], None]


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
    vlm = load_vlm(resolve_model(source), device=choose_device(device), **options)
    return vlm.freeze() if frozen else vlm


def choose_device(name: str) -> str:
    """`auto` takes a CUDA device where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    open_folder(folder, made, accept)
    train_data, eval_data = load_both(made.data)
    eval_data = without_bad_gold(eval_data, made)
    note_data(folder, train_data, eval_data)
    cast = cast_of(made)
    check_prompt_lengths(cast, [*train_data.prompts[:256], *eval_data.prompts[:64]], made.data.max_prompt_tokens)
    settings = made.train
    steps = settings.steps or num_steps(len(train_data.prompts), settings.prompts_per_step, settings.epochs)
    objective: Objective = METHODS[made.method](**made.knobs)
    plan = Plan(
        cast, objective, train_data.prompts, eval_data.prompts, settings, made.rollout, made.save, made.eval,
        made.seed, steps, made.fingerprint(), progress=progress, diagrams=eval_data.diagrams,
    )  # fmt: skip
    return finish(folder, plan, run(plan, folder))


def evaluate(recipe: Recipe, *, advantage_only: bool = False) -> Run:
    """Judge `recipe.student` without training and write the report; nothing is resumed.

    Args:
        recipe: data, views and protocol; the teacher, where there is one, measures visual advantage, else the
            student measures its own.
        advantage_only: only visual advantage and its heatmaps (`vistill probe`).
    """
    folder = RunFolder(Path(recipe.run))
    open_folder(folder, recipe, ())
    source = recipe.data.eval or recipe.data.train
    data = without_bad_gold(load_source(source, recipe.data, "test", recipe.data.limit), recipe)
    note_data(folder, LoadedData([], [], []), data)
    cast = cast_of(recipe)
    if cast.teacher is None:
        cast = replace(cast, teacher=cast.student)
    settings = replace(recipe.eval, limit=recipe.eval.final_limit)
    if advantage_only:
        settings = replace(settings, greedy=False, blind=False, reading=False, limit=recipe.eval.extra_limit)
    prompts = [p if p.answer is not None else replace(p, answer="") for p in data.prompts]
    result = judge(cast, prompts, settings, diagrams=data.diagrams)
    folder.write("evaluations.jsonl", to_json({"step": 0, **result.summary}) + "\n")
    folder.write("samples/step-000000.jsonl", result.to_lines())
    items = {"tail": result.tail(), "items": result.heatmaps(cast.student)}
    folder.write("tokens/step-000000.json", to_json(items))
    write_json(folder.path / "result.json", {"finished": True, "step": 0})
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
    logged = {
        r["prompt"] for path in sorted((folder.path / "rollouts").glob("*.jsonl"))[-1:] for r in folder.read(path)
    }
    answered = [p for p in plan.eval_prompts if p.answer is not None]
    return [*answered[: plan.evaluation.heatmaps], *(p for p in plan.train_prompts if p.id in logged)]


def store_pictures(folder: RunFolder, prompts: Sequence[Prompt], context: ViewContext) -> None:
    """The pictures behind the heatmaps and their pixelated twins, so that the report needs nothing else."""
    pictures = folder.path / "pictures"
    pictures.mkdir(exist_ok=True)
    index: dict[str, Any] = {}
    for number, prompt in enumerate(p for p in prompts if p.images):
        for view in (View.FULL, View.PIXELATED):
            image = see(prompt, view, context).images[0].load().convert("RGB")
            image.thumbnail((320, 320))
            image.save(pictures / f"{number:03d}-{view}.png")
        index[prompt.id] = {"file": f"{number:03d}", "question": prompt.text, "gold": prompt.answer}
    write_json(pictures / "index.json", index)


class DistillOptions(TypedDict, total=False):
    """Optional keyword arguments of `distill`; each has the class defaults of the recipe."""

    eval_prompts: Sequence[Prompt]
    train: TrainSettings
    rollout: RolloutSettings
    save: SaveSettings
    evaluation: EvalSettings
    seed: int
    progress: Progress


def distill(
    student: VLM,
    teacher: VLM | None,
    prompts: Sequence[Prompt],
    objective: Objective,
    out: str | Path,
    **options: Unpack[DistillOptions],
) -> Run:
    """Distil with your own models and prompts; the same loop, folder and resume as a recipe.

    Args:
        student: learns, in place.
        teacher: is frozen; None for methods that have none.
        prompts: training prompts.
        objective: `OPD()`, `VAOPD(high_share=0.2)`, `SFT()`.
        out: run folder; an unfinished run in it is resumed.
        **options: see `DistillOptions`.
    """
    if not prompts:
        raise DataError("D102", "the data set is empty", fix="pass at least one prompt")
    settings, rollout = options.get("train", TrainSettings()), options.get("rollout", RolloutSettings())
    seed, folder = options.get("seed", 42), RunFolder(Path(out))
    folder.path.mkdir(parents=True, exist_ok=True)
    vocabulary = check_pair(student, teacher) if teacher is not None else student.vocabulary_size
    steps = settings.steps or num_steps(len(prompts), settings.prompts_per_step, settings.epochs)
    method = type(objective).__name__
    identity: dict[str, Any] = {"method": method, method: repr(objective), "train": asdict(settings)}
    identity |= {"rollout": asdict(rollout), "seed": seed, "run": str(out), "prompts": [p.id for p in prompts]}
    lock(folder, json.loads(to_json(identity)), ())
    plan = Plan(
        cast=Cast(student, teacher.freeze() if teacher else None, vocabulary),
        objective=objective,
        train_prompts=prompts,
        eval_prompts=options.get("eval_prompts", ()),
        train=settings,
        rollout=rollout,
        save=options.get("save", SaveSettings()),
        evaluation=options.get("evaluation", EvalSettings()),
        seed=seed,
        num_steps=steps,
        fingerprint="api",
        progress=options.get("progress", lambda record: None),
    )
    return finish(folder, plan, run(plan, folder))


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


def cast_of(recipe: Recipe) -> Cast:
    """Load student and teacher and hold them against each other."""
    limit = recipe.data.max_image_tokens
    context = ViewContext(pixel_share=recipe.views.pixelate, seed=recipe.seed)

    def load_one(source: str, revision: str | None, device: str) -> VLM:
        return load_vlm(resolve_model(source), revision=revision, device=choose_device(device), max_image_tokens=limit)

    student = load_one(recipe.student.model, recipe.student.revision, recipe.student.device)
    if not recipe.teacher.model:
        return Cast(student, None, student.vocabulary_size, context)
    teacher = load_one(recipe.teacher.model, recipe.teacher.revision, recipe.teacher.device).freeze()
    return Cast(student, teacher, check_pair(student, teacher), context)


def check_prompt_lengths(cast: Cast, prompts: Sequence[Prompt], limit: int) -> None:
    """D203 before the first step."""
    for prompt in prompts:
        encoded = cast.encode(prompt, View.FULL)
        if len(encoded.ids) > limit:
            text = len(encoded.ids) - encoded.num_image_tokens
            raise DataError(
                "D203",
                f"prompt longer than the limit: {len(encoded.ids):,} tokens = {encoded.num_image_tokens:,} image"
                f" + {text:,} text; data.max_prompt_tokens = {limit:,}",
                where=prompt.labels.get("row", prompt.id),
                why="cutting a prompt would cut image placeholders",
                fix=f"data.max_image_tokens={max(16, (limit - text) // max(1, len(prompt.images)))}"
                f"   or data.max_prompt_tokens={len(encoded.ids) + 64}",
            )


def without_bad_gold(data: LoadedData, recipe: Recipe) -> LoadedData:
    """Gold answers pass their own checker, or their rows would count as wrong for ever (D301)."""
    if data.diagrams or not data.prompts:
        return data
    with MathJudge() as math:
        bad = [
            p
            for p in data.prompts
            if p.answer is not None
            and not judge_answer(gold_response(p.answer), p.answer, p.choices, recipe.eval.answer, math).correct
        ]
    if bad:
        raise DataError(
            "D301",
            f"{len(bad)} gold answers are not accepted by their own checker",
            where=bad[0].labels.get("row", bad[0].id),
            why=f'first: gold answer "{bad[0].answer}", choices {list(bad[0].choices)}',
            fix="correct the rows, or name the right columns under data.columns",
        )
    return data


def open_folder(folder: RunFolder, recipe: Recipe, accept: Sequence[str]) -> None:
    """Hold the recipe against an earlier start, or write it down."""
    lock(folder, recipe.to_dict(), accept)
    folder.write("recipe.json", to_json(recipe.to_dict(), indent=2))


def lock(folder: RunFolder, recipe: Mapping[str, Any], accept: Sequence[str]) -> None:
    """`run.lock.json`: recipe, versions, machine, accepted changes."""
    earlier: dict[str, Any] = {}
    if folder.lock_file.exists():
        earlier = json.loads(folder.lock_file.read_text(encoding="utf-8"))
        accepted = compare_recipes(earlier["recipe"], recipe, accept)
        for key in accepted:
            folder.event(f"accepted change of {key}")
        earlier.setdefault("accepted", []).extend(accepted)
    record = {
        "recipe": recipe,
        "command": earlier.get("command", shown_command()),
        "versions": versions(),
        "machine": {"python": platform.python_version(), "system": platform.system(), "cpu": platform.machine()},
        "started": earlier.get("started", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        "accepted": earlier.get("accepted", []),
    }
    folder.write_lock(record)


def shown_command() -> str:
    """The command this process was started with, without the interpreter's path."""
    return " ".join(["vistill" if "vistill" in sys.argv[0] else Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    found = {}
    for name in ("vistill", "torch", "transformers", "tokenizers", "safetensors", "pillow", "numpy", "math-verify"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def note_data(folder: RunFolder, train_data: LoadedData, eval_data: LoadedData) -> None:
    """Row counts and every quarantined row."""
    bad = [*train_data.quarantined, *eval_data.quarantined]
    folder.write("quarantine.jsonl", "".join(to_json(q.to_dict()) + "\n" for q in bad))
    record = {
        "train_rows": len(train_data.prompts),
        "eval_rows": len(eval_data.prompts),
        "quarantined": len(bad),
        "dropped_text_only": train_data.dropped_text_only + eval_data.dropped_text_only,
    }
    write_json(folder.path / "data.json", record)
