"""What the items in `gpu_runs.py` need of vistill: plans, LoRA, checkpoints, resumed runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from gpu_setup import METHODS, Sizes, build_optimizer

from vistill.data.diagrams import diagram_prompts
from vistill.data.settings import DataSettings, DiagramData
from vistill.evaluation.settings import EvalSettings
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import adapter_parameters, add_adapters
from vistill.models.loading import VLM
from vistill.planning.gpus import DEFAULT_GPU, GPUS
from vistill.planning.run_plan import RunPlan
from vistill.planning.run_plan import Sizes as Lengths
from vistill.planning.shapes import shape_of_config
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.build import build, make_setup
from vistill.training.checkpoint import CheckpointTarget, weights_hash
from vistill.training.checkpoint_content import TrainedObjects, small_files
from vistill.training.checkpoint_writer import CheckpointWriter
from vistill.training.loop import run
from vistill.training.optim import freeze_parts
from vistill.training.recipe import Recipe, StudentSettings, TeacherSettings
from vistill.training.run_state import RunState
from vistill.training.settings import SaveSettings, TrainSettings

LORA = LoraSettings(rank=32, alpha=64.0, targets=("language", "vision"))
#: Phases of a plan that follow the rollouts of a step.
PHASES_OF_A_STEP = ("score", "learn", "update")
#: Bytes of a shard of a checkpoint, as `save.shard_gb` of a run.
SHARD_BYTES = int(SaveSettings().shard_gb * 1e9)
#: The setting that computes activations again, and the function that turns it on: a step with it is
#: measured where this version of vistill has it.
CHECKPOINTING = "gradient_checkpointing"


def can_checkpoint() -> bool:
    """Whether this version of vistill has gradient checkpointing."""
    return CHECKPOINTING in {field.name for field in fields(TrainSettings)}


@contextmanager
def checkpointing(student: VLM, is_on: bool) -> Iterator[None]:
    """Compute the activations of the student's layers again inside the block."""
    if not is_on:
        yield
        return
    module: Any = import_module("vistill.models.checkpointing")
    was_training = student.model.training
    student.model.train()  # layers keep their activations in evaluation mode
    module.set_checkpointing(student, True)
    try:
        yield
    finally:
        module.set_checkpointing(student, False)
        student.model.train(was_training)


def planned_step(student: VLM, teacher: VLM, sizes: Sizes, kind: str) -> tuple[Sizes, float]:
    """The sizes with the split that a plan chooses, and the bytes that it counts for the step.

    The plan is that of `vistill plan` for the shapes of these models on this device; `kind` as for
    `gpu_runs.measure_step`.
    """
    more = {CHECKPOINTING: True} if kind == "checkpointed" else {}
    train = "lora" if kind == "lora" else "full"
    recipe = Recipe(
        run="bench",
        student=StudentSettings("student", train=train, lora=LORA),
        method="va_opd",
        teacher=TeacherSettings("teacher"),
        rollout=RolloutSettings(per_prompt=sizes.siblings, max_new_tokens=sizes.tokens),
        train=TrainSettings(prompts_per_step=sizes.prompts, **more),
    )
    prompts = diagram_prompts("train", sizes.prompts, 0)
    gpu, device = GPUS[DEFAULT_GPU], student.device
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        gpu = replace(gpu, memory_gib=total / 2**30)
    plan = RunPlan(
        recipe=recipe,
        objective=METHODS["va_opd"](),
        student=shape_of_config(student.model.config.to_dict(), "student"),
        teacher=shape_of_config(teacher.model.config.to_dict(), "teacher"),
        gpu=gpu,
        sizes=Lengths(max(student.lengths(p)[0] for p in prompts), sizes.tokens),
    )
    split = plan.memory.split()
    phases = [p for p in plan.phases if p.name in PHASES_OF_A_STEP]
    cut = replace(sizes, micro_batch_tokens=split.tokens, part_tokens=split.part_tokens)
    return cut, max(phase.total for phase in phases)


def lora_student(vlm: VLM) -> VLM:
    """A model with adapters; all other weights are frozen."""
    return add_adapters(vlm, LORA, 0, "random weights")


def num_trained(vlm: VLM) -> int:
    """Parameters of the adapters of a model."""
    return sum(p.numel() for p in adapter_parameters(vlm.model).values())


def clip_and_update(student: VLM, optimizer: torch.optim.Optimizer) -> None:
    """The update of a step."""
    trained = [p for p in student.model.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


# Checkpoints


@dataclass
class Saver:
    """Saves checkpoints of a student as a run does, with moments of its vision part alone."""

    student: VLM
    folder: Path

    def __post_init__(self) -> None:
        freeze_parts(self.student, ("language",))
        optimizer = build_optimizer(self.student)
        for parameter in self.student.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        self.student.model.zero_grad()
        self.saved = TrainedObjects(self.student, optimizer, RunState(step=0))
        target = CheckpointTarget(RunFolder(self.folder), "bench", 1, SHARD_BYTES)
        self.writer = CheckpointWriter(target, self.saved)
        self.writer.files = small_files(self.saved)

    def begin(self) -> None:
        """What the loop waits for: until the copy in host memory is complete."""
        self.saved.state.step += 1
        self.writer.save()
        self.writer.wait_for_copy()

    def finish(self) -> None:
        """Wait until the checkpoint is complete."""
        self.writer.finish()

    def close(self) -> None:
        """Train all weights again."""
        self.student.model.requires_grad_(True)

    @property
    def facts(self) -> dict[str, Any]:
        """Bytes of a checkpoint, and whether the copy fitted into host memory."""
        size = self.writer.content().num_bytes()
        return {"gigabytes": size / 1e9, "in_background": self.writer.background}


# A run that is resumed


def train_tiny(folder: Path, device: torch.device, stops: tuple[int | None, ...]) -> dict[str, Any]:
    """Four VA-OPD steps with the shipped tiny models, started once for each stop.

    Returns:
        The hash of the trained weights and the text of the logged metrics.
    """
    recipe = Recipe(
        run=str(folder),
        student=StudentSettings("vistill:student", device=device.type),
        method="va_opd",
        teacher=TeacherSettings("vistill:teacher", device=device.type),
        data=DataSettings(train="diagrams", diagrams=DiagramData(train=16, eval=2)),
        rollout=RolloutSettings(per_prompt=2, max_new_tokens=16, all_truncated="go_on"),
        train=TrainSettings(prompts_per_step=4, steps=4, lr=1e-4),
        save=SaveSettings(every=1, keep=2),
        eval=EvalSettings(every=0),
    )
    place, plan = RunFolder(folder), None
    for stop in stops:
        plan = build(make_setup(recipe, place))
        run(replace(plan, stop_after=stop, progress=lambda record: None), place)
    assert plan is not None
    return {"weights": weights_hash(plan.models.student), "metrics": place.metrics.read_text()}
