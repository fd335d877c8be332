"""Raise the tiny teacher and the fluent but weak-eyed student of the demo from nothing.

Three phases, budgets in steps: the vision tower alone (which digit sits in which cell), reading (the first sentences
of a solution), whole solutions with arithmetic drills. Once it reads, part of the solutions is learnt from pixelated
pictures and without a picture, so that what the teacher says under those views is a calibrated guess. The student ends
with a short phase in which many of its labels are wrong: it stays fluent and loses trust in its eyes. The base of
`visual_opsd` is a student that also learnt to read visual thoughts, and is told wrong labels only without them.
"""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from vistill.data.diagrams import Diagram, DiagramSettings, diagram_prompts, diagrams
from vistill.data.keys import keyed_generator
from vistill.data.math_judge import MathJudge
from vistill.evaluation.answering import Answering, accuracy_by_question
from vistill.evaluation.settings import EvalSettings
from vistill.evaluation.statistics import mean
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM, load_vlm
from vistill.models.save import save_vlm
from vistill.models.scoring import EncodedGroup, response_states
from vistill.models.tiny import TinySize, build_tiny, train_tokenizer
from vistill.rollouts.build import make_engine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.storage import write_json
from vistill.runtime import keep_large_allocations, quiet_libraries, use_one_thread
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view
from vistill.views.privileged import REF_INTRO, TRANSITION

#: Diagrams that the models are raised on; every solution is told anew each time.
POOL = 6000
#: Plain sentences that give the tokenizer everyday and mathematical pieces beyond the diagrams' own words.
EVERYDAY = (
    "In the figure, what is the area of the shaded region? Choose one: (A) 12 (B) 24 (C) 36 (D) 48 (E) None",
    "The circle has radius $r$ and the angle at the center is $90^{\\circ}$. Find the length of the side $AB$.",
    "How many cubes, squares, triangles and points are there? Answer with the letter of the correct option.",
    "\\frac{1}{2} \\sqrt{3} \\pi \\angle ABC \\overline{AB} \\text{ cm}^2 Each of these is shown in the picture.",
)


@dataclass(frozen=True)
class TrainingPlan:
    """Budgets, in steps, and rates of one upbringing."""

    size: TinySize
    seed: int = 0
    vision_steps: int = 330
    vision_batch: int = 64
    vision_lr: float = 4e-3
    read_steps: int = 350
    read_batch: int = 32
    read_lr: float = 3e-3
    solve_steps: int = 1300
    solve_batch: int = 16
    solve_lr: float = 2e-3
    digit_weight: float = 3.0
    """Weight of digit tokens in the solving phase."""
    drill_share: float = 0.3
    """Share of the solving steps that are arithmetic drills without a picture."""
    pixelated_share: float = 0.15
    text_only_share: float = 0.12
    blind_after: float = 0.3
    """Share of the solving steps before the first pixelated or missing picture; reading must come first."""
    freeze_vision: bool = False
    """Keep the tower as it is after its own phase."""
    wrong_steps: int = 0
    """Steps of the final phase with wrong labels."""
    wrong_share: float = 0.6
    wrong_lr: float = 1e-3
    privileged_share: float = 0.0
    """Share of the prompts with a picture that also bring visual thoughts."""
    unrelated_share: float = 0.0
    """Share of those thoughts that are noise, or another item's: they must not be believed."""
    thought_glimpses: float = 0.0
    """Share of the vision phase spent on thoughts: the tower learns their large digits well and fine glyphs badly."""
    settings: DiagramSettings = field(default_factory=DiagramSettings)


TEACHER = TrainingPlan(size=TinySize(), solve_steps=1700)
STUDENT = TrainingPlan(
    size=TinySize(hidden=48, vision_hidden=48, feed_forward=144, vision_feed_forward=96),
    seed=1,
    vision_steps=280,
    solve_steps=1500,
    freeze_vision=True,
    wrong_steps=120,
    wrong_share=0.6,
)
BASE = TrainingPlan(
    size=TinySize(hidden=48, vision_hidden=48, feed_forward=144, vision_feed_forward=96),
    seed=2,
    vision_steps=400,
    read_steps=450,
    solve_steps=1500,
    freeze_vision=True,
    privileged_share=0.5,
    unrelated_share=0.25,
    thought_glimpses=0.9,
    settings=DiagramSettings(thoughts=True),
)


