"""Bad input of `vistill chat`, `vistill generate` and `vistill export`, refused before weights."""

import shutil

from fix_cases import ASSETS, IMAGE_FOLDER, RECIPE_FILE, situation
from fix_cases_student import ANSWERS, PICTURE, STUDENT, start_chat, start_generate


@situation("D201", first=True)
def a_picture_of_a_chat_is_a_folder(place):
    start_chat(place, f"--image '{IMAGE_FOLDER}'")


@situation("D205", FILE=PICTURE)
def a_picture_of_a_chat_is_a_url(place):
    start_chat(place, "--image https://example.com/a.png")


@situation("D103")
def a_question_of_a_chat_has_too_many_placeholders(place):
    start_chat(place, f"--image '{PICTURE}'", ask="--ask '<image> and <image>?'")


@situation("S601", first=True)
def a_page_of_a_chat_is_a_folder(place):
    start_chat(place, f"--html '{IMAGE_FOLDER}'")


@situation("S601")
def a_page_of_a_chat_is_a_file_of_the_user(place):
    start_chat(place, f"--html '{RECIPE_FILE}'")


@situation("S601", FILE_jsonl=ANSWERS)
def a_file_of_responses_is_a_folder(place):
    start_generate(place)
    place.line = place.line.replace(f"--out '{ANSWERS}'", f"--out '{IMAGE_FOLDER}'")


@situation("S601", FILE_jsonl=ANSWERS)
def a_file_of_responses_is_below_a_file(place):
    start_generate(place)
    place.line = place.line.replace(f"--out '{ANSWERS}'", f"--out '{RECIPE_FILE}/alle.jsonl'")


def write_adapter(place):
    """What peft saves."""
    base = '{"base_model_name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}'
    place.write("modelle ö/adapter/adapter_config.json", base)


@situation("M103", FOLDER_OR_HUB_ID=STUDENT)
def a_model_of_a_chat_is_an_adapter(place):
    start_chat(place, model="modelle ö/adapter")
    write_adapter(place)


@situation("M108", first=True)
def a_model_of_a_chat_has_no_tokenizer(place):
    start_chat(place, "", "student", model="modelle ö/student")
    (place.folder / "modelle ö/student/tokenizer.json").unlink()


@situation("M108")
def a_model_of_generate_has_no_image_processor(place):
    start_generate(place)
    shutil.copytree(ASSETS / "student", place.folder / "modelle ö/student")
    (place.folder / "modelle ö/student/preprocessor_config.json").unlink()
    place.line = place.line.replace(STUDENT, "'modelle ö/student'")


@situation("M103", FOLDER_OR_HUB_ID=STUDENT)
def a_configuration_of_a_chat_is_a_list(place):
    start_chat(place, "", "student", model="modelle ö/student")
    place.write("modelle ö/student/config.json", "[]")
