"""What every step of a run needs, made once before the first."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from vistill.batch import Objective
from vistill.rollouts.settings import RolloutSettings
from vistill.training.journal import Journal
from vistill.training.micro_batches import BatchSplit
from vistill.training.oom import MemoryRetry
from vistill.training.precision import autocast
from vistill.training.response_source import ResponseSource
from vistill.training.rewards import Rewards
from vistill.training.settings import TrainSettings
from vistill.training.step_inputs import Models


@dataclass
class StepContext:
    """What every step of a run needs: models, where responses come from, optimizer, settings."""

    models: Models
    """The models; views borrow pictures only from rows that are still there."""
    response_source: ResponseSource
    """Where responses come from: an engine, the data set, or the teacher beforehand."""
    optimizer: torch.optim.Optimizer
    train: TrainSettings
    rollout: RolloutSettings
    seed: int
    num_steps: int
    rewards: Rewards | None = None
    split: BatchSplit = BatchSplit()
    poll: Callable[[], None] = lambda: None
    observe: Callable[[str], AbstractContextManager[None]] = field(
        default=lambda phase: nullcontext()
    )
    """Times a phase; outside bit identity."""
    ladder: MemoryRetry = field(default_factory=MemoryRetry)
    """What happens when memory runs out."""
    journal: Journal | None = None
    """Where the step's responses are written down before they are learnt from."""

    @property
    def objective(self) -> Objective:
        """The method."""
        return self.response_source.objective

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the student."""
        return autocast(self.train, self.models.student.device)
