"""A whole run as settings: a YAML recipe, or what `vistill.distill` stores. Needs no torch."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vistill.data.set_settings import check_name
from vistill.data.settings import DataSettings
from vistill.errors import ConfigError
from vistill.evaluation.settings import EvalSettings
from vistill.lora_settings import LoraSettings
from vistill.ranges import NOT_BLANK, check_ranges
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.recipe_changes import flatten, key_class
from vistill.training.optimizer_bytes import HALF_PRECISIONS
from vistill.training.settings import RewardSettings, SaveSettings, TrainSettings
from vistill.views import ViewContext
from vistill.views.settings import ViewSettings

#: Precisions in which weights are integers with scales.
QUANTIZED = ("int8", "nf4")


@dataclass(frozen=True)
class ModelSettings:
    """One model."""

    model: str = ""
    """Folder, hub id, run folder (its chosen student), or a tiny model of the package:
    `vistill:student`, `vistill:teacher`, `vistill:base`. Empty means no model."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. null takes the newest."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda`, or one of several: `cuda:1`."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class StudentSettings(ModelSettings):
    """The student, and which of its weights are trained."""

    train: Literal["full", "lora"] = "full"
    """`full` trains all weights that `train.freeze` leaves. `lora` trains low-rank adapters and
    keeps all other weights (extra `lora`)."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    precision: Literal["auto", "bf16", "bf16_stochastic", "int8", "nf4"] = "auto"
    """Precision of the weights. `auto` trains fp32 weights; those that LoRA keeps have that of a
    step. `bf16` trains bf16 weights with fp32 master copies, `bf16_stochastic` without copies: each
    update is rounded at random. `int8` and `nf4` quantise the linear layers of the decoder for LoRA
    (QLoRA; `nf4` needs the extra `quantized`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision in QUANTIZED and self.train == "full":
            raise ConfigError(
                "C101",
                f"student.precision = {self.precision}, but student.train = full",
                why="quantised weights cannot be trained; adapters on them can (QLoRA)",
                fix="student.train=lora   or   student.precision=auto",
            )
        if self.precision in HALF_PRECISIONS and self.train == "lora":
            raise ConfigError(
                "C101",
                f"student.precision = {self.precision}, but student.train = lora",
                why="adapters are fp32; the weights that they are added to have the precision of a"
                " step",
                fix="student.precision=auto   or   student.train=full",
            )


@dataclass(frozen=True)
class TeacherSettings(ModelSettings):
    """The teacher, and the precision of its weights."""

    precision: Literal["auto", "fp32", "bf16", "int8", "nf4"] = "auto"
    """`auto` is bf16 on a GPU and fp32 on a CPU. `int8` and `nf4` quantise the linear layers of the
    decoder; `vistill check` prints what that changes (`nf4` needs the extra `quantized`)."""


@dataclass(frozen=True)
class NamedTeacherSettings(TeacherSettings):
    """One of several teachers, and the rows that it teaches."""

    rows: tuple[str, ...] = ()
    """The rows of this teacher: values of `data.columns.teacher`, or names of data sets where a row
    has no such value. Empty takes rows with the teacher's own name."""
    others: bool = False
    """Take also all rows that no other teacher takes. At most one teacher does."""


@dataclass(frozen=True)
class Recipe:
    """A whole run: the same fields in YAML, on the command line (`train.lr=2e-6`) and in Python."""

    run: str = field(metadata={"pattern": NOT_BLANK})
    """Folder that everything is written into. An unfinished run in it is resumed."""
    student: StudentSettings
    method: str
    """Name of the method: `sft`, `kd`, `opd`, `va_opd`, `vgs`, ... (`vistill explain methods`). Its
    own settings (knobs) stand in a group of the same name."""
    version: Literal[1] = 1
    """Version of the recipe format."""
    seed: int = 42
    """Seed of the run: of the order of the rows and of the sampling noise."""
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    teachers: dict[str, NamedTeacherSettings] = field(default_factory=dict)
    """Several teachers by name, in place of `teacher`: each row learns from one of them. With
    `train.offload_teacher` one of them at a time is on the device."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """The method's own settings; in a recipe they stand under the method's name."""
    data: DataSettings = field(default_factory=DataSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    save: SaveSettings = field(default_factory=SaveSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    profile: bool = False
    """Measure the phases of a step and print them next to the time of the bare matrix products. The
    update stays the same."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if type(self.student) is ModelSettings:  # as earlier versions took it
            object.__setattr__(self, "student", StudentSettings(**vars(self.student)))
        if type(self.teacher) is ModelSettings:
            object.__setattr__(self, "teacher", TeacherSettings(**vars(self.teacher)))
        if self.teachers:
            check_teachers(self)
        if self.student.precision in HALF_PRECISIONS and self.train.precision == "fp32":
            raise ConfigError(
                "C101",
                f"student.precision = {self.student.precision}, but train.precision = fp32",
                why="bf16 weights compute in bf16",
                fix="train.precision=auto   or   student.precision=auto",
            )
        if self.train.overlap and self.rollout.cuda_graph:
            raise ConfigError(
                "C101",
                "train.overlap = true, but rollout.cuda_graph = true",
                why="the graph writes a token with a kernel that torch permits only for all threads"
                " at once, so the teacher would read without deterministic kernels meanwhile",
                fix="train.overlap=false   or   rollout.cuda_graph=false",
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, knobs under the method's name."""
        plain = dataclasses.asdict(self)
        plain[self.method] = plain.pop("knobs")
        return plain

    def located(self) -> "Recipe":
        """The recipe with `{run}`, which stands for the run folder in a stored one, filled in."""

        def here(text: str) -> str:
            return text.replace(HERE, self.run)

        def moved(settings: Any) -> Any:
            train, evaluation = here(settings.train), here(settings.eval)
            return dataclasses.replace(settings, train=train, eval=evaluation)

        sets = {name: moved(one) for name, one in self.data.sets.items()}
        data = dataclasses.replace(moved(self.data), sets=sets)
        student = dataclasses.replace(self.student, model=here(self.student.model))
        teacher = dataclasses.replace(self.teacher, model=here(self.teacher.model))
        teachers = {
            name: dataclasses.replace(one, model=here(one.model))
            for name, one in self.teachers.items()
        }
        models = {"student": student, "teacher": teacher, "teachers": teachers}
        return dataclasses.replace(self, data=data, **models)

    def view_context(self, patch: int = 14) -> ViewContext:
        """The parameters of the views; `patch` is the side of the model's patches in pixels."""
        views = self.views
        return ViewContext(
            pixel_share=views.pixelate,
            mask_share=views.mask_share,
            patch=patch,
            degrade=views.degrade,
            thought=views.thought,
            noise=views.noise,
            seed=self.seed,
        )

    def fingerprint(self) -> str:
        """Hash of everything that decides the update."""
        plain = {
            k: v for k, v in flatten(self.to_dict()).items() if k not in ADDED or ADDED[k] != v
        }
        kept = {k: v for k, v in plain.items() if key_class(k) != "free"}
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[
            :16
        ]


#: Keys of later versions with their defaults. A default does not enter the fingerprint, so a recipe
#: keeps the fingerprint that it had before the key existed.
ADDED = {
    "reward.checker": "auto",
    "data.columns.checker": "",
    "data.columns.teacher": "",
    "data.min_pixels": None,
    "data.max_pixels": None,
    "data.index_base": 0,
    "data.evaluation_only": "stop",
    "data.benchmarks": "",
    "rollout.noise": "generator",
    "rollout.weights": "auto",
    "rollout.cuda_graph": False,
    "train.head_precision": "auto",
    "train.workers": "auto",
    "train.overlap": False,
    "train.teacher_scorer": "model",
    "student.train": "full",
    "student.lora.rank": 16,
    "student.lora.alpha": 32.0,
    "student.lora.targets": ("language",),
    "student.precision": "auto",
    "teacher.precision": "auto",
    "train.gradient_checkpointing": False,
    "train.optimizer": "auto",
    "eval.tasks": (),
    "eval.task_limit": 64,
    "eval.task_data": "",
    "eval.task_protocol": "official",
    "eval.signals": False,
    "eval.task_blind": False,
}
#: Stands in a stored recipe for the run folder itself, which may be moved.
HERE = "{run}"
#: Groups of a stored recipe that may have a place in the run folder.
STORED_PLACES = ("data", "student", "teacher", "teachers")


def check_teachers(recipe: Recipe) -> None:
    """C101 or C002 for teachers that cannot be told apart, or that have no model."""
    if recipe.teacher.model:
        raise ConfigError(
            "C101",
            "teacher and teachers are both given",
            why="each row learns from one teacher",
            fix="teacher.model=   or   teachers=null",
        )
    takes: dict[str, str] = {}
    for name, one in recipe.teachers.items():
        check_name(name, "teachers")
        if not one.model:
            what, fix = f'"teachers.{name}.model" is missing', "FOLDER_OR_HUB_ID"
            raise ConfigError("C002", what, fix=f"teachers.{name}.model={fix}")
        for key in rows_of_teacher(name, one):
            if key in takes:
                raise ConfigError(
                    "C101",
                    f'the rows "{key}" have two teachers: {takes[key]} and {name}',
                    why="each row learns from one teacher",
                    fix=f"teachers.{name}=null   or   teachers.{takes[key]}=null",
                    note=f"or leave {key} out of teachers.{name}.rows",
                )
            takes[key] = name
    rest = [name for name, one in recipe.teachers.items() if one.others]
    if len(rest) > 1:
        raise ConfigError(
            "C101",
            f"{' and '.join(rest)} both take the rows of no other teacher",
            why="each row learns from one teacher",
            fix=f"teachers.{rest[1]}.others=false",
        )


def rows_of_teacher(name: str, one: NamedTeacherSettings) -> tuple[str, ...]:
    """What a row names to have this teacher."""
    return tuple(dict.fromkeys(one.rows)) or ((name,) if not one.others else ())


def stored_in(folder: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A run folder's stored recipe as plain values, with paths in the folder as it is now."""

    def resolved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: resolved(inner) for key, inner in value.items()}
        return value.replace(HERE, folder) if isinstance(value, str) and HERE in value else value

    parts = {name: resolved(tree[name]) for name in STORED_PLACES if name in tree}
    return {**tree, **parts, "run": folder}


def default_settings(method: str) -> dict[str, Any]:
    """What a key is where a recipe does not name it."""
    return Recipe(run=HERE, student=StudentSettings(), method=method).to_dict()
