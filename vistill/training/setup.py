"""A run on its way from settings to a plan: the start checks fill it in, in order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vistill.batch import Objective
from vistill.data.diagrams import Diagram
from vistill.data.loading import LoadedData
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import VLM, PromptEncoder
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.checks.check import Purpose
from vistill.training.micro_batches import BatchSplit
from vistill.training.plan import Plan
from vistill.training.recipe import Recipe
from vistill.training.settings import RewardSettings, TrainSettings
from vistill.training.step_inputs import Models
from vistill.types import Prompt, Rollout

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ProvidedInputs:
    """Models and prompts that the caller already holds; without them the recipe says where they come from."""

    student: VLM
    teacher: VLM | None
    train_prompts: Sequence[Prompt]
    eval_prompts: Sequence[Prompt] = ()
    diagrams: Sequence[Diagram] = ()
    engine: RolloutEngine | None = None
    stop_after: int | None = None


@dataclass
class RunSetup:
    """Settings, and everything the start checks learnt so far."""

    recipe: Recipe
    objective: Objective
    folder: RunFolder
    purpose: Purpose = "train"
    given: ProvidedInputs | None = None
    progress: Progress = field(default=lambda record: None)
    poll: Callable[[], None] = field(default=lambda: None)
    """Raises where a signal has arrived."""
    train_data: LoadedData = field(default_factory=lambda: LoadedData([], [], []))
    eval_data: LoadedData = field(default_factory=lambda: LoadedData([], [], []))
    evaluates_training_rows: bool = False
    train_prompts: Sequence[Prompt] = ()
    eval_prompts: Sequence[Prompt] = ()
    diagrams: Sequence[Diagram] = ()
    encoders: tuple[PromptEncoder | VLM, PromptEncoder | VLM | None] | None = None
    loaded_models: Models | None = None
    written: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)
    split: BatchSplit = BatchSplit()
    models_hash: str = ""
    fingerprint: str = ""
    num_steps: int = 0

    @property
    def models(self) -> Models:
        """The models, which the check `models` loads."""
        assert self.loaded_models is not None, "the check `models` comes first"
        return self.loaded_models

    @property
    def student(self) -> PromptEncoder | VLM:
        """What turns prompts into the student's tokens."""
        assert self.encoders is not None, "the check `tokenizers` comes first"
        return self.encoders[0]

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher, or will be once the models are loaded."""
        return (
            self.given.teacher is not None
            if self.given is not None
            else bool(self.recipe.teacher.model)
        )

    @property
    def train(self) -> TrainSettings:
        """The update."""
        return self.recipe.train

    @property
    def rollout(self) -> RolloutSettings:
        """How responses are sampled."""
        return self.recipe.rollout

    @property
    def evaluation(self) -> EvalSettings:
        """How models are judged."""
        return self.recipe.eval

    @property
    def reward(self) -> RewardSettings:
        """What is rewarded."""
        return self.recipe.reward

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.recipe.seed

    @property
    def max_bad_share(self) -> float:
        """Share of the training rows that may go bad after the start."""
        return self.recipe.data.max_bad_share

    def plan(self) -> Plan:
        """The run as values: made here, once."""
        given = self.given
        return Plan(
            models=self.models,
            objective=self.objective,
            train_prompts=self.train_prompts,
            eval_prompts=self.eval_prompts,
            train=self.train,
            rollout=self.rollout,
            save=self.recipe.save,
            evaluation=self.evaluation,
            seed=self.seed,
            num_steps=self.num_steps,
            fingerprint=self.fingerprint,
            stop_after=None if given is None else given.stop_after,
            engine=None if given is None else given.engine,
            diagrams=self.diagrams,
            written=self.written,
            reward=self.reward,
            max_bad_share=self.max_bad_share,
            gone=self.gone,
            progress=self.progress,
            split=self.split,
            profile=self.recipe.profile,
        )
