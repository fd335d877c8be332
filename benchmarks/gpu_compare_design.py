"""Sizes and budgets of the comparison on a GPU: what `gpu_compare.py` makes and trains.

This file does not import vistill.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARMS = ("opd", "va_opd", "grounded_opd")
#: Greedy accuracy at which a teacher counts as one that reads.
READS = 0.8
#: Learning rates of a plan. They are those of the tiny plans times (their width / our width), as
#: AdamW's steps should shrink with the width of a layer, times a factor that is chosen.
RATES = ("vision_lr", "read_lr", "solve_lr", "wrong_lr")
#: Learning rate of compare.yaml and the width of its student.
RUN_RATE, RUN_WIDTH = 3e-4, 48


def sizes(hidden: int, layers: int, depth: int) -> dict[str, Any]:
    """Fields of `TinySize` with the proportions of the tiny models."""
    return {
        "hidden": hidden,
        "layers": layers,
        "heads": hidden // 32,
        "feed_forward": 3 * hidden,
        "vision_hidden": hidden,
        "vision_depth": depth,
        "vision_heads": hidden // 32,
        "vision_feed_forward": 2 * hidden,
        "init": 0.02,
    }


@dataclass(frozen=True)
class Design:
    """Sizes and budgets; everything else is that of compare.yaml and of the tiny plans."""

    sizes: Mapping[str, Mapping[str, Any]]
    """By kind of model, changed fields of its size."""
    plan: Mapping[str, Any]
    """Changed fields of both plans."""
    student: Mapping[str, Any]
    """Changed fields of the student's plan alone."""
    settings: tuple[str, ...]
    """Settings of the runs, the same for all arms."""
    rows: int
    """Held-out rows on which a model is measured."""
    factors: tuple[float, ...]
    seeds: int
    at_once: int


#: 39.9 M and 22.5 M parameters. Batches are larger than those of the tiny plans and steps fewer.
#: float32: at this size the products are a small part of the time. Torch's own kernels: Triton's
#: would be compiled in each process. Not deterministic: the strict mode has not run on a GPU.
REAL = Design(
    sizes={"teacher": sizes(512, 6, 4), "student": sizes(384, 6, 4)},
    plan={
        "vision_steps": 300,
        "vision_batch": 128,
        "read_steps": 300,
        "read_batch": 64,
        "solve_steps": 900,
        "solve_batch": 48,
    },
    student={"wrong_steps": 100},
    settings=(
        "train.steps=64",
        "train.precision=fp32",
        "train.head_precision=fp32",
        "train.kernels=torch",
        "train.deterministic=false",
        "train.micro_batch=16",
        "train.workers=2",
        "save.every=0",
        "eval.every=16",
        "eval.limit=1024",
        "eval.final_limit=1024",
        "eval.extra_limit=512",
        "eval.rows_per_call=1024",
        "eval.advantage=false",
    ),
    rows=512,
    factors=(1.0, 2.0),
    seeds=3,
    at_once=9,
)
TOY = Design(
    sizes={"teacher": sizes(64, 2, 2), "student": sizes(32, 2, 2)},
    plan={
        "vision_steps": 4,
        "vision_batch": 8,
        "read_steps": 2,
        "read_batch": 4,
        "solve_steps": 4,
        "solve_batch": 4,
    },
    student={"wrong_steps": 2},
    settings=(
        *(word for word in REAL.settings if not word.startswith(("train.steps", "eval."))),
        "train.steps=2",
        "train.prompts_per_step=2",
        "rollout.max_new_tokens=12",
        "rollout.all_truncated=go_on",
        "data.diagrams.train=16",
        "data.diagrams.eval=8",
        "eval.every=1",
        "eval.limit=8",
        "eval.final_limit=8",
        "eval.extra_limit=8",
        "eval.max_new_tokens=12",
        "eval.advantage=false",
    ),
    rows=8,
    factors=(1.0,),
    seeds=1,
    at_once=2,
)


@dataclass
class Model:
    """A model that is trained here: one kind of one pair, at one learning rate."""

    kind: str
    pair: int
    factor: float
    folder: Path
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the results."""
        return f"{self.kind}-{self.pair}-rate-{self.factor:g}"

    @property
    def greedy(self) -> float:
        """Greedy accuracy on its card; -1 for a model that is not complete."""
        return self.record.get("measured", {}).get("greedy", -1.0)


def plan_words(design: Design, kind: str, pair: int, factor: float) -> dict[str, Any]:
    """The changed fields of a plan: size, budgets, seed, and rates by 1 / width."""
    from vistill.studies.models_by_seed import SEED_STEP
    from vistill.studies.tiny_plans import PLANS

    plan, size = PLANS[kind], design.sizes[kind]
    scale = factor * plan.size.hidden / size["hidden"]
    return {
        "size": dict(size),
        **design.plan,
        **(design.student if kind == "student" else {}),
        **{name: getattr(plan, name) * scale for name in RATES},
        "seed": plan.seed + SEED_STEP * pair,
    }


def plan_of_runs(design: Design) -> tuple[float, str]:
    """The learning rate of the runs, and where it comes from."""
    width = design.sizes["student"]["hidden"]
    return (
        RUN_RATE * RUN_WIDTH / width,
        f"one value for all arms, not tuned: {RUN_RATE:g} x {RUN_WIDTH} / {width}, by the width "
        "of the student",
    )
