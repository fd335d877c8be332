"""How a run trains and saves. Needs no torch.

Class defaults of the update are VA-OPD's (section 4.1 and appendix A; the gradient norm from its
release). What the paper does not say, such as `eps`, is torch's default.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vistill.data.set_settings import DataSet
from vistill.errors import ConfigError, closest, quote_setting
from vistill.python_fixes import with_python_fixes
from vistill.ranges import check_ranges, ranged
from vistill.registry import checkers, rewards


@with_python_fixes
@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate over the run: linear warm-up, then the shape."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up. `cosine` and `linear` end at `train.schedule.min_lr`."""
    warmup: float = ranged(0.05, 0, 1)
    """Share of the steps that warm up linearly, rounded down to whole steps. Larger starts more
    gently; 0 starts at the peak."""
    min_lr: float = ranged(0.0, 0)
    """Learning rate at which `cosine` and `linear` end. At most `train.lr`."""

    def __post_init__(self) -> None:
        check_ranges(self)


@with_python_fixes
@dataclass(frozen=True)
class TrainSettings:
    """The update: batch, length, optimizer (AdamW), precision, memory."""

    prompts_per_step: int = ranged(16, 1)
    """Prompts of one update, on any hardware; each has `rollout.per_prompt` rollouts. Larger gives
    less noisy updates and longer steps."""
    epochs: float = ranged(5.0, 0, above=True)
    """Passes over the training rows. Larger trains longer. `train.steps` overrides it."""
    steps: int | None = ranged(None, 1)
    """Number of updates; overrides `train.epochs`. null takes the epochs."""
    lr: float = ranged(1e-6, 0)
    """Peak learning rate. Larger learns faster; too large unlearns what the student knew. 0 trains
    nothing."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    betas: tuple[float, float] = ranged((0.9, 0.95), 0, 1, below=True)
    """AdamW's decay rates of the mean gradient and of the mean squared gradient. Larger averages
    over more steps."""
    eps: float = ranged(1e-8, 0, 1, above=True)
    """Added to the denominator of AdamW. Larger shortens the steps of weights with small
    gradients."""
    weight_decay: float = ranged(0.1, 0)
    """Decay of matrices, times the learning rate per update; biases and norms are not decayed.
    Larger pulls the weights more to 0."""
    clip_norm: float = ranged(1.0, 0, above=True)
    """Largest gradient norm; a longer gradient is scaled down to it. Larger clips less."""
    micro_batch: int | Literal["auto"] = ranged("auto", 1)
    """Prompts read with gradient at a time. Larger is faster and needs more memory; the update
    stays the same. `auto` measures once what fits."""
    memory: float | None = ranged(None, 0, above=True)
    """GiB that `train.micro_batch: auto` may hold for a backward pass. null takes half of a CPU's
    free memory, 80 % of a GPU's."""
    optimizer: Literal["auto", "adamw", "adamw_fused", "adamw_8bit"] = "auto"
    """AdamW: `auto` is `adamw_fused` on a CUDA device and `adamw` elsewhere. `adamw_8bit` keeps the
    moments in 8 bits, a quarter of the memory (extra `quantized`)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast of the student. `auto` is bf16 where a CUDA device has it, fp32 elsewhere."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """What computes losses from logits. `auto` takes Triton on CUDA where it is installed and
    passes its self-test, torch elsewhere."""
    head_precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Precision in which losses multiply with a float32 head; sums and logits stay float32. `auto`
    is bf16 where a CUDA device trains in bf16, fp32 elsewhere. fp32 is exact and slow."""
    attention: Literal["blocks", "flex"] = "blocks"
    """How rollouts attend to their prompt: `blocks` pads them, `flex` packs one row under a block
    mask (for CUDA)."""
    offload_teacher: bool = False
    """Keep the teacher's weights in host memory except while it reads; its head stays on the
    device. Saves GPU memory, costs a transfer per step. No effect on a CPU."""
    gradient_checkpointing: bool = False
    """Keep the input of each layer only, and compute the layer again in the backward pass. The
    gradient is the same; needs far less memory and about a third more time to learn."""
    deterministic: bool = True
    """Use deterministic kernels, so that a run can be repeated to the bit. On a GPU an operator
    without such a kernel is an error (E304)."""
    workers: int | Literal["auto"] = ranged("auto", 0, 64)
    """Threads that encode the pictures and texts of the next step while a step runs. More are
    faster where pictures are large, and need their cores; the update stays the same. `auto` takes
    one on a CPU, up to 8 next to a GPU, none on a single core; 0 encodes within the step."""
    overlap: bool = False
    """Let the teacher read finished groups while others are still written: on a GPU at the same
    time, on a CPU in turn. The update stays the same. It needs memory for both, and has no effect
    with several teachers, with `train.offload_teacher`, with `profile` or with another
    `train.teacher_scorer`."""
    teacher_scorer: Literal["model", "sampled_token"] = "model"
    """What scores responses as the teacher: `model` is the loaded teacher. `sampled_token` is a
    vLLM server that serves it (`rollout.server`), an approximation: it gives the log-probability of
    the sampled token alone. The teacher is loaded to check the server, as with
    `train.offload_teacher`. C101 for a method that needs the whole distribution."""
    freeze: tuple[Literal["vision", "tower", "language", "head"], ...] = ()
    """Parts that keep their weights: the vision tower with its projector, the tower alone, the
    decoder with its input embedding, the output embedding."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.overlap and self.head_precision == "tf32":
            raise ConfigError(
                "C101",
                "train.overlap = true, but train.head_precision = tf32",
                why="torch switches TF32 on for all threads, so it would also change what the"
                " teacher reads meanwhile",
                fix="train.head_precision=auto",
                note="or, in a run that has begun with tf32, train.overlap=false",
            )
        if self.schedule.min_lr > self.lr:
            raise ConfigError(
                "C002",
                f"schedule.min_lr = {self.schedule.min_lr} is above lr = {self.lr}",
                why="the rate decays from lr to min_lr",
                fix="train.schedule.min_lr=0",
            )

    @property
    def keeps_teacher_on_host(self) -> bool:
        """Whether the teacher is in host memory while it does not read."""
        return self.offload_teacher or self.teacher_scorer != "model"


@with_python_fixes
@dataclass(frozen=True)
class RewardSettings:
    """What `grpo` and the methods built on it reward, by the answer checkers."""

    accuracy: float = ranged(1.0, 0)
    """Reward of a right answer. Only its ratio to `reward.format` matters: advantages are
    scaled."""
    format: float = ranged(0.0, 0)
    """Reward of a response that matches `reward.pattern`. Larger teaches the format at the expense
    of the answer."""
    pattern: str = r"\\boxed\{"
    """Regular expression (Python's) that a well-formed response contains; a dot matches line ends
    too."""
    answer: Literal["first", "last"] = "first"
    """Which committed answer of a response counts."""
    checker: str = "auto"
    """What judges a response: `auto` chooses by row; `vistill list checkers` lists all. A row may
    name its own (`data.columns.checker`)."""
    extra: dict[str, float] = field(default_factory=dict)
    """Rewards of plug-ins by name, each with its weight: `{mine: 0.5}`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.checker == "answers":  # the name of `auto` in earlier versions
            object.__setattr__(self, "checker", "auto")
        checkers.require("checker", self.checker)
        for name, weight in self.extra.items():
            near = closest(name, rewards)
            better = f"extra.{near[0]}={weight:g}   in place of reward.extra.{name}" if near else ""
            rewards.require("extra", name, better or "extra={}")
        check_pattern(self.pattern)


def check_pattern(pattern: str) -> None:
    r"""C002 for a pattern that is no regular expression, or that reads `\boxed` as `\b` and `oxed`.

    The printed patterns need no backslash: a shell, YAML and Python each read one in another way.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            "C002",
            f"pattern is no regular expression: {error}",
            why=pattern,
            fix=quote_setting("pattern", "boxed[{]"),
        ) from error
    words_cut = re.compile(r"(?<!\\)((?:\\\\)*)\\boxed")
    if words_cut.search(pattern):
        raise ConfigError(
            "C002",
            r"pattern has \boxed, which no response contains",
            why=rf"in {pattern}, \b is the border of a word, so it looks for the word `oxed`",
            fix=quote_setting("pattern", words_cut.sub(r"\1boxed", pattern)),
        )


@with_python_fixes
@dataclass(frozen=True)
class SaveSettings:
    """Checkpoints."""

    every: int = ranged(50, 0)
    """Steps between checkpoints; 0 saves only at the end or when the run is stopped. A smaller
    number loses less after a crash and writes more."""
    keep: int = ranged(2, 1)
    """Newest checkpoints to keep. Each needs the space of the student's weights and of the
    optimizer's state."""
    journal: bool = True
    """Write each step's responses to disk before the update: a crash loses none, and `vistill
    replay` reads them."""
    keep_best: Literal["accuracy", "none"] = "accuracy"
    """Also keep the checkpoint with the best accuracy on the evaluation rows; the latest wins ties.
    `none` hands out the last one. Without evaluation rows it is the last one too."""
    background: bool = True
    """Write checkpoints while the next steps run. Needs host memory for a copy of what is saved;
    where it is not free, and with `false`, the next step waits for the disk."""
    shard_gb: float = ranged(5.0, 0, above=True)
    """Largest file of weights or of the optimizer's state, in GB; a larger tensor has a file of its
    own. A smaller number gives more files."""

    def __post_init__(self) -> None:
        check_ranges(self)


def rewards_of_sets(
    settings: RewardSettings, sets: Mapping[str, DataSet]
) -> dict[str, RewardSettings]:
    """The rewards of the data sets that have their own, by name."""
    own = {
        name: {key: value for key, value in vars(one.reward).items() if value is not None}
        for name, one in sets.items()
    }
    return {name: replace(settings, **values) for name, values in own.items() if values}
