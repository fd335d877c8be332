"""`vistill chat`, `vistill generate` and `vistill export`: bad names, files that exist, no hub."""

import fcntl
import io
import json
import os
import shutil
import sys
from types import SimpleNamespace

from fix_cases import DATA_FILE, IMAGE_FOLDER, RECIPE_FILE, situation
from fix_cases_models import online, other_tokenizer, start_models
from fix_cases_runs import RUN, start_trained

PICTURE = f"{IMAGE_FOLDER}/bild 1.png"
STUDENT, TEACHER = "vistill:student", "vistill:teacher"
ASK = "--ask 'What is shown?'"
ANSWERS = "antworten ö/alle ü.jsonl"


def start_chat(place, rest="", *names, model=STUDENT, ask=ASK, **edits):
    """A folder with pictures and models, and one short answer about a picture."""
    start_models(place, "", *names, **edits)
    place.line = f"vistill chat '{model}' {ask} --temperature 0 --max-new-tokens 2 {rest}".rstrip()


def start_generate(place, rest="rollout.max_new_tokens=2 data.limit=2"):
    """A folder with rows, and a file of short responses to them."""
    start_models(place, "")
    place.line = f"vistill generate {STUDENT} '{DATA_FILE}' 'data.images={IMAGE_FOLDER}' {rest}"
    place.line += f" --out '{ANSWERS}'"


def start_export(place, rest="", *names, model=STUDENT, **edits):
    """A folder with models, and the export of one."""
    start_models(place, "", *names, **edits)
    place.line = f"vistill export '{model}' {rest}".rstrip()


def without_input(patch):
    """A pipe with nothing in it."""
    patch.setattr(sys, "stdin", io.StringIO(""))


@situation("C002", first=True)
def a_chat_has_no_question(place):
    start_chat(place, f"--image '{PICTURE}'", ask="")
    place.patches.append(without_input)


@situation("C002")
def a_chat_has_a_bad_temperature(place):
    start_chat(place)
    place.line = place.line.replace("--temperature 0", "--temperature -1")


@situation("D201", first=True)
def a_picture_of_a_chat_is_misspelt(place):
    start_chat(place, f"--image '{IMAGE_FOLDER}/bilt 1.png'")


@situation("D201", FILE=PICTURE)
def a_picture_of_a_chat_is_like_no_other(place):
    start_chat(place, "--image 'zebra 7'")


@situation("D202", FILE=PICTURE)
def a_picture_of_a_chat_is_damaged(place):
    start_chat(place, "--image 'kaputt ö.png'")
    place.write("kaputt ö.png", "no picture")


@situation("M103")
def a_model_of_a_chat_is_misspelt(place):
    start_chat(place, model="vistill:studnt")


@situation("M103")
def a_model_before_is_misspelt(place):
    start_chat(place, "--before vistill:studnt")


@situation("M103")
def a_teacher_of_a_chat_is_misspelt(place):
    start_chat(place, "--teacher 'modelle ö/teacehr'", "teacher")


@situation("M103", FOLDER_OR_HUB_ID=TEACHER)
def a_teacher_of_a_chat_is_like_no_other(place):
    start_chat(place, "--teacher 'zebra 7'")


@situation("M101", FOLDER_OR_HUB_ID=TEACHER)
def a_teacher_of_a_chat_reads_other_words(place):
    start_chat(place, "--teacher 'modelle ö/fremd'", "fremd")
    other_tokenizer(place, "fremd")


@situation("S605", RECIPE=RECIPE_FILE)
def a_run_of_a_chat_is_not_finished(place):
    folder = start_trained(place)
    (folder / "result.json").unlink()
    place.line = f"vistill chat '{RUN}' {ASK} --max-new-tokens 2"


@situation("S605")
def an_exported_run_is_not_finished(place):
    folder = start_trained(place, line=f"vistill export '{RUN}'")
    (folder / "result.json").unlink()


@situation("S605", RECIPE=RECIPE_FILE)
def an_exported_run_has_no_checkpoint(place):
    folder = start_trained(place, line=f"vistill export '{RUN}'")
    for path in folder.iterdir():
        if path.name != "run.lock.json":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@situation("M103")
def an_exported_model_is_misspelt(place):
    start_export(place, "", "teacher", model="modelle ö/teacehr")


@situation("M103", FOLDER_OR_HUB_ID=STUDENT, FOLDER=STUDENT)
def an_exported_model_is_not_in_the_cache(place):
    start_export(place, model="owner/zebra")


@situation("M103")
def a_model_folder_of_a_chat_is_misspelt(place):
    start_chat(place, "", "student", model="modelle ö/studnt")


@situation("M105", FOLDER_OR_HUB_ID=STUDENT)
def an_exported_model_reads_no_images(place):
    start_export(place, "", "fremd", model="modelle ö/fremd", config={"model_type": "bert"})


@situation("S608", first=True)
def the_exported_folder_exists(place):
    start_export(place, "--to 'aus ö/erste'")
    (place.folder / "aus ö/erste").mkdir(parents=True)


@situation("C002", OWNER_NAME="owner/name")
def an_upload_has_a_bad_name(place):
    start_export(place, "--push 'no name'")
    place.raises = lambda place: caught(push="no name", hub=Hub())


@situation("C002")
def an_export_has_an_unknown_precision(place):
    start_export(place, "--dtype fp8")


@situation("S601", OTHER_FOLDER="aus ö/neu")
def an_exported_folder_cannot_be_written(place):
    start_export(place, "--to 'datei ö/student'")
    place.write("datei ö", "")


def full_disk(patch):
    """A disk with nearly no space."""
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))


