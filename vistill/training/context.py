"""What every step of a run needs, built once before the first step."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from vistill.batch import Objective
from vistill.rollouts.settings import RolloutSettings
from vistill.training.ahead import EncodingsAhead, num_workers
from vistill.training.journal import Journal
from vistill.training.micro_batches import BatchSplit
from vistill.training.models_of_run import Models
from vistill.training.oom import MemoryRetry
from vistill.training.precision import autocast
from vistill.training.read_ahead import ReadAhead
from vistill.training.response_source import ResponseSource
from vistill.training.rewards import Rewards
from vistill.training.settings import TrainSettings
from vistill.training.teacher_scores import TeacherScores
from vistill.types import Prompt


@dataclass
class StepContext:
    """What stays the same from step to step: models, response source, optimizer, settings."""

    models: Models
    """The models; their partners are rows that the run still uses."""
    response_source: ResponseSource
    """Where responses come from: an engine, the data set, or the teacher."""
    optimizer: torch.optim.Optimizer
    train: TrainSettings
    rollout: RolloutSettings
    seed: int
    num_steps: int
    rewards: Rewards | None = None
    split: BatchSplit = BatchSplit()
    poll: Callable[[], None] = lambda: None
    """Raises if a signal has arrived."""
    before_update: Callable[[], None] = lambda: None
    """Returns when nothing reads the weights any more, such as a checkpoint's copy."""
    observe: Callable[[str], AbstractContextManager[None]] = field(
        default=lambda phase: nullcontext()
    )
    """Times a phase; its values are not part of the bit-exact log."""
    memory_retry: MemoryRetry = field(default_factory=MemoryRetry)
    """Does a phase again in smaller parts when memory runs out."""
    teacher_scores: TeacherScores | None = None
    """The server that scores as the teacher, if a recipe names one."""
    journal: Journal | None = None
    """Where the responses of a step are written before the update."""
    ahead: EncodingsAhead = field(init=False)
    """What encodes the prompts of this step and of the next one."""
    overlap: ReadAhead = field(init=False)
    """What lets the teacher read while responses are written."""

    def __post_init__(self) -> None:
        device = self.models.student.device
        workers = num_workers(self.train.workers, device)
        self.ahead = EncodingsAhead(self.objective, workers, pin=device.type == "cuda")
        reads_early = self.train.overlap and self.teacher_scores is None
        self.overlap = ReadAhead(device, self.autocast, reads_early)

    @property
    def objective(self) -> Objective:
        """The method."""
        return self.response_source.objective

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the student."""
        return autocast(self.train, self.models.student.device)

    def encode_ahead(
        self, prompts_of: Callable[[int], Sequence[Prompt]], step: int, last: int
    ) -> None:
        """Begin to encode the prompts of a step and of the next one, if it comes before `last`."""
        for number in range(step, min(step + 2, last)):
            self.ahead.start(self.models.at_step(self.seed, number), number, prompts_of(number))