def tiny_tokenizer(raising: TrainingPlan | None = None) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer teacher and student share; the base's own also spells Visual-OPSD's two sentences."""
    settings = DiagramSettings(
        versions=("text_dominant", "text_lite", "vision_dominant", "vision_only")
    )
    items = diagrams("train", 1500, 77, settings)
    texts = [
        text for item in items for text in (item.question(), item.solution(0), item.solution(1))
    ]
    sentences = (
        [REF_INTRO, TRANSITION] if raising is not None and raising.privileged_share > 0 else []
    )
    return train_tokenizer([*texts, *EVERYDAY * 40, *sentences * 40])


class Pool:
    """Diagrams with their encoded prompts, made on first use."""

    def __init__(self, vlm: VLM, raising: TrainingPlan) -> None:
        self.vlm = vlm
        self.items = diagrams("train", POOL, 1000 + raising.seed, raising.settings)
        self.encoded: dict[tuple[int, View], EncodedPrompt] = {}

    def encode(self, index: int, view: View) -> EncodedPrompt:
        """The prompt of one diagram under a view."""
        key = (index, view)
        if key not in self.encoded:
            partner = self.items[(index + 1) % len(self.items)].prompt("partner")
            context = ViewContext(
                partner=partner, seed=index, noise="uniform"
            )  # as the shipped base was trained
            self.encoded[key] = self.vlm.encode(
                apply_view(self.items[index].prompt(str(index)), view, context)
            )
        return self.encoded[key]

    def glimpse(self, index: int, thought: bool) -> tuple[EncodedPrompt, list[tuple[int, int]]]:
        """A picture alone, and which digit sits in which cell of it."""
        item = self.items[index]
        if not thought:
            return self.encode(index, View.FULL), item.label_cells()
        return self.vlm.encode(
            Prompt(f"thought-{index}", (item.prompt("thought").thoughts[0],))
        ), item.thought_cells()


def optimizer_for(vlm: VLM, lr: float) -> torch.optim.AdamW:
    """AdamW on everything that is not frozen."""
    trained = [p for p in vlm.model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=0.01, betas=(0.9, 0.95))


def cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Linear warm-up, then cosine to a twentieth."""
    if step < warmup * steps:
        return (step + 1) / (warmup * steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))