@situation("S601", OTHER_FOLDER="aus ö/neu")
def a_disk_is_too_small_for_an_export(place):
    start_export(place)
    place.patches.append(full_disk)


@situation("S601", OTHER_FOLDER="aus ö/neu")
def a_disk_is_too_small_for_an_export_in_full_precision(place):
    start_trained(place, line=f"vistill export '{RUN}'")
    size = sum(f.stat().st_size for f in (place.folder / RUN / "student").glob("*.safetensors"))
    free = SimpleNamespace(free=int(0.7 * size))  # enough for half the size, and nothing else
    place.patches.append(lambda patch: patch.setattr(shutil, "disk_usage", lambda path: free))


@situation("S601", OTHER_FOLDER="aus ö/neu")
def a_disk_is_too_small_for_half_of_an_export(place):
    start_export(place, "--dtype bf16")
    place.patches.append(full_disk)


class Hub:
    """A hub that refuses an account, or an upload."""

    def __init__(self, refused=""):
        self.refused = refused

    def whoami(self):
        if self.refused == "whoami":
            raise OSError("401 Unauthorized")

    def create_repo(self, repo_id, **named):
        raise OSError("403 Forbidden")


def caught(push="owner/name", hub=None):
    """The error of an export with an upload."""
    from vistill.errors import VistillError
    from vistill.export import export_model

    try:
        export_model(STUDENT, "aus ö/mit Lücke", push=push, hub=hub)
    except VistillError as error:
        return error
    raise AssertionError("no error")


@situation("S609")
def an_upload_is_offline(place):
    start_export(place, "--push owner/name")
    place.once["HF_HUB_OFFLINE"] = "1"


@situation("S609")
def an_upload_has_no_token(place):
    start_export(place, "--push owner/name")
    place.patches += [
        online,
        lambda patch: patch.setattr("huggingface_hub.get_token", lambda: None),
    ]


@situation("S609")
def the_hub_refuses_a_token(place):
    start_export(place)
    place.raises = lambda place: caught(hub=Hub("whoami"))


@situation("S609")
def the_hub_refuses_an_upload(place):
    start_export(place)
    place.raises = lambda place: caught(hub=Hub())


@situation("M120")
def an_exported_model_has_a_damaged_processor(place):
    start_export(place, "", "teacher", model="modelle ö/teacher")
    place.write("modelle ö/teacher/video_preprocessor_config.json", "{}")
    place.write("modelle ö/teacher/processor_config.json", "{")
    place.raises = lambda place: damaged(place)


def damaged(place):
    """The error of the damaged file alone: loading the model refuses it earlier."""
    from vistill.models.processor_files import read_object

    return read_object(place.folder / "modelle ö/teacher/processor_config.json")


@situation("M120", FOLDER="modelle ö/teacher")
def an_exported_model_has_no_image_processor(place):
    start_export(place, "", "teacher", "student", model="modelle ö/student")
    (place.folder / "modelle ö/student/preprocessor_config.json").unlink()


@situation("M120", FOLDER_OR_HUB_ID=TEACHER)
def an_exported_student_has_no_image_processor_but_its_base_has(place):
    folder = start_trained(place, line=f"vistill export '{RUN}'")
    for file in folder.glob("**/preprocessor_config.json"):
        file.unlink()


@situation("C203")
def a_file_holds_responses_to_other_rows(place):
    start_generate(place)
    place.write(ANSWERS, json.dumps({"id": "other", "content": "x", "response": "y"}) + "\n")


@situation("S602")
def another_process_writes_the_responses(place):
    start_generate(place)
    place.write(ANSWERS, "")
    place.owner = os.open(place.folder / ANSWERS, os.O_RDWR)
    fcntl.flock(place.owner, fcntl.LOCK_EX | fcntl.LOCK_NB)


@situation("M103")
def a_model_of_generate_is_misspelt(place):
    start_generate(place)
    place.line = place.line.replace(STUDENT, "vistill:studnt")


@situation("S605", RECIPE=RECIPE_FILE)
def a_run_of_generate_is_not_finished(place):
    folder = start_trained(place)
    (folder / "result.json").unlink()
    place.line = f"vistill generate '{RUN}' '{DATA_FILE}' rollout.max_new_tokens=2"


@situation("D203")
def a_question_of_generate_is_too_long(place):
    start_generate(place, "rollout.max_new_tokens=2 data.limit=2 data.max_prompt_tokens=8")


@situation("M103", first=True)
def a_run_of_a_chat_is_misspelt(place):
    start_trained(place, line=f"vistill chat 'läufe/erster laf' {ASK} --max-new-tokens 2")


@situation("M103")
def a_run_before_is_misspelt(place):
    start_trained(place)
    start_chat(place, "--before 'läufe/erster laf'")


@situation("M103")
def an_exported_run_is_misspelt(place):
    start_trained(place, line="vistill export 'läufe/erster laf' --to 'aus ö/neu'")


@situation("M103")
def a_run_of_generate_is_misspelt(place):
    start_trained(place)
    start_generate(place)
    place.line = place.line.replace(STUDENT, "'läufe/erster laf'")


@situation("D102", first=True)
def the_data_of_generate_are_misspelt(place):
    start_generate(place)
    place.line = place.line.replace(f"'{DATA_FILE}'", "'daten 1/zeiln ü.jsonl'")


@situation("D102", FILE_jsonl=DATA_FILE)
def the_data_of_generate_are_like_no_other(place):
    start_generate(place)
    place.line = place.line.replace(f"'{DATA_FILE}'", "zebra.jsonl")
