"""The setup of a run, from settings to a plan: the start checks fill it in, in order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vistill.batch import Objective
from vistill.data.diagrams import Diagram
from vistill.data.loading import LoadedData
from vistill.data.mixture import Mixture
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import VLM, PromptEncoder
from vistill.phases import send_record
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.benchmarks import BenchmarkPart
from vistill.training.checks.check import Purpose
from vistill.training.kept_settings import with_kept
from vistill.training.micro_batches import BatchSplit
from vistill.training.models_of_run import Models
from vistill.training.plan import Plan
from vistill.training.recipe import Recipe
from vistill.training.settings import RewardSettings, TrainSettings, rewards_of_sets
from vistill.types import Prompt, Rollout

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ProvidedInputs:
    """Models and prompts that the caller passes in; without them the recipe names their source."""

    student: VLM
    teacher: VLM | None
    train_prompts: Sequence[Prompt]
    eval_prompts: Sequence[Prompt] = ()
    diagrams: Sequence[Diagram] = ()
    engine: RolloutEngine | None = None
    stop_after: int | None = None
    teachers: Mapping[str, VLM] = field(default_factory=dict)
    """Several teachers by name; `teacher` is None then."""


@dataclass
class RunSetup:
    """Settings, and what the start checks have loaded and measured so far."""

    recipe: Recipe
    objective: Objective
    folder: RunFolder
    purpose: Purpose = "train"
    provided: ProvidedInputs | None = None
    accept: Sequence[str] = ()
    """Changes since the first start that are accepted."""
    progress: Progress = send_record
    poll: Callable[[], None] = field(default=lambda: None)
    """Raises if a signal has arrived."""
    train_data: LoadedData = field(default_factory=lambda: LoadedData([], [], []))
    eval_data: LoadedData = field(default_factory=lambda: LoadedData([], [], []))
    evaluates_training_rows: bool = False
    train_prompts: Sequence[Prompt] = ()
    eval_prompts: Sequence[Prompt] = ()
    diagrams: Sequence[Diagram] = ()
    benchmarks: Sequence[BenchmarkPart] = ()
    encoders: tuple[PromptEncoder | VLM, PromptEncoder | VLM | None] | None = None
    loaded_models: Models | None = None
    teacher_responses: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    missing_rows: Mapping[str, str] = field(default_factory=dict)
    """Rows of the first start that are missing or bad now: id to reason."""
    mixture: Mixture | None = None
    """The data sets of the training rows and their weights, if the recipe names several."""
    teacher_names: Mapping[str, str] = field(default_factory=dict)
    """The teacher of each row by id, if there are several (`training/teachers.py`)."""
    teacher_encoders: Mapping[str, PromptEncoder | VLM] = field(default_factory=dict)
    """The encoder of every teacher model by its role: `teacher`, or `teachers.NAME` of several."""
    teacher_roles: Mapping[str, str] = field(default_factory=dict)
    """The role of each of several teachers by name. Teachers of one model share a role."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """What `auto` means for a run of an earlier version (`training/kept_settings.py`)."""
    split: BatchSplit = BatchSplit()
    models_hash: str = ""
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Origin and source hash of the plug-ins that the run uses, by `kind.name`."""
    fingerprint: str = ""
    num_steps: int = 0

    @property
    def models(self) -> Models:
        """The models, once the check `models` has loaded them."""
        assert self.loaded_models is not None, "the check `models` has not run yet"
        return self.loaded_models

    @property
    def student(self) -> PromptEncoder | VLM:
        """The encoder of the student's prompts."""
        assert self.encoders is not None, "the check `tokenizers` has not run yet"
        return self.encoders[0]

    @property
    def has_teacher(self) -> bool:
        """Whether the run has a teacher, loaded or not yet."""
        if self.provided is not None:
            return self.provided.teacher is not None or bool(self.provided.teachers)
        return bool(self.recipe.teacher.model or self.recipe.teachers)

    @property
    def train(self) -> TrainSettings:
        """Settings of the update."""
        return with_kept(self.recipe.train, "train", self.kept)

    @property
    def precision(self) -> str:
        """Precision of the student's weights."""
        return self.recipe.student.precision

    @property
    def rollout(self) -> RolloutSettings:
        """Settings of sampling."""
        return with_kept(self.recipe.rollout, "rollout", self.kept)

    @property
    def evaluation(self) -> EvalSettings:
        """Settings of evaluation."""
        return self.recipe.eval

    @property
    def reward(self) -> RewardSettings:
        """Settings of the rewards."""
        return self.recipe.reward

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.seed

    @property
    def max_bad_share(self) -> float:
        """Largest share of training rows that may become unusable after the start."""
        return self.recipe.data.max_bad_share

    def plan(self) -> Plan:
        """Make the plan: the run as values. This is the only place that makes one."""
        provided = self.provided
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
            stop_after=None if provided is None else provided.stop_after,
            engine=None if provided is None else provided.engine,
            diagrams=self.diagrams,
            teacher_responses=self.teacher_responses,
            reward=self.reward,
            set_rewards=rewards_of_sets(self.reward, self.recipe.data.sets),
            mixture=self.mixture,
            max_bad_share=self.max_bad_share,
            missing_rows=self.missing_rows,
            progress=self.progress,
            split=self.split,
            profile=self.recipe.profile,
            precision=self.precision,
            benchmarks=self.benchmarks,
        )