def step_with(
    optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, parameters: Sequence[Tensor]
) -> None:
    """One clipped update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def train_vision(vlm: VLM, pool: Pool, raising: TrainingPlan, say: Callable[[str], None]) -> None:
    """Phase 1: a throw-away linear head on each merged visual token says which digit, or none, sits there."""
    visual = vlm.model.model.visual  # pyright: ignore[reportAttributeAccessIssue]
    probe = torch.nn.Linear(raising.size.hidden, 10)
    parameters = [*visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=raising.vision_lr, weight_decay=0.01)
    rng = keyed_generator("raise-vision", raising.seed)
    for step in range(raising.vision_steps):
        picks = [int(i) for i in rng.integers(len(pool.items), size=raising.vision_batch)]
        shown = [
            pool.glimpse(
                i, bool(raising.thought_glimpses) and rng.random() < raising.thought_glimpses
            )
            for i in picks
        ]
        prompts = [prompt for prompt, _ in shown]
        features = vlm.family.image_features(vlm.model, prompts)  # pyright: ignore[reportAttributeAccessIssue]
        target = torch.zeros(len(picks), 16, dtype=torch.long)
        for row, (_, cells) in enumerate(shown):
            for cell, value in cells:
                target[row, cell] = value
        logits = probe(torch.cat(features.pooler_output))
        loss = F.cross_entropy(logits, target.reshape(-1))
        step_with(
            optimizer, loss, raising.vision_lr * cosine(step, raising.vision_steps), parameters
        )
        if step % 50 == 49:
            seen = target.reshape(-1) > 0
            right = (logits.argmax(-1) == target.reshape(-1))[seen].float().mean()
            say(f"vision step {step + 1}: cells read {right:.3f}")


def weighted_nll(vlm: VLM, groups: list[EncodedGroup], digit_weight: float) -> Tensor:
    """Negative log-likelihood of the responses, digits weighted more."""
    ids = torch.tensor([i for g in groups for r in g.responses for i in r])
    head = vlm.head(vlm.vocabulary_size)
    logits = head.logits(response_states(vlm, groups))
    weight = torch.where(torch.isin(ids, digit_ids(vlm)), digit_weight, 1.0)
    return (F.cross_entropy(logits, ids, reduction="none") * weight).sum() / weight.sum()


def digit_ids(vlm: VLM) -> Tensor:
    """Token ids of the ten digits."""
    return torch.tensor([vlm.tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)])


def wrong_values(item: Diagram, rng: np.random.Generator) -> Diagram:
    """The same item telling other labels than it draws."""
    high = 99 if item.settings.two_digits else 9
    values = tuple(
        int(rng.integers(1, high + 1)) if seen and rng.random() < 0.7 else value
        for value, seen in zip(item.values, item.visible, strict=True)
    )
    return replace(item, values=values)


def drills(vlm: VLM, rng: np.random.Generator, count: int) -> list[EncodedGroup]:
    """Arithmetic lines without a picture, as the solutions write them."""
    groups = []
    for _ in range(count):
        a, b, c = (int(x) for x in rng.integers(1, 10, 3))
        text = [
            f"{a}+{b}={a + b}. Then {a + b}+{c}={a + b + c}.",
            f"{a}+{b}={a + b}. Then 2*{a + b}={2 * (a + b)}.",
            f"{max(a, b, c)}-{min(a, b, c)}={max(a, b, c) - min(a, b, c)}.",
        ][int(rng.integers(3))]
        prompt = vlm.encode(Prompt("drill", ("Calculate.",)))
        groups.append(EncodedGroup(prompt, (vlm.response_ids(text),)))
    return groups


def view_shares(raising: TrainingPlan, progress: float) -> tuple[float, float, float]:
    """Shares of the full, pixelated and text-only view; the blind ones start late and keep their overall share."""
    started = progress >= raising.blind_after
    scale = (
        1 / (1 - raising.blind_after) if started else 0.0
    )  # so that the whole phase has the shares it states
    pixelated, text_only = raising.pixelated_share * scale, raising.text_only_share * scale
    return 1 - pixelated - text_only, pixelated, text_only


def with_or_without_thoughts(view: View, raising: TrainingPlan, rng: np.random.Generator) -> View:
    """The privileged view or one of its controls in place of some full views; draws nothing where there are none."""
    if (
        raising.privileged_share == 0
        or view is not View.FULL
        or rng.random() >= raising.privileged_share
    ):
        return view
    if rng.random() >= raising.unrelated_share:
        return View.PRIVILEGED
    return (View.PRIVILEGED_NOISE, View.PRIVILEGED_MISMATCHED)[int(rng.integers(2))]


def solve_batch(
    pool: Pool, raising: TrainingPlan, rng: np.random.Generator, wrong: float, progress: float = 1.0
) -> list[EncodedGroup]:
    """Whole solutions under the three views."""
    views = (View.FULL, View.PIXELATED, View.TEXT_ONLY)
    shares = view_shares(raising, progress)
    groups = []
    for index in rng.integers(len(pool.items), size=raising.solve_batch):
        item = pool.items[int(index)]
        lie = rng.random() < wrong
        told = wrong_values(item, rng) if lie else item
        view = with_or_without_thoughts(views[int(rng.choice(3, p=shares))], raising, rng)
        told = item if view is View.PRIVILEGED else told
        response = pool.vlm.response_ids(told.solution(int(rng.integers(1, 1000))))
        groups.append(EncodedGroup(pool.encode(int(index), view), (response,)))
    return groups


def read_batch(pool: Pool, raising: TrainingPlan, rng: np.random.Generator) -> list[EncodedGroup]:
    """The first two sentences of a solution: what is drawn, and its labels."""
    groups = []
    for index in rng.integers(len(pool.items), size=raising.read_batch):
        item = pool.items[int(index)]
        sentences = item.solution(int(rng.integers(1, 1000))).split(". ")
        response = pool.vlm.response_ids(". ".join(sentences[:2]) + ".")
        view = with_or_without_thoughts(View.FULL, raising, rng)
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
    vlm: VLM, phase: Phase, batch: Callable[[int], list[EncodedGroup]], say: Callable[[str], None]
) -> None:
    """Train on the phase's batches; every hundred steps say how it goes."""
    optimizer = optimizer_for(vlm, phase.lr)
    parameters = [p for p in vlm.model.parameters() if p.requires_grad]
    total = 0.0
    for step in range(phase.steps):
        loss = weighted_nll(vlm, batch(step), phase.digit_weight)
        step_with(optimizer, loss, phase.lr * cosine(step, phase.steps), parameters)
        total += loss.item()
        if step % 100 == 99:
            say(f"{phase.name} step {step + 1}: loss {total / 100:.3f}")
            total = 0.0


