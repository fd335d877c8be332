"""All values that a run needs, after every start check."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vistill.batch import Objective
from vistill.data.diagrams import Diagram
from vistill.data.keys import rows_of_step
from vistill.data.mixture import Mixture
from vistill.evaluation.settings import EvalSettings
from vistill.phases import send_record
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.training.benchmarks import BenchmarkPart
from vistill.training.micro_batches import BatchSplit
from vistill.training.models_of_run import Models
from vistill.training.settings import RewardSettings, SaveSettings, TrainSettings
from vistill.types import Prompt, Rollout


@dataclass(frozen=True)
class Plan:
    """Models, method, rows and settings of a run."""

    models: Models
    objective: Objective
    train_prompts: Sequence[Prompt]
    eval_prompts: Sequence[Prompt]
    train: TrainSettings
    rollout: RolloutSettings
    save: SaveSettings
    evaluation: EvalSettings
    seed: int
    num_steps: int
    fingerprint: str
    """Of the recipe."""
    stop_after: int | None = None
    """Stop after this step without a final checkpoint, as after a power cut (for tests)."""
    engine: RolloutEngine | None = None
    """An engine of the caller; None makes the one that the recipe names."""
    diagrams: Sequence[Diagram] = ()
    """The generated diagrams of the evaluation prompts."""
    teacher_responses: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    """The teacher's responses by prompt id (`training/teacher_responses.py`)."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    set_rewards: Mapping[str, RewardSettings] = field(default_factory=dict)
    """Rewards by data set, where it has its own."""
    mixture: Mixture | None = None
    """Several data sets and their weights; None for one."""
    max_bad_share: float = 0.01
    """Share of the training rows that may go bad after the start."""
    missing_rows: Mapping[str, str] = field(default_factory=dict)
    """Rows of the first start that are missing now: id and reason (`training/row_lock.py`)."""
    progress: Callable[[dict[str, Any]], None] = send_record
    split: BatchSplit = BatchSplit()
    """Micro-batches and their parts (`training/memory_budget.py`)."""
    profile: bool = False
    """Count the operations, tokens and memory of each phase; the update stays the same."""
    precision: str = "auto"
    """`student.precision`."""
    benchmarks: Sequence[BenchmarkPart] = ()
    """The rows of `eval.tasks`."""


def pick_prompts(
    plan: Plan, step: int, replaced_rows: Collection[str] = ()
) -> tuple[list[Prompt], list[int]]:
    """The prompts of a step, and the epoch of each."""
    num, per_step = len(plan.train_prompts), plan.train.prompts_per_step

    def is_replaced(row: int) -> bool:
        return plan.train_prompts[row].id in replaced_rows

    if plan.mixture is not None:
        rows, epochs = plan.mixture.rows_of_step(step, per_step, plan.seed, is_replaced)
        return [plan.train_prompts[row] for row in rows], epochs
    rows = rows_of_step(step, per_step, num, plan.seed, is_replaced)
    epochs = [(step * per_step + i) // num for i in range(per_step)]
    return [plan.train_prompts[row] for row in rows], epochs
