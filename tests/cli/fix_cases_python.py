"""What the functions of `vistill` refuse, and the expressions that they print."""

from types import SimpleNamespace

from fix_cases import ASSETS, ROWS, good_rows, picture, situation, start, write_rows

import vistill

STUDENT = str(ASSETS / "student")


def refused(place, function):
    """A sound folder, and a call that is refused."""
    start(place)
    write_rows(place, good_rows(), "data/train.jsonl")
    for number in range(ROWS):
        place.write(f"data/bild {number}.png", picture(number))
    place.raises = lambda place: function()


@situation("C002")
def a_student_is_a_path(place):
    from vistill.training.checks.arguments import check_model

    refused(place, lambda: check_model(STUDENT, "student"))


@situation("C002")
def a_student_is_no_model(place):
    from vistill.training.checks.arguments import check_model

    refused(place, lambda: check_model(7, "student"))


@situation("C002")
def a_method_is_a_name(place):
    from vistill.training.checks.arguments import check_method_argument

    refused(place, lambda: check_method_argument("va_odp"))


@situation("C002")
def a_method_is_a_class(place):
    from vistill.training.checks.arguments import check_method_argument

    class Own(vistill.OPD):
        pass

    refused(place, lambda: check_method_argument(Own))


@situation("C002")
def responses_are_one_text(place):
    from vistill.training.checks.arguments import check_responses

    refused(place, lambda: check_responses([], "text"))


@situation("C001")
def an_option_is_misspelt(place):
    from vistill.training.checks.arguments import check_options

    refused(place, lambda: check_options({"evl_prompts": 1}, ["eval_prompts", "train"]))


@situation("C001")
def an_option_is_like_no_other(place):
    from vistill.training.checks.arguments import check_options

    refused(place, lambda: check_options({"zebra": 1}, ["eval_prompts", "train"]))


@situation("D102")
def prompts_are_texts(place):
    from vistill.training.checks.data import check_prompts

    refused(place, lambda: check_prompts(["text"]))


@situation("D104")
def an_answer_is_a_number(place):
    from vistill.training.checks.data import check_prompts

    refused(place, lambda: check_prompts([vistill.Prompt("a", ("text",), answer=7)]))


@situation("D202")
def an_image_is_bare(place):
    from vistill.training.checks.data import check_prompts

    prompt = SimpleNamespace(
        id="a", golds=(), response=None, system=None, choices=(), labels={}, images=[7], thoughts=()
    )
    from vistill.training.checks.data import check_prompt_types

    assert check_prompts
    refused(place, lambda: check_prompt_types(prompt))


@situation("C101")
def pixel_limits_stand_next_to_prompts(place):
    from vistill.data.settings import DataSettings
    from vistill.training.checks.data import check_no_limits

    refused(place, lambda: check_no_limits(DataSettings(min_pixels=4000)))


@situation("D102")
def two_prompts_have_one_id(place):
    from vistill.data.stored_prompts import with_content_hashes

    refused(place, lambda: with_content_hashes([vistill.Prompt("a", ("text",))] * 2))


@situation("C101")
def a_student_is_in_half_precision(place):
    import torch

    from vistill.training.checks.models import require_full_precision

    model = SimpleNamespace(parameters=lambda: iter([torch.zeros(1, dtype=torch.bfloat16)]))
    refused(place, lambda: require_full_precision(SimpleNamespace(model=model, source=STUDENT)))


@situation("M105")
def a_family_of_a_model_of_python_has_no_adapter(place):
    from vistill.runs.model_families import unsupported_family_error

    refused(place, lambda: unsupported_family_error("a model", "bert", "no class", "model"))


@situation("M103")
def a_model_of_python_is_misspelt(place):
    from vistill.runs.model_not_found import model_not_found_error

    refused(place, lambda: model_not_found_error("vistill:studnet"))


@situation("C002")
def a_group_of_settings_is_a_dictionary(place):
    from vistill.training.checks.arguments import check_option_types

    refused(place, lambda: check_option_types({"train": {"lr": 1e-4, "steps": 2}}))


@situation("C002")
def a_group_of_settings_is_nothing(place):
    from vistill.training.checks.arguments import check_option_types

    refused(place, lambda: check_option_types({"save": None}))


@situation("C002")
def progress_is_no_function(place):
    from vistill.training.checks.arguments import check_option_types

    refused(place, lambda: check_option_types({"progress": 7}))


@situation("C002")
def a_run_folder_is_a_number(place):
    from vistill.training.checks.arguments import check_folder

    refused(place, lambda: check_folder(7))


@situation("C002")
def a_source_of_a_model_is_nothing(place):
    refused(place, lambda: vistill.load(None))


@situation("C002")
def a_share_is_too_large(place):
    from vistill.training.checks.arguments import check_share

    refused(place, lambda: check_share(2))


@situation("C002")
def a_response_is_a_list(place):
    from vistill.training.checks.arguments import check_responses

    refused(place, lambda: check_responses([1, 2], ["text", ["text"]]))


@situation("C001")
def an_argument_of_load_prompts_is_misspelt(place):
    refused(place, lambda: vistill.load_prompts("daten 1/zeilen ü.jsonl", imges="bild"))


@situation("D102")
def prompts_are_one_prompt(place):
    from vistill.training.checks.data import check_prompts

    refused(place, lambda: check_prompts(vistill.Prompt("a", ("text",))))


@situation("C005")
def overrides_are_one_text(place):
    refused(place, lambda: vistill.load_recipe("rezept ä.yaml", "train.lr=1e-5"))


@situation("C105")
def a_checker_of_judge_is_misspelt(place):
    refused(place, lambda: vistill.judge("42", "42", checker="maths"))


@situation("C001", first=True)
def a_setting_is_passed_to_distill(place):
    from vistill.schema.other_trainers import OUR_KEYS
    from vistill.training.checks.arguments import check_options

    names = [*vistill.DistillOptions.__annotations__]
    refused(place, lambda: check_options({"min_lr": 0.1}, names, other_names=OUR_KEYS))


@situation("C002", first=True)
def a_value_of_settings_is_a_text(place):
    refused(place, lambda: vistill.TrainSettings(lr="1e-5x"))
