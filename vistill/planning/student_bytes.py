"""Bytes of the student's weights, of what is trained, and of its optimizer. Needs no torch."""

from dataclasses import dataclass

from vistill.lora_settings import LoraSettings
from vistill.planning.activations import FLOAT, HALF
from vistill.planning.lora import adapter_parameters, weight_bytes
from vistill.planning.shapes import ModelShape
from vistill.training.optimizer_bytes import HALF_PRECISIONS, state_bytes
from vistill.training.recipe import Recipe


@dataclass(frozen=True)
class StudentBytes:
    """Counts what a run holds of its student, activations apart."""

    shape: ModelShape
    recipe: Recipe
    lora: LoraSettings | None
    step_is_half: bool
    """Whether a step runs in bf16."""

    @property
    def is_half(self) -> bool:
        """Whether trained weights are bf16."""
        return self.recipe.student.precision in HALF_PRECISIONS

    @property
    def trained(self) -> int:
        """Parameters that the optimizer updates."""
        freeze = self.recipe.train.freeze
        whole = self.shape.trained_parameters(freeze)
        return whole if self.lora is None else adapter_parameters(self.shape, self.lora, freeze)

    @property
    def trained_size(self) -> int:
        """Bytes of a trained weight, and of its gradient."""
        return HALF if self.is_half else FLOAT

    @property
    def size(self) -> int:
        """Bytes of a weight. Under LoRA, frozen weights have the step's precision."""
        return HALF if self.is_half or (self.lora is not None and self.step_is_half) else FLOAT

    @property
    def adapters(self) -> int:
        """Parameters of all adapters; 0 without LoRA."""
        return 0 if self.lora is None else adapter_parameters(self.shape, self.lora)

    def weights(self) -> float:
        """All weights and adapters."""
        weights = weight_bytes(self.shape, self.size, self.recipe.student.precision)
        return weights + FLOAT * self.adapters

    def gradients(self) -> float:
        """The gradient of every trained weight; a copy of the student is as large."""
        return float(self.trained_size * self.trained)

    def state(self) -> float:
        """Moments and master copies."""
        return state_bytes(self.trained, self.recipe.train.optimizer, self.recipe.student.precision)

    def saved(self, models: int) -> float:
        """A checkpoint of the student and its copies, all weights or all adapters, with the state.

        Args:
            models: the student and its moving average.
        """
        own = self.adapters or self.shape.parameters.total
        return self.trained_size * models * own + self.state()


def checkpoint_bytes(shape: ModelShape, recipe: Recipe, has_average: bool) -> float:
    """A checkpoint of a run.

    Args:
        shape: of the student.
        recipe: of the run.
        has_average: whether the method reads the moving average.
    """
    lora = recipe.student.lora if recipe.student.train == "lora" else None
    return StudentBytes(shape, recipe, lora, step_is_half=False).saved(1 + has_average)
