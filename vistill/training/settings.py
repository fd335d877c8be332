"""How a run trains and saves. Needs no torch.

Class defaults of the update are VA-OPD's (section 4.1 and appendix A; the gradient norm from its release). What the
paper does not say, such as `eps`, is torch's default.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from vistill.errors import ConfigError
from vistill.ranges import check_ranges, ranged


@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate over the run."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at `min_lr`."""
    warmup: float = ranged(0.05, 0, 1)
    """Share of the steps that warm up linearly, rounded down to whole steps."""
    min_lr: float = ranged(0.0, 0)
    """Learning rate that cosine and linear end at; the warm-up starts below it."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TrainSettings:
    """The update."""

    prompts_per_step: int = ranged(16, 1)
    """Prompts in an update, whatever the hardware; with K siblings each."""
    epochs: float = ranged(5.0, 0, above=True)
    """Passes over the training rows."""
    steps: int | None = ranged(None, 1)
    """Number of updates; overrides epochs."""
    lr: float = ranged(1e-6, 0)
    """Peak learning rate."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = ranged(1e-8, 0, 1, above=True)
    """Added to the denominator of AdamW (torch's default; Visual-OPSD 1e-15)."""
    weight_decay: float = ranged(0.1, 0)
    """On matrices; biases and norms are not decayed."""
    clip_norm: float = ranged(1.0, 0, above=True)
    """Largest gradient norm."""
    micro_batch: int | Literal["auto"] = ranged("auto", 1)
    """Prompts scored with gradient at a time; auto measures once what fits. Only speed and memory depend on it."""
    memory: float | None = ranged(None, 0, above=True)
    """GiB that auto may hold for a backward pass; null takes half of a CPU's free memory, 80 % of a GPU's."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast of the student: bf16 where a CUDA device has it, fp32 on a CPU."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Rows of logits to values and gradients: auto takes Triton on CUDA where it is installed and proves itself."""
    attention: Literal["blocks", "flex"] = "blocks"
    """How siblings attend to their prompt: padded blocks, or one packed row under a block mask (for CUDA)."""
    offload_teacher: bool = False
    """Keep the teacher's weights in host memory but while it reads; its head stays. Nothing to do on a CPU."""
    deterministic: bool = True
    """Use deterministic kernels."""
    freeze: tuple[Literal["vision", "language", "head"], ...] = ()
    """Parts that keep their weights."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.schedule.min_lr > self.lr:
            raise ConfigError(
                "C002",
                f"schedule.min_lr = {self.schedule.min_lr} is above lr = {self.lr}",
                why="the rate decays from lr to min_lr",
                fix="train.schedule.min_lr=0",
            )


@dataclass(frozen=True)
class RewardSettings:
    """What `grpo` and its relatives reward, from the answer checkers."""

    accuracy: float = ranged(1.0, 0)
    """Reward of a right answer."""
    format: float = ranged(0.0, 0)
    """Reward of a response that matches the pattern (PAPO: 0.9 and 0.1)."""
    pattern: str = r"\\boxed\{"
    """Regular expression that a well-formed response holds somewhere; a dot matches line ends too."""
    answer: Literal["first", "last"] = "first"
    """Which committed answer counts."""

    def __post_init__(self) -> None:
        check_ranges(self)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                "C002",
                f"pattern is no regular expression: {error}",
                why=self.pattern,
                fix=r"pattern=\\boxed",
            ) from error


@dataclass(frozen=True)
class SaveSettings:
    """Checkpoints."""

    every: int = ranged(50, 0)
    """Steps between checkpoints."""
    keep: int = ranged(2, 1)
    """How many of the newest stay."""
    journal: bool = True
    """Write every step's responses down before they are learnt from: for crashes and for `vistill replay`."""
    keep_best: Literal["accuracy", "none"] = "accuracy"
    """Also keep the best on validation; the earliest wins ties."""

    def __post_init__(self) -> None:
        check_ranges(self)
