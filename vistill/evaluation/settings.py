"""How models are evaluated. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vistill.python_fixes import with_python_fixes
from vistill.ranges import check_ranges, ranged
from vistill.registry import checkers, tasks
from vistill.rollouts.settings import NoiseName, check_temperature


@with_python_fixes
@dataclass(frozen=True)
class EvalSettings:
    """Evaluations: accuracy at temperature 1 and greedy, the visual gap, visual advantage."""

    every: int = ranged(50, 0)
    """Steps between evaluations during a run; 0 never evaluates, not even before the first and
    after the last step. A smaller number sees changes earlier and costs more time."""
    limit: int | None = ranged(200, 1)
    """Rows used for the accuracy during a run; null takes all. More rows give a smaller standard
    error and take longer."""
    final_limit: int | None = ranged(None, 1)
    """Rows used for the accuracy before the first and after the last step; null takes all."""
    extra_limit: int | None = ranged(200, 1)
    """Rows used for greedy accuracy, blind views and visual advantage; null takes all."""
    samples: int = ranged(1, 1)
    """Responses per question at `eval.temperature` (the k of avg@k). More samples give a smaller
    standard error; time grows in proportion."""
    temperature: float = ranged(1.0, 0)
    """Sampling temperature of these responses. Larger is more random; 0 is greedy."""
    top_p: float = ranged(1.0, 0, 1, above=True)
    """Nucleus of these responses: sample from the smallest set of tokens with this probability; 1
    keeps all tokens."""
    greedy: bool = True
    """Also report greedy accuracy."""
    blind: bool = True
    """Also answer with the picture pixelated, removed and swapped for another row's: the visual
    gap."""
    advantage: bool = True
    """Also measure the teacher's visual advantage of the student's responses."""
    reading: bool = True
    """On procedural diagrams: change one drawn label and test whether the stated value follows."""
    max_new_tokens: int = ranged(1024, 1)
    """Most tokens of a response; a longer one is cut off and judged as it is."""
    answer: Literal["first", "last"] = "first"
    """Which committed answer of a response counts."""
    checker: str = "auto"
    """What judges a response: `auto` chooses by row; `vistill list checkers` lists all. A row may
    name its own (`data.columns.checker`)."""
    judge: str = ""
    """URL of a language model that judges benchmarks (`vistill eval --tasks`), in OpenAI's
    protocol: http://HOST:PORT/v1. Empty judges by rule. The key is read from the environment
    variable VISTILL_JUDGE_KEY."""
    judge_model: str = ""
    """Name of that model, as its server knows it."""
    judge_limit: int | None = ranged(None, 1)
    """Most requests to it in one command; null has no limit. What is not judged makes a result
    PARTIAL, and the same command continues."""
    task: str = "answers"
    """What an evaluation does with the rows: `answers`, or a task of a plug-in."""
    tasks: tuple[str, ...] = ()
    """Benchmarks that each evaluation of a run asks too, such as `[wemath, mathverse]`
    (docs/benchmarks.md). More take longer; training stays the same."""
    task_limit: int | None = ranged(64, 1)
    """Most rows of each of these benchmarks, in whole groups, always the same ones; null takes
    all."""
    task_data: str = ""
    """Folder with `NAME/data.jsonl` of these benchmarks; empty reads the hub."""
    signals: bool = False
    """Also measure signals of each response to a benchmark (`vistill eval --tasks`, `eval.tasks`),
    by the model itself: log-probability, entropy, visual advantage and visual dependency, as means
    over its tokens. One forward pass per view: three for a response with a picture."""
    task_blind: bool = False
    """Also ask these benchmarks with the picture pixelated, and without it, as `vistill eval
    --tasks ... --blind` does; figures have the mode in their name. Three times the responses."""
    task_protocol: Literal["official", "va_opd", "vgs", "visual_opsd"] = "official"
    """How these benchmarks are asked: official, va_opd, vgs or visual_opsd; a response has at most
    `eval.max_new_tokens` tokens."""
    high_share: float = ranged(0.2, 0, 1, above=True)
    """Share of a response's tokens in the high group (largest visual advantage) for the figures on
    misread values."""
    seed: int = 0
    """Seed of the evaluation: of its sampling noise, and of which rows `eval.limit` takes."""
    noise: NoiseName = "generator"
    """Where its sampling noise comes from, as `rollout.noise`."""
    rows_per_call: int = ranged(512, 1)
    """Most responses decoded together. Larger is faster and needs more memory; responses stay the
    same."""
    heatmaps: int = ranged(12, 0)
    """Number of rows whose tokens are stored with their visual advantage, for the report."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_temperature(self.temperature)
        if self.checker == "answers":  # the name of `auto` in earlier versions
            object.__setattr__(self, "checker", "auto")
        checkers.require("checker", self.checker)
        tasks.require("task", self.task)

    def task_folder(self) -> Path | None:
        """`task_data` as a folder; None for the hub."""
        return Path(self.task_data) if self.task_data else None
