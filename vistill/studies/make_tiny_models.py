"""Train the tiny models of the demo from scratch: a teacher, and a student with poor vision.

There are three phases, with budgets in steps: the vision tower alone (which digit is in which
cell), reading (the first sentences of a solution), and complete solutions with arithmetic drills.
After some steps part of the solutions comes with a pixelated image or without an image, so that
the teacher's distribution under those views is a calibrated guess. The student ends with a short
phase in which many of its labels are wrong: its language stays correct, but it relies less on the
image. The base model of `visual_opsd` is a student that can also read visual thoughts.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from vistill.answers.math_process import shared_judge
from vistill.data.diagrams import Diagram, DiagramSettings, diagram_prompts, diagrams
from vistill.data.keys import keyed_generator
from vistill.evaluation.responses import AnswerEvaluator, accuracy_by_question
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM, load_vlm
from vistill.models.save import save_vlm
from vistill.models.scoring import EncodedGroup, response_states
from vistill.models.tiny import build_tiny, train_tokenizer
from vistill.rollouts.build import make_engine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.storage import write_json
from vistill.runtime import keep_large_allocations, quiet_libraries, use_one_thread
from vistill.studies.tiny_plans import EVERYDAY, TrainingPlan, changed_plan, view_shares
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view
from vistill.views.privileged import REF_INTRO, TRANSITION

#: Number of training diagrams; each use has another wording of the solution.
POOL_SIZE = 6000


def tiny_tokenizer(plan: TrainingPlan | None = None) -> PreTrainedTokenizerFast:
    """Train the byte-level tokenizer of teacher and student.

    The tokenizer of the base model also contains the two sentences of Visual-OPSD.
    """
    settings = DiagramSettings(
        versions=("text_dominant", "text_lite", "vision_dominant", "vision_only")
    )
    items = diagrams("train", 1500, 77, settings)
    texts = [
        text for item in items for text in (item.question(), item.solution(0), item.solution(1))
    ]
    sentences = [REF_INTRO, TRANSITION] if plan is not None and plan.privileged_share > 0 else []
    return train_tokenizer([*texts, *EVERYDAY * 40, *sentences * 40])


class DiagramPool:
    """Diagrams with their encoded prompts, encoded on first use."""

    def __init__(self, vlm: VLM, plan: TrainingPlan) -> None:
        self.vlm = vlm
        self.items = diagrams("train", POOL_SIZE, 1000 + plan.seed, plan.settings)
        self.encoded: dict[tuple[int, View], EncodedPrompt] = {}

    def encode(self, index: int, view: View) -> EncodedPrompt:
        """The prompt of one diagram under a view."""
        key = (index, view)
        if key not in self.encoded:
            partner = self.items[(index + 1) % len(self.items)].prompt("partner")
            # The shipped base model was trained with uniform noise.
            context = ViewContext(partner=partner, seed=index, noise="uniform")
            self.encoded[key] = self.vlm.encode(
                apply_view(self.items[index].prompt(str(index)), view, context)
            )
        return self.encoded[key]

    def vision_example(
        self, index: int, thought: bool
    ) -> tuple[EncodedPrompt, list[tuple[int, int]]]:
        """An image alone, and (cell, digit) of its labels."""
        item = self.items[index]
        if not thought:
            return self.encode(index, View.FULL), item.label_cells()
        return self.vlm.encode(
            Prompt(f"thought-{index}", (item.prompt("thought").thoughts[0],))
        ), item.thought_cells()


def make_optimizer(vlm: VLM, lr: float) -> torch.optim.AdamW:
    """Make AdamW for all parameters that are not frozen."""
    parameters = [p for p in vlm.model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.95))


def cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Learning-rate factor: linear warm-up, then cosine to 0.05."""
    if step < warmup * steps:
        return (step + 1) / (warmup * steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))


