"""Budgets and learning rates of the tiny models, and the words of their tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vistill.data.diagrams import DiagramSettings
from vistill.models.tiny import TinySize

#: Sentences that add everyday and mathematical words to the tokenizer.
EVERYDAY = (
    "In the figure, what is the area of the shaded region?"
    " Choose one: (A) 12 (B) 24 (C) 36 (D) 48 (E) None",
    "The circle has radius $r$ and the angle at the center is $90^{\\circ}$."
    " Find the length of the side $AB$.",
    "How many cubes, squares, triangles and points are there?"
    " Answer with the letter of the correct option.",
    "\\frac{1}{2} \\sqrt{3} \\pi \\angle ABC \\overline{AB} \\text{ cm}^2"
    " Each of these is shown in the picture.",
)


@dataclass(frozen=True)
class TrainingPlan:
    """Budgets, in steps, and learning rates for one tiny model."""

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
    """Share of the solving steps that are arithmetic drills without an image."""
    pixelated_share: float = 0.15
    text_only_share: float = 0.12
    blind_after: float = 0.3
    """Share of the solving steps before the first pixelated or missing image, so that the model
    learns to read first."""
    freeze_vision: bool = False
    """Freeze the vision tower after its phase."""
    wrong_steps: int = 0
    """Steps of the final phase with wrong labels."""
    wrong_share: float = 0.6
    wrong_lr: float = 1e-3
    privileged_share: float = 0.0
    """Share of the prompts with an image that also show visual thoughts."""
    unrelated_share: float = 0.0
    """Share of those thoughts that are noise or from another item, so that the model learns to
    ignore them."""
    thought_vision_share: float = 0.0
    """Share of thoughts in the vision phase: the tower learns their large digits well and small
    glyphs badly."""
    vision_noise: float = 0.0
    """Noise on the weights of the finished vision tower, as a share of each tensor's deviation."""
    settings: DiagramSettings = field(default_factory=DiagramSettings)


def view_shares(plan: TrainingPlan, progress: float) -> tuple[float, float, float]:
    """Shares of the full, pixelated and text-only view at a point of the phase.

    The last two start late with larger shares, so that the phase has the planned shares overall.
    """
    started = progress >= plan.blind_after
    scale = 1 / (1 - plan.blind_after) if started else 0.0
    pixelated, text_only = plan.pixelated_share * scale, plan.text_only_share * scale
    return 1 - pixelated - text_only, pixelated, text_only


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
    thought_vision_share=0.9,
    settings=DiagramSettings(thoughts=True),
)
PLANS = {"teacher": TEACHER, "student": STUDENT, "base": BASE}


def changed_plan(kind: str, changes: Mapping[str, Any]) -> TrainingPlan:
    """The plan of a kind with some fields changed.

    `versions` and `side` are those of its diagrams, `size` has changed fields of its size.
    """
    fields = dict(changes)
    plan = PLANS[kind]
    if "size" in fields:
        fields["size"] = replace(plan.size, **fields["size"])
    drawn = {key: fields.pop(key) for key in ("versions", "side") if key in fields}
    if "versions" in drawn:
        drawn["versions"] = tuple(drawn["versions"])
    return replace(plan, settings=replace(plan.settings, **drawn), **fields)
