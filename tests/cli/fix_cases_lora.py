"""LoRA and quantised weights: settings that contradict each other, missing packages."""

import sys

from fix_cases import situation, start
from fix_cases_built import made
from fix_cases_models import start_models


def without_package(name, function):
    """The error of a function while a package cannot be imported."""
    before = sys.modules.get(name)
    sys.modules[name] = None
    try:
        function()
    except ImportError as error:
        return error
    finally:
        del sys.modules[name]
        sys.modules.update({name: before} if before else {})


@situation("C111")
def a_target_has_no_linear_layer(place):
    from vistill.models.adapters import no_layer_error

    rest = "student.train=lora student.lora.targets=[projector]"
    made(place, lambda: no_layer_error(["projector"], ["projector"], ["language"]), rest)


@situation("C111")
def no_part_has_a_linear_layer(place):
    from vistill.models.adapters import no_layer_error

    made(place, lambda: no_layer_error(["language"], ["language"], []), "student.train=lora")


@situation("C112")
def a_layer_cannot_be_computed_again(place):
    from vistill.models.checkpointing import checkpointing_error

    rest = "train.gradient_checkpointing=true"
    made(place, lambda: checkpointing_error("mine", "model", "it keeps its activations"), rest)


@situation("C101")
def a_quantised_student_is_trained_in_full(place):
    start(place, "student.precision=int8")


@situation("C101")
def a_quantised_student_writes_with_a_copy(place):
    start(place, "student.train=lora student.precision=int8 rollout.weights=bf16")
    place.line = place.line.replace(" --fast", "", 1)


def start_with_adapters(place, rest, names=None):
    """A student that is a folder of adapters, on the layers of these names."""
    from vistill.lora_settings import LoraSettings
    from vistill.models import adapters
    from vistill.models.loading import load_vlm
    from vistill.models.save import save_vlm
    from vistill.runs.chosen_student import resolve_model

    start_models(place, f"'student.model=modelle ö/adapter' student.train=lora {rest}")
    vlm = load_vlm(resolve_model("vistill:student"))
    whole = adapters.target_layers
    adapters.target_layers = lambda *given: whole(*given)[:names]
    try:
        adapters.add_adapters(vlm, LoraSettings(rank=2, targets=("vision",)), 0, "vistill:student")
    finally:
        adapters.target_layers = whole
    save_vlm(vlm, place.folder / "modelle ö" / "adapter")


@situation("C101")
def adapters_of_other_settings_are_trained_further(place):
    start_with_adapters(place, "student.lora.rank=4")


@situation("C101")
def adapters_on_layers_of_no_target_are_trained_further(place):
    start_with_adapters(place, "student.lora.rank=2", names=3)


@situation("E301")
def peft_is_missing(place):
    from vistill.models.adapters import require_peft

    made(place, lambda: without_package("peft", require_peft))


@situation("E301")
def bitsandbytes_is_missing(place):
    from vistill.models.quantization import require_bitsandbytes

    made(place, lambda: without_package("bitsandbytes", require_bitsandbytes))


@situation("C101")
def bf16_weights_and_adapters(place):
    start(place, "student.precision=bf16 student.train=lora")


@situation("C101")
def bf16_weights_in_a_step_of_fp32(place):
    start(place, "student.precision=bf16 train.precision=fp32")