def apply_update(
    optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, parameters: Sequence[Tensor]
) -> None:
    """Make one update with a clipped gradient."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def train_vision(
    vlm: VLM, pool: DiagramPool, plan: TrainingPlan, log: Callable[[str], None]
) -> None:
    """Phase 1: a temporary linear head on each merged visual token predicts its digit or none."""
    visual = vlm.model.model.visual  # pyright: ignore[reportAttributeAccessIssue]
    with torch.random.fork_rng(devices=[]):  # torch's own seed is another one in each process
        torch.manual_seed(plan.seed)
        probe = torch.nn.Linear(plan.size.hidden, 10).to(vlm.device)
    parameters = [*visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.vision_lr, weight_decay=0.01)
    rng = keyed_generator("raise-vision", plan.seed)
    for step in range(plan.vision_steps):
        picks = [int(i) for i in rng.integers(len(pool.items), size=plan.vision_batch)]
        examples = [
            pool.vision_example(
                i, bool(plan.thought_vision_share) and rng.random() < plan.thought_vision_share
            )
            for i in picks
        ]
        prompts = [prompt for prompt, _ in examples]
        features = vlm.family.image_features(vlm.model, prompts)  # pyright: ignore[reportAttributeAccessIssue]
        target = torch.zeros(len(picks), 16, dtype=torch.long)
        for row, (_, cells) in enumerate(examples):
            for cell, value in cells:
                target[row, cell] = value
        target = target.to(vlm.device)
        logits = probe(torch.cat(features.pooler_output))
        loss = F.cross_entropy(logits, target.reshape(-1))
        apply_update(optimizer, loss, plan.vision_lr * cosine(step, plan.vision_steps), parameters)
        if step % 50 == 49:
            has_digit = target.reshape(-1) > 0
            correct = (logits.argmax(-1) == target.reshape(-1))[has_digit].float().mean()
            log(f"vision step {step + 1}: {correct:.3f} of the digits correct")


def weighted_nll(vlm: VLM, groups: list[EncodedGroup], digit_weight: float) -> Tensor:
    """Mean negative log-likelihood of the responses, with a higher weight on digits."""
    ids = torch.tensor([i for g in groups for r in g.responses for i in r], device=vlm.device)
    head = vlm.head(vlm.vocabulary_size)
    logits = head.logits(response_states(vlm, groups))
    weight = torch.where(torch.isin(ids, digit_ids(vlm)), digit_weight, 1.0)
    return (F.cross_entropy(logits, ids, reduction="none") * weight).sum() / weight.sum()


def digit_ids(vlm: VLM) -> Tensor:
    """Token ids of the ten digits."""
    ids = [vlm.tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)]
    return torch.tensor(ids, device=vlm.device)


def wrong_values(item: Diagram, rng: np.random.Generator) -> Diagram:
    """The item with stated labels that differ from the drawn ones."""
    high = 99 if item.settings.two_digits else 9
    values = tuple(
        int(rng.integers(1, high + 1)) if seen and rng.random() < 0.7 else value
        for value, seen in zip(item.values, item.visible, strict=True)
    )
    return replace(item, values=values)


def arithmetic_drills(vlm: VLM, rng: np.random.Generator, count: int) -> list[EncodedGroup]:
    """Arithmetic lines without an image, in the style of the solutions."""
    prompt = vlm.encode(Prompt("drill", ("Calculate.",)))
    groups = []
    for _ in range(count):
        a, b, c = (int(x) for x in rng.integers(1, 10, 3))
        text = [
            f"{a}+{b}={a + b}. Then {a + b}+{c}={a + b + c}.",
            f"{a}+{b}={a + b}. Then 2*{a + b}={2 * (a + b)}.",
            f"{max(a, b, c)}-{min(a, b, c)}={max(a, b, c) - min(a, b, c)}.",
        ][int(rng.integers(3))]
        groups.append(EncodedGroup(prompt, (vlm.response_ids(text),)))
    return groups


def choose_thought_view(view: View, plan: TrainingPlan, rng: np.random.Generator) -> View:
    """Replace some full views by the privileged view or one of its controls.

    Draws no random number for a plan without thoughts.
    """
    if plan.privileged_share == 0 or view is not View.FULL or rng.random() >= plan.privileged_share:
        return view
    if rng.random() >= plan.unrelated_share:
        return View.PRIVILEGED
    return (View.PRIVILEGED_NOISE, View.PRIVILEGED_MISMATCHED)[int(rng.integers(2))]


def solve_batch(
    pool: DiagramPool,
    plan: TrainingPlan,
    rng: np.random.Generator,
    wrong: float,
    progress: float = 1.0,
) -> list[EncodedGroup]:
    """Complete solutions under the three views."""
    views = (View.FULL, View.PIXELATED, View.TEXT_ONLY)
    shares = view_shares(plan, progress)
    groups = []
    for index in rng.integers(len(pool.items), size=plan.solve_batch):
        item = pool.items[int(index)]
        is_wrong = rng.random() < wrong
        stated = wrong_values(item, rng) if is_wrong else item
        view = choose_thought_view(views[int(rng.choice(3, p=shares))], plan, rng)
        stated = item if view is View.PRIVILEGED else stated
        response = pool.vlm.response_ids(stated.solution(int(rng.integers(1, 1000))))
        groups.append(EncodedGroup(pool.encode(int(index), view), (response,)))
    return groups


def read_batch(
    pool: DiagramPool, plan: TrainingPlan, rng: np.random.Generator
) -> list[EncodedGroup]:
    """The first two sentences of a solution: the kind of drawing and its labels."""
    groups = []
    for index in rng.integers(len(pool.items), size=plan.read_batch):
        item = pool.items[int(index)]
        sentences = item.solution(int(rng.integers(1, 1000))).split(". ")
        response = pool.vlm.response_ids(". ".join(sentences[:2]) + ".")
        view = choose_thought_view(View.FULL, plan, rng)
        groups.append(EncodedGroup(pool.encode(int(index), view), (response,)))
    return groups


@dataclass(frozen=True)
class Phase:
    """One supervised phase."""

    name: str
    steps: int
    lr: float
    digit_weight: float


def run_phase(
    vlm: VLM, phase: Phase, batch: Callable[[int], list[EncodedGroup]], log: Callable[[str], None]
) -> None:
    """Train on the batches of a phase; log the loss every hundred steps."""
    optimizer = make_optimizer(vlm, phase.lr)
    parameters = [p for p in vlm.model.parameters() if p.requires_grad]
    total = 0.0
    for step in range(phase.steps):
        loss = weighted_nll(vlm, batch(step), phase.digit_weight)
        apply_update(optimizer, loss, phase.lr * cosine(step, phase.steps), parameters)
        total += loss.item()
        if step % 100 == 99:
            log(f"{phase.name} step {step + 1}: loss {total / 100:.3f}")
            total = 0.0


def train_tiny_model(
    plan: TrainingPlan,
    tokenizer: PreTrainedTokenizerFast,
    log: Callable[[str], None] = print,
    device: str = "cpu",
) -> VLM:
    """Run all phases. On a CPU the same plan on the same machine gives the same weights."""
    vlm = build_tiny(plan.size, tokenizer, plan.seed)
    vlm.model.to(device)  # pyright: ignore[reportArgumentType]
    pool = DiagramPool(vlm, plan)
    train_vision(vlm, pool, plan, log)
    if plan.freeze_vision:
        vlm.model.model.visual.requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue]
    rng = keyed_generator("raise-read", plan.seed)
    run_phase(
        vlm,
        Phase("read", plan.read_steps, plan.read_lr, 3.0),
        lambda _: read_batch(pool, plan, rng),
        log,
    )
    solve_rng = keyed_generator("raise-solve", plan.seed)

    def batch(step: int) -> list[EncodedGroup]:
        if solve_rng.random() < plan.drill_share:
            return arithmetic_drills(vlm, solve_rng, 2 * plan.solve_batch)
        return solve_batch(pool, plan, solve_rng, 0.0, step / plan.solve_steps)

    run_phase(vlm, Phase("solve", plan.solve_steps, plan.solve_lr, plan.digit_weight), batch, log)
    if plan.wrong_steps:
        wrong_rng = keyed_generator("raise-wrong", plan.seed)
        wrong_plan = replace(plan, blind_after=0.0)
        run_phase(
            vlm,
            Phase("wrong", plan.wrong_steps, plan.wrong_lr, 1.0),
            lambda _: solve_batch(pool, wrong_plan, wrong_rng, plan.wrong_share),
            log,
        )
    vlm.model.requires_grad_(True)
    add_vision_noise(vlm, plan)
    return vlm.freeze()


@torch.no_grad()
def add_vision_noise(vlm: VLM, plan: TrainingPlan) -> None:
    """Add keyed Gaussian noise to the matrices of the vision tower."""
    rng = keyed_generator("vision-noise", plan.seed)
    visual = vlm.model.model.visual  # pyright: ignore[reportAttributeAccessIssue]
    for weight in visual.parameters() if plan.vision_noise > 0 else ():
        if weight.dim() > 1:
            noise = torch.from_numpy(rng.standard_normal(tuple(weight.shape))).to(weight)
            weight += plan.vision_noise * weight.std() * noise


def measure(vlm: VLM, count: int = 512, diagram: DiagramSettings | None = None) -> dict[str, float]:
    """Accuracy on held-out numbers: greedy, at T = 1, without the image, and with thoughts."""
    settings = EvalSettings(max_new_tokens=96, limit=count)
    rows = diagram_prompts("test", count, 5, diagram)
    views = [View.FULL, View.PIXELATED, View.TEXT_ONLY]
    if diagram is not None and diagram.thoughts:
        views += [
            View.PRIVILEGED,
            View.PRIVILEGED_NOISE,
            View.PRIVILEGED_MISMATCHED,
            View.PRIVILEGED_PROMPTS,
        ]
    with shared_judge() as math_judge:
        engine = make_engine(vlm, RolloutSettings())
        evaluator = AnswerEvaluator(vlm, settings, math_judge, engine, ViewContext(noise="uniform"))

        def accuracy(view: View, mode: str) -> float:
            return mean(accuracy_by_question(evaluator.answer(rows, view, mode)))

        greedy = {"greedy": accuracy(View.FULL, "greedy")}
        if View.PRIVILEGED in views:
            greedy["privileged_greedy"] = accuracy(View.PRIVILEGED, "greedy")
        names = {View.FULL: "sampled"}
        return {"rows": float(count), **greedy} | {
            names.get(v, str(v)): accuracy(v, "sampled") for v in views
        }


def option(arguments: Sequence[str], name: str, default: str) -> str:
    """The word after an option, or the default."""
    return arguments[arguments.index(name) + 1] if name in arguments else default


def main(arguments: Sequence[str]) -> None:
    """Train, save and measure a tiny model.

    `python -m vistill.studies.make_tiny_models teacher|student|base FOLDER [--bf16] [--plan JSON]
    [--device cpu|cuda] [--rows N]`; the JSON object has changed fields of the plan, such as
    `{"seed": 101, "wrong_share": 0.3, "size": {"layers": 4}}`; N held-out rows are measured.
    """
    use_one_thread()
    keep_large_allocations()
    quiet_libraries()
    name, folder, device = arguments[0], Path(arguments[1]), option(arguments, "--device", "cpu")
    plan = changed_plan(name, json.loads(option(arguments, "--plan", "{}")))
    started, started_wall = time.process_time(), time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - started_wall:.0f} s: {text}", flush=True)

    if device != "cpu":
        torch.set_float32_matmul_precision("high")  # TF32
    vlm = train_tiny_model(plan, tiny_tokenizer(plan), log, device)
    torch.set_float32_matmul_precision("highest")
    seconds, wall_seconds = time.process_time() - started, time.monotonic() - started_wall
    save_vlm(vlm, folder, torch.bfloat16 if "--bf16" in arguments else None)
    stored = load_vlm(folder, device=device).freeze()
    card = {
        "name": name,
        "recipe": asdict(plan),
        "measured": measure(stored, int(option(arguments, "--rows", "512")), plan.settings),
        "cpu_seconds": round(seconds, 1),
        "wall_seconds": round(wall_seconds, 1),
        "parameters": sum(p.numel() for p in stored.model.parameters()),
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "command": " ".join(
            ["python -m vistill.studies.make_tiny_models", name, "FOLDER", *arguments[2:]]
        ),
    }
    write_json(folder / "CARD.json", card)


if __name__ == "__main__":
    main(sys.argv[1:])
