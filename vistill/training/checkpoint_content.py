"""What a checkpoint holds: models, moments, random state and run state, before it is written.

How it is written is in `checkpoint.py`, and when in `checkpoint_writer.py`. Nothing is in it twice:
a tied weight is saved under one name, and the weights that the optimizer updates are the student's
own. An exact resume needs every byte.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vistill.models.loading import VLM
from vistill.models.save import ModelFolder, files_without_weights, model_folder, weights_of
from vistill.runs.storage import check_finite
from vistill.training.optim import parameters_in
from vistill.training.optimizer_bytes import tensor_state_bytes
from vistill.training.run_state import RunState

#: The folder of the trained model.
STUDENT = "student"


@dataclass(frozen=True)
class TrainedObjects:
    """The objects that a checkpoint holds."""

    student: VLM
    optimizer: torch.optim.Optimizer
    state: RunState
    extra: Mapping[str, VLM] = field(default_factory=dict)
    """Further models by name: the moving average of the student."""
    published: set[int] = field(default_factory=set)
    """Steps whose checkpoint this process has written: they need no check."""

    @property
    def models(self) -> dict[str, VLM]:
        """Every model by the name of its folder."""
        return {STUDENT: self.student, **self.extra}


SmallFiles = Mapping[str, Mapping[str, bytes]]
"""The files without weights of each model, by its name."""


@dataclass(frozen=True)
class CheckpointContent:
    """The values of a checkpoint at one step: the run's own tensors, or copies of them."""

    state: dict[str, Any]
    models: Mapping[str, ModelFolder]
    """By the name of its folder."""
    moments: Mapping[str, Tensor]
    """The optimizer's, as `optimizer_tensors` names them."""
    noise: Tensor
    """State of torch's random numbers."""

    @property
    def step(self) -> int:
        """The step that it is of."""
        return int(self.state["step"])

    def tensors(self) -> dict[tuple[str, str], Tensor]:
        """Every tensor of a model or of the optimizer, by where it belongs and its name."""
        weights = {
            (model, name): tensor
            for model, folder in self.models.items()
            for name, tensor in folder.weights.items()
        }
        return weights | {("", name): tensor for name, tensor in self.moments.items()}

    def with_tensors(self, tensors: Mapping[tuple[str, str], Tensor]) -> "CheckpointContent":
        """The same content with other tensors, such as copies."""
        models = {
            model: replace(folder, weights={n: tensors[model, n] for n in folder.weights})
            for model, folder in self.models.items()
        }
        return replace(self, models=models, moments={n: tensors["", n] for n in self.moments})

    def num_bytes(self) -> int:
        """Bytes of all tensors and files, without headers."""
        files = sum(len(data) for m in self.models.values() for data in m.files.values())
        return files + sum(tensor.nbytes for tensor in self.tensors().values())


def content_to_save(saved: TrainedObjects, files: SmallFiles | None = None) -> CheckpointContent:
    """What a checkpoint of the current step holds, without copying a tensor.

    Args:
        saved: the objects of the run.
        files: the small files of the models, if they are known.

    Raises:
        NonFiniteError: N702, a number of the run state is not finite.
    """
    state = saved.state.to_dict()
    check_finite(state)
    known = files or {}
    return CheckpointContent(
        state=state,
        models={name: model_folder(vlm, known.get(name)) for name, vlm in saved.models.items()},
        moments=optimizer_tensors(saved.student.model, saved.optimizer),
        noise=torch.get_rng_state(),
    )


def small_files(saved: TrainedObjects) -> SmallFiles:
    """The files without weights of every model. They do not change in a run."""
    return {name: files_without_weights(vlm) for name, vlm in saved.models.items()}


def bytes_to_save(
    student: VLM,
    frozen: Collection[str],
    copies: int,
    optimizer: str = "auto",
    precision: str = "auto",
) -> int:
    """Bytes of a checkpoint before the first update: weights, and the optimizer's state.

    Args:
        student: the model that is trained.
        frozen: parts that keep their weights (`train.freeze`).
        copies: the student, and its moving average if there is one.
        optimizer: `train.optimizer`.
        precision: `student.precision`.
    """
    parts = student.family.parts(student.model)
    kept = {id(p) for part in frozen for p in parameters_in(parts[part])}
    trained = [p for p in student.model.parameters() if p.requires_grad and id(p) not in kept]
    weights = sum(t.nbytes for t in weights_of(student).values())
    state = sum(tensor_state_bytes(p.numel(), optimizer, precision) for p in trained)
    return copies * weights + int(state)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments by `opt.<parameter>.<slot>`, on their device."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"opt.{names[id(parameter)]}.{slot}": torch.as_tensor(value).detach()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
