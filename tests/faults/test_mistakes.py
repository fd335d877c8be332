"""The twelve classics, five variants each: the right code before any weight is loaded, a short message, and a fix that works when pasted."""

import re
import shutil
import sys

import pytest
from mistakes import ASSETS, Desk, examine, is_installable, lock_weights, mend
from PIL import Image

from vistill.models.tiny import train_tokenizer

SEEN_FAST = {"C103", "D101", "D201", "D202", "D204"}


@pytest.fixture
def response_source(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTILL_ERROR_JSON", "error.json")
    monkeypatch.delenv("VISTILL_TRACEBACK", raising=False)
    return Desk(tmp_path)


def follow(response_source, code, weightless=True):
    """Make the mistake, read the message, paste every alternative of its fix.

    What `check --fast` can see is mended under it; the message itself always comes from the command in full.
    """
    with pytest.MonkeyPatch.context() as patch:
        if weightless:
            lock_weights(patch)
        first = response_source.attempt()
    examine(first, code)
    assert first.pastes(), f"nothing to paste:\n{first.shown}"
    if code in SEEN_FAST:
        response_source.words.append("--fast")
    for other in first.pastes()[1:]:
        again = response_source.paste(other)
        assert again.code != code, f"{other} does not help:\n{again.shown}"
    mend(response_source, first)
    return first


def pytest_ids(value):
    return value.__name__.replace("_", " ")


def variants(*functions):
    return pytest.mark.parametrize("plant", functions, ids=pytest_ids)


# ---- M101, vocabularies ----


def two_words_are_exchanged(response_source):
    response_source.models("student", "teacher", "other")
    path = response_source.folder / "models" / "other" / "tokenizer.json"
    text = path.read_text()
    assert {'"A": ', '"B": '} <= set(re.findall(r'"[AB]": ', text))
    path.write_text(
        text.replace('"A": ', '"§": ').replace('"B": ', '"A": ').replace('"§": ', '"B": ')
    )
    response_source.words.append("teacher.model=models/other")


def another_tokenizer(response_source, size):
    response_source.models("student", "teacher", "other")
    folder = response_source.folder / "models" / "other"
    text = ["quite different words stand here, one behind the other, and more of them"] * 50
    train_tokenizer([f"{line} {n}" for n, line in enumerate(text)], size).save_pretrained(folder)


def a_tokenizer_of_other_words(response_source):
    another_tokenizer(response_source, 590)
    response_source.words.append("teacher.model=models/other")


def a_smaller_tokenizer(response_source):
    another_tokenizer(response_source, 300)
    response_source.words.append("teacher.model=models/other")


def one_token_was_added(response_source):
    from transformers import AutoTokenizer

    response_source.models("student", "teacher", "other")
    tokenizer = AutoTokenizer.from_pretrained(response_source.folder / "models" / "other")
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(response_source.folder / "models" / "other")
    response_source.words.append("teacher.model=models/other")


def the_student_is_the_odd_one(response_source):
    another_tokenizer(response_source, 590)
    response_source.words.append("student.model=models/other")


@variants(
    two_words_are_exchanged, a_tokenizer_of_other_words, a_smaller_tokenizer, one_token_was_added, the_student_is_the_odd_one
)  # fmt: skip
def test_models_of_different_vocabularies_are_refused_and_one_that_fits_is_named(
    response_source, plant
):
    plant(response_source)
    error = follow(response_source, "M101").error
    assert "first difference: id " in error["where"]
    assert ".model=models/" in error["fix"]


# ---- M102, image tokens ----


def patches_are_larger(response_source):
    response_source.models("student", "teacher", "other")
    response_source.edit("other", "config.json", vision_config__patch_size=16)
    response_source.edit("other", "preprocessor_config.json", patch_size=16)
    response_source.words.append("teacher.model=models/other")


def more_patches_are_merged(response_source):
    response_source.models("student", "teacher", "other")
    response_source.edit("other", "config.json", vision_config__spatial_merge_size=4)
    response_source.edit("other", "preprocessor_config.json", merge_size=4)
    response_source.words.append("teacher.model=models/other")


def the_teacher_takes_larger_pictures(response_source):
    response_source.models("student", "teacher")
    response_source.edit(
        "teacher", "preprocessor_config.json", size={"shortest_edge": 4096, "longest_edge": 65536}
    )


def the_teacher_takes_smaller_pictures(response_source):
    response_source.models("student", "teacher", "other")
    response_source.edit(
        "other", "preprocessor_config.json", size={"shortest_edge": 1024, "longest_edge": 4096}
    )
    response_source.words.append("teacher.model=models/other")


def the_student_has_other_patches(response_source):
    response_source.models("student", "teacher")
    shutil.copytree(
        response_source.folder / "models" / "student", response_source.folder / "models" / "odd"
    )
    response_source.edit("odd", "config.json", vision_config__patch_size=16)
    response_source.edit("odd", "preprocessor_config.json", patch_size=16)
    response_source.words.append("student.model=models/odd")


@variants(
    patches_are_larger, more_patches_are_merged, the_teacher_takes_larger_pictures, the_teacher_takes_smaller_pictures,
    the_student_has_other_patches,
)  # fmt: skip
def test_models_that_cut_a_picture_differently_are_refused_and_what_fits_is_named(
    response_source, plant
):
    plant(response_source)
    assert "patch 8, merge 2" in follow(response_source, "M102").error["why"]


# ---- M103, models that are not there ----


def the_teacher_is_misspelt(response_source):
    response_source.models("student", "teacher")
    response_source.words.append("teacher.model=models/techer")
    return "teacher"


def the_student_is_misspelt(response_source):
    response_source.models("student", "teacher")
    response_source.words.append("student.model=models/studnet")
    return "student"


def the_folder_of_the_models_is_named(response_source):
    response_source.models("student", "teacher")
    (response_source.folder / "models" / "a-notes").mkdir()
    response_source.words.append("teacher.model=models")
    return "teacher"


def a_shipped_model_is_misspelt(response_source):
    response_source.words.append("teacher.model=vistill:techer")
    return "teacher"


def a_hub_id_is_misspelt_and_the_right_one_is_cached(response_source):
    place = response_source.folder / "cache" / "models--Tiny--Seeing-Teacher"
    shutil.copytree(ASSETS / "teacher", place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    response_source.words.append("teacher.model=Tiny/Seeing-Techer")
    return "teacher"


@variants(
    the_teacher_is_misspelt, the_student_is_misspelt, the_folder_of_the_models_is_named, a_shipped_model_is_misspelt,
    a_hub_id_is_misspelt_and_the_right_one_is_cached,
)  # fmt: skip
def test_a_model_that_is_not_there_is_named_with_its_role_and_what_was_meant(
    response_source, plant, monkeypatch
):
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(response_source.folder / "cache")
    )
    role = plant(response_source)
    error = follow(response_source, "M103").error
    assert error["what"].startswith(f"{role} ")
    assert error["fix"].startswith(f"{role}.model=")


# ---- C103, one rollout, and nobody to compare it with ----


def va_opd_has_one_rollout(response_source):
    response_source.recipe("per_prompt: 2", "per_prompt: 1")


def the_command_line_says_one_rollout(response_source):
    response_source.words.append("rollout.per_prompt=1")


def grpo_has_one_rollout(response_source):
    response_source.words += ["method=grpo", "rollout.per_prompt=1"]


def papo_has_one_rollout(response_source):
    response_source.recipe("method: va_opd", "method: papo")
    response_source.words.append("rollout.per_prompt=1")


def a_stage_sets_one_rollout_itself(response_source):
    response_source.recipe(
        more="stages:\n  warm: {method: opd}\n  see: {method: va_opd, rollout: {per_prompt: 1}}\n"
    )


@variants(
    va_opd_has_one_rollout, the_command_line_says_one_rollout, grpo_has_one_rollout, papo_has_one_rollout,
    a_stage_sets_one_rollout_itself,
)  # fmt: skip
def test_one_rollout_without_siblings_is_refused_before_anything_is_read(response_source, plant):
    plant(response_source)
    assert "r.yaml" in follow(response_source, "C103").error["where"]


# ---- C104, memory ----


def the_budget_is_tiny(response_source):
    response_source.words.append("train.memory=1e-6")


def the_budget_is_tiny_for_opd(response_source):
    response_source.words += ["method=opd", "train.memory=1e-5"]


def the_budget_is_tiny_for_written_responses(response_source):
    response_source.words += [
        "method=sft",
        "teacher.model=",
        "data.columns.response=response",
        "train.memory=1e-5",
    ]


def responses_may_be_very_long(response_source):
    response_source.words += ["rollout.max_new_tokens=4000", "train.memory=0.01"]


def a_method_without_a_teacher_has_no_room(response_source):
    response_source.words += ["method=grpo", "teacher.model=", "train.memory=2e-5"]


@variants(
    the_budget_is_tiny, the_budget_is_tiny_for_opd, the_budget_is_tiny_for_written_responses, responses_may_be_very_long,
    a_method_without_a_teacher_has_no_room,
)  # fmt: skip
def test_a_memory_budget_without_room_for_one_prompt_says_what_would_fit(response_source, plant):
    plant(response_source)
    assert (
        follow(response_source, "C104", weightless=False).error["fix"].startswith("train.memory=")
    )


# ---- C201, another recipe on resume ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISTILL_ERROR_JSON", "error.json")
        response_source = Desk(tmp_path_factory.mktemp("trained"))
        response_source.command = "train"
        assert response_source.attempt().status == 0
    return response_source.folder


def the_learning_rate_is_another(response_source):
    response_source.words.append("train.lr=5e-5")
    return "--accept train.lr"


def there_are_more_steps_and_another_rate(response_source):
    response_source.words += ["train.steps=2", "train.lr=5e-5"]
    return "--accept train.lr,train.steps"


def the_temperature_is_another(response_source):
    response_source.words.append("rollout.temperature=0.9")
    return "run=runs/x-2"


def the_method_is_another(response_source):
    response_source.words.append("method=opd")
    return "run=runs/x-2"


def the_file_was_edited_and_a_second_run_is_there(response_source):
    response_source.recipe("per_prompt: 2", "per_prompt: 4")
    (response_source.folder / "runs" / "x-2").mkdir()
    return "run=runs/x-3"


@variants(
    the_learning_rate_is_another, there_are_more_steps_and_another_rate, the_temperature_is_another,
    the_method_is_another, the_file_was_edited_and_a_second_run_is_there,
)  # fmt: skip
def test_another_recipe_in_the_same_folder_is_refused_and_both_ways_on_work(
    response_source, plant, trained
):
    shutil.copytree(trained / "runs", response_source.folder / "runs")
    response_source.command = "train"
    kept = (response_source.folder / "runs" / "x" / "metrics.jsonl").read_bytes()
    words = plant(response_source)
    error = follow(response_source, "C201").error
    assert words in error["fix"]
    assert " -> " in error["why"]
    assert (response_source.folder / "runs" / "x" / "metrics.jsonl").read_bytes().startswith(kept)


# ---- D101, columns ----


def renamed(response_source, old, new):
    response_source.rows = [
        {new if key == old else key: value for key, value in row.items()}
        for row in response_source.rows
    ]
    response_source.save()


def the_question_is_called_problem(response_source):
    renamed(response_source, "question", "problem")


def the_recipe_misspells_the_question(response_source):
    response_source.words.append("data.columns.prompt=qestion")


def the_pictures_are_called_image(response_source):
    renamed(response_source, "images", "image")


def the_answer_is_misspelt(response_source):
    response_source.words.append("data.columns.answer=anwser")


def there_are_no_choices(response_source):
    response_source.words.append("data.columns.choices=options")


@variants(
    the_question_is_called_problem, the_recipe_misspells_the_question, the_pictures_are_called_image,
    the_answer_is_misspelt, there_are_no_choices,
)  # fmt: skip
def test_a_wrong_column_names_the_right_one(response_source, plant):
    plant(response_source)
    error = follow(response_source, "D101").error
    assert error["fix"].startswith("data.columns.")
    assert "columns found: " in error["why"]


# ---- D201, pictures that are not there ----


def one_picture_was_renamed(response_source):
    (response_source.folder / "data" / "images" / "fig_3.png").rename(
        response_source.folder / "data" / "images" / "fig-3.png"
    )


def the_ending_is_in_capitals(response_source):
    (response_source.folder / "data" / "images" / "fig_3.png").rename(
        response_source.folder / "data" / "images" / "fig_3.PNG"
    )


def a_picture_was_deleted_and_odd_rows_stop_the_run(response_source):
    response_source.rows = response_source.rows * 20
    response_source.rows[5] = {**response_source.rows[5], "images": ["images/gone.png"]}
    response_source.save()
    response_source.words.append("data.on_bad_row=stop")


def one_of_two_pictures_is_missing(response_source):
    response_source.rows[2]["images"] = ["images/fig_2.png", "images/fig_20.png"]
    response_source.save()


def the_pictures_lie_in_another_folder(response_source):
    (response_source.folder / "data" / "images").rename(response_source.folder / "pictures")
    for number, row in enumerate(response_source.rows):
        row["images"] = [f"fig_{number}.png"]
    response_source.save()


@variants(
    one_picture_was_renamed, the_ending_is_in_capitals, a_picture_was_deleted_and_odd_rows_stop_the_run,
    one_of_two_pictures_is_missing, the_pictures_lie_in_another_folder,
)  # fmt: skip
def test_a_missing_image_is_named_with_its_row(response_source, plant):
    plant(response_source)
    assert "rows.jsonl:" in follow(response_source, "D201").error["where"]


# ---- D202, pictures that cannot be read ----


def half_a_picture_arrived(response_source):
    path = response_source.folder / "data" / "images" / "fig_1.png"
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def half_a_photograph_arrived(response_source):
    path = response_source.folder / "data" / "images" / "fig_1.jpg"
    Image.effect_noise((200, 200), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    response_source.rows[1]["images"] = ["images/fig_1.jpg"]
    response_source.save()


def a_web_page_was_saved_as_a_picture(response_source):
    (response_source.folder / "data" / "images" / "fig_1.png").write_text(
        "<!doctype html><title>Not found</title>"
    )


def an_empty_file_is_no_picture(response_source):
    (response_source.folder / "data" / "images" / "fig_1.png").write_bytes(b"")


def a_picture_has_too_many_pixels(response_source):
    Image.new("1", (9000, 8000)).save(response_source.folder / "data" / "images" / "fig_1.png")


@variants(
    half_a_picture_arrived, half_a_photograph_arrived, a_web_page_was_saved_as_a_picture, an_empty_file_is_no_picture,
    a_picture_has_too_many_pixels,
)  # fmt: skip
def test_an_image_that_cannot_be_decoded_is_named_with_its_row(response_source, plant):
    plant(response_source)
    assert "rows.jsonl:2" in follow(response_source, "D202").error["where"]


# ---- D203, prompts that are too long ----


def a_question_is_very_long(response_source):
    response_source.rows[4]["question"] = "How many bars are there? " * 60
    response_source.save()
    response_source.words.append("data.max_prompt_tokens=200")


def several_questions_are_too_long(response_source):
    for number in (2, 5, 6):
        response_source.rows[number]["question"] = "How many bars are there? " * (30 * number)
    response_source.save()
    response_source.words.append("data.max_prompt_tokens=200")


def a_system_message_is_too_long(response_source):
    response_source.words += [
        "data.max_prompt_tokens=100",
        "data.system=" + "Think before you speak. " * 30,
    ]


def a_picture_takes_too_many_tokens(response_source):
    response_source.models("student", "teacher")
    for name in ("student", "teacher"):
        response_source.edit(
            name,
            "preprocessor_config.json",
            size={"shortest_edge": 4096, "longest_edge": 4096 * 16},
        )
    Image.effect_noise((256, 192), 80).convert("RGB").save(
        response_source.folder / "data" / "images" / "fig_1.png"
    )
    response_source.words.append("data.max_prompt_tokens=150")


def an_evaluation_row_is_too_long(response_source):
    response_source.save(
        "held.jsonl", [{**response_source.rows[0], "question": "How many bars? " * 80}]
    )
    response_source.words += ["data.eval=data/held.jsonl", "data.max_prompt_tokens=200"]


@variants(
    a_question_is_very_long, several_questions_are_too_long, a_system_message_is_too_long,
    a_picture_takes_too_many_tokens, an_evaluation_row_is_too_long,
)  # fmt: skip
def test_a_prompt_that_is_too_long_says_what_would_fit(response_source, plant):
    plant(response_source)
    error = follow(response_source, "D203").error
    assert ".jsonl:" in error["where"]
    assert " image + " in error["what"]


# ---- D204, rows without a picture ----


def a_row_has_no_pictures(response_source):
    response_source.rows[3]["images"] = []
    response_source.save()


def a_rows_picture_is_null(response_source):
    response_source.rows[0]["images"] = None
    response_source.save()


def a_row_does_not_have_the_column(response_source):
    del response_source.rows[6]["images"]
    response_source.save()


def an_evaluation_row_has_no_picture(response_source):
    response_source.save(
        "held.jsonl", [response_source.rows[0], {**response_source.rows[1], "images": []}]
    )
    response_source.words.append("data.eval=data/held.jsonl")


def half_of_the_rows_are_text(response_source):
    for row in response_source.rows[::2]:
        row["images"] = []
    response_source.save()


@variants(
    a_row_has_no_pictures, a_rows_picture_is_null, a_row_does_not_have_the_column, an_evaluation_row_has_no_picture,
    half_of_the_rows_are_text,
)  # fmt: skip
def test_rows_without_an_image_stop_the_run_until_somebody_decides(response_source, plant):
    plant(response_source)
    assert ".jsonl:" in follow(response_source, "D204").error["where"]


# ---- E301, packages that are not installed ----


def the_rows_are_in_a_parquet_file(response_source):
    response_source.words.append("data.train=data/rows.parquet")


def the_rows_are_on_the_hub(response_source):
    response_source.words.append("data.train=hf:owner/name")


def a_split_on_the_hub_is_named(response_source):
    response_source.words.append("data.train=hf:owner/name[test]")


def evaluation_rows_are_in_a_parquet_file(response_source):
    response_source.words.append("data.eval=data/held.parquet")


def evaluation_rows_are_on_the_hub(response_source):
    response_source.words.append("data.eval=hf:owner/name[validation]")


@variants(
    the_rows_are_in_a_parquet_file, the_rows_are_on_the_hub, a_split_on_the_hub_is_named,
    evaluation_rows_are_in_a_parquet_file, evaluation_rows_are_on_the_hub,
)  # fmt: skip
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    response_source, plant, monkeypatch
):
    monkeypatch.setitem(sys.modules, "datasets", None)
    lock_weights(monkeypatch)
    plant(response_source)
    first = response_source.attempt()
    examine(first, "E301")
    assert is_installable(first.pastes()[0]), first.error["fix"]
