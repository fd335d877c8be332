"""A whole run as values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vistill.batch import Objective
from vistill.data.diagrams import Diagram
from vistill.evaluation.settings import EvalSettings
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.training.micro_batches import BatchSplit
from vistill.training.settings import RewardSettings, SaveSettings, TrainSettings
from vistill.training.step_inputs import Models
from vistill.types import Prompt, Rollout


@dataclass(frozen=True)
class Plan:
    """A whole run as values."""

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
    stop_after: int | None = None
    """Leave after this step, as if the machine had been switched off (for tests)."""
    engine: RolloutEngine | None = None
    diagrams: Sequence[Diagram] = ()
    """The procedural items behind the evaluation prompts."""
    written: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    """The teacher's responses by prompt id (`prepare_run`)."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    max_bad_share: float = 0.01
    """Share of the training rows that may go bad after the start."""
    gone: Mapping[str, str] = field(default_factory=dict)
    """Rows of the first start that are missing now: id and reason (`training/row_lock.py`)."""
    progress: Callable[[dict[str, Any]], None] = field(default=lambda record: None)
    split: BatchSplit = BatchSplit()
    """Micro-batches and their parts (`prepare_run`)."""
    profile: bool = False
    """Count what each phase is made of and put it beside the bare matrix products; the update stays the same."""
