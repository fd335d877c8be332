"""Models of any family: packages, limits and proofs at load."""

import json
from types import SimpleNamespace

from fix_cases import situation
from fix_cases_built import made
from fix_cases_models import start_models

OTHER = {"FOLDER_OR_HUB_ID": "vistill:teacher"}
STUDENT = {"FOLDER_OR_HUB_ID": "vistill:student"}


def described():
    """A model of a family without tests, as an error names it."""
    family = SimpleNamespace(describe=lambda: "generic (llava)")
    return SimpleNamespace(family=family, source="a model")


def made_chat(place, function):
    """An error about a model in `vistill chat`."""
    start_models(place, "")
    place.line = "vistill chat vistill:student --ask 'What is shown?' --max-new-tokens 2"
    place.raises = lambda place: in_chat(function)


def in_chat(function):
    """The error with the fix of `vistill chat`."""
    from vistill.cli.try_student import naming_models
    from vistill.errors import ModelError

    try:
        with naming_models("vistill:student"):
            raise function()
    except ModelError as error:
        return error


@situation("M111", **OTHER)
def a_teacher_is_not_read_exactly(place):
    from vistill.models.proofs import proof_error

    made(place, lambda: proof_error(described(), "M111", "logits differ", "", "teacher"))


@situation("M114", **STUDENT)
def a_student_is_not_read_exactly(place):
    from vistill.models.proofs import proof_error

    made(place, lambda: proof_error(described(), "M114", "its first reading fails"))


def no_language(role):
    """The error about a model whose distributions are uniform without its image."""
    from vistill.training.checks.text_only import (
        TextOnlyReading,
        TokenMeans,
        invalid_context_error,
    )

    means = TokenMeans(9, 0.1, 6.0, 6.0)
    reading = TextOnlyReading(role, "generic (llava)", 6.0, means, means)
    models = SimpleNamespace(reader=lambda reader: described())
    return invalid_context_error(reading, models, "VGS")


@situation("M116", **STUDENT)
def a_student_has_no_language_without_the_image(place):
    made(place, lambda: no_language("student"), "method=vgs")


@situation("M116", **OTHER)
def a_teacher_has_no_language_without_the_image(place):
    made(place, lambda: no_language("teacher"), "method=vgs")


@situation("M115", **STUDENT)
def an_engine_confuses_images(place):
    from vistill.models.proofs import proof_error

    made(place, lambda: proof_error(described(), "M115", "the engine writes another token"))


@situation("M114", **STUDENT)
def a_student_of_a_chat_is_not_read_exactly(place):
    from vistill.models.proofs import proof_error

    made_chat(place, lambda: proof_error(described(), "M114", "its first reading fails"))


@situation("M112", **OTHER)
def a_teacher_of_a_chat_is_not_read_exactly(place):
    from vistill.models.proofs import proof_error

    made_chat(place, lambda: proof_error(described(), "M112", "states differ", "", "teacher"))


@situation("M101", **OTHER)
def a_teacher_splits_words_in_another_way(place):
    start_models(place, "'teacher.model=modelle ö/fremd'", "fremd")
    file = place.folder / "modelle ö/fremd/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"].reverse()
    file.write_text(json.dumps(tokenizer))


@situation("C101")
def a_generic_family_has_no_limit_of_image_tokens(place):
    from vistill.models.families.processor_family import ProcessorFamily

    family = SimpleNamespace(
        can_limit_image_tokens=False, processor=SimpleNamespace(image_processor=None),
        tokens_under_limit=lambda limit: {576}, describe=lambda: "generic (llava)",
    )  # fmt: skip
    rest = "data.max_image_tokens=64"
    made(place, lambda: ProcessorFamily.limit_image_tokens(family, 64), rest)


@situation("E302")
def a_package_of_a_processor_is_missing(place):
    from vistill.models.families.processors import missing_package_error

    made(place, lambda: missing_package_error("a model", "torchvision"))


@situation("E301")
def the_packages_of_the_real_backbone_are_missing(place):
    from vistill.studies.make_real_backbone import require_packages

    made(place, lambda: require_packages(("no_such_package",)))


@situation("D203")
def a_prompt_of_a_family_without_image_limit_is_too_long(place):
    from vistill.training.checks.prompt_lengths import OverlongPrompt, check_prompt_lengths

    overlong = [OverlongPrompt("row 1", 3000, 2880, 1)]
    made(place, lambda: check_prompt_lengths(overlong, 2048, False))


@situation("M105", **OTHER)
def a_family_cannot_be_read(place):
    from vistill.runs.model_families import check_family

    config = {"model_type": "mllama", "vision_config": {}}
    made(place, lambda: check_family(config, "a model", "teacher"))


@situation("C101")
def a_limit_of_image_tokens_is_below_what_a_processor_keeps(place):
    from vistill.models.families.processor_family import ProcessorFamily

    family = SimpleNamespace(
        can_limit_image_tokens=True, processor=SimpleNamespace(image_processor=None),
        tokens_under_limit=lambda limit: {16}, describe=lambda: "generic (smolvlm)",
        possible_limit=lambda images, tokens: tokens,
    )  # fmt: skip
    made(place, lambda: ProcessorFamily.limit_image_tokens(family, 4), "data.max_image_tokens=4")


@situation("C101")
def a_cuda_graph_for_a_model_that_cannot_share_prompts(place):
    def built():
        from vistill.errors import ConfigError
        from vistill.rollouts.build import shared_engine
        from vistill.rollouts.settings import RolloutSettings

        vlm = SimpleNamespace(shares_prompts=False, source="a model")
        try:
            shared_engine(vlm, RolloutSettings(cuda_graph=True), lambda: None)
        except ConfigError as error:
            return error

    made(place, built, "rollout.cuda_graph=true")