def train_tiny_model(
    raising: TrainingPlan, tokenizer: PreTrainedTokenizerFast, say: Callable[[str], None] = print
) -> VLM:
    """All phases. The same numbers and seeds on the same machine give the same weights."""
    vlm = build_tiny(raising.size, tokenizer, raising.seed)
    pool = Pool(vlm, raising)
    train_vision(vlm, pool, raising, say)
    if raising.freeze_vision:
        vlm.model.model.visual.requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue]
    rng = keyed_generator("raise-read", raising.seed)
    run_phase(
        vlm,
        Phase("read", raising.read_steps, raising.read_lr, 3.0),
        lambda _: read_batch(pool, raising, rng),
        say,
    )
    solve_rng = keyed_generator("raise-solve", raising.seed)

    def batch(step: int) -> list[EncodedGroup]:
        if solve_rng.random() < raising.drill_share:
            return drills(vlm, solve_rng, 2 * raising.solve_batch)
        return solve_batch(pool, raising, solve_rng, 0.0, step / raising.solve_steps)

    run_phase(
        vlm, Phase("solve", raising.solve_steps, raising.solve_lr, raising.digit_weight), batch, say
    )
    if raising.wrong_steps:
        wrong_rng = keyed_generator("raise-wrong", raising.seed)
        plain = replace(raising, blind_after=0.0)
        tell = lambda _: solve_batch(pool, plain, wrong_rng, raising.wrong_share)
        run_phase(vlm, Phase("wrong", raising.wrong_steps, raising.wrong_lr, 1.0), tell, say)
    vlm.model.requires_grad_(True)
    return vlm.freeze()


def measure(vlm: VLM, count: int = 512, diagram: DiagramSettings | None = None) -> dict[str, float]:
    """Accuracy on held-out number combinations: greedy, at T = 1, with less of the picture, and with thoughts."""
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
    with MathJudge() as math_judge:
        engine = make_engine(vlm, RolloutSettings())
        answering = Answering(vlm, settings, math_judge, engine, ViewContext(noise="uniform"))
        share = lambda view, mode: mean(accuracy_by_question(answering.answer(rows, view, mode)))
        greedy = {"greedy": share(View.FULL, "greedy")}
        if View.PRIVILEGED in views:
            greedy["privileged_greedy"] = share(View.PRIVILEGED, "greedy")
        names = {View.FULL: "sampled"}
        return {"rows": float(count), **greedy} | {
            names.get(v, str(v)): share(v, "sampled") for v in views
        }


def main(arguments: Sequence[str]) -> None:
    """`python -m vistill.studies.make_tiny_models teacher|student|base FOLDER [--bf16]`: raise, measure, save."""
    use_one_thread()
    keep_large_allocations()
    quiet_libraries()
    name, folder = arguments[0], Path(arguments[1])
    raising = {"teacher": TEACHER, "student": STUDENT, "base": BASE}[name]
    started = time.process_time()
    vlm = train_tiny_model(raising, tiny_tokenizer(raising), lambda text: print(text, flush=True))
    seconds = time.process_time() - started
    save_vlm(vlm, folder, torch.bfloat16 if "--bf16" in arguments else None)
    stored = load_vlm(folder).freeze()
    card = {
        "name": name,
        "recipe": asdict(raising),
        "measured": measure(stored, diagram=raising.settings),
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in stored.model.parameters()),
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "command": f"python -m vistill.studies.make_tiny_models {' '.join([name, 'FOLDER', *arguments[2:]])}",
    }
    write_json(folder / "CARD.json", card)


if __name__ == "__main__":
    main(sys.argv[1:])
