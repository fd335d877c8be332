"""Twelve frequent mistakes with five variants each.

Each gives the right code before any weight is loaded, a short message, and a fix that works.
"""

import re
import shutil
import sys

import pytest
from mistakes import (
    ASSETS,
    Workspace,
    apply_fixes,
    check_message,
    forbid_loading_weights,
    is_installable,
)
from PIL import Image
from tiers import few

from vistill.models.tiny import train_tokenizer

REPORTED_BY_FAST = {"C103", "D101", "D103", "D104", "D105", "D201", "D202", "D204", "D206"}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTILL_ERROR_JSON", "error.json")
    monkeypatch.delenv("VISTILL_TRACEBACK", raising=False)
    return Workspace(tmp_path)


def follow(workspace, code, before_weights=True):
    """Make the mistake, read the message, paste every alternative of its fix.

    For codes that `check --fast` reports, the fixes are tried with `--fast`; the message itself
    always comes from the full command.
    """
    with pytest.MonkeyPatch.context() as patch:
        if before_weights:
            forbid_loading_weights(patch)
        first = workspace.attempt()
    check_message(first, code)
    assert first.pasteable_fixes(), f"nothing to paste:\n{first.shown}"
    if code in REPORTED_BY_FAST:
        workspace.arguments.append("--fast")
    for other in first.pasteable_fixes()[1:]:
        again = workspace.paste(other)
        assert again.code != code, f"{other} does not help:\n{again.shown}"
    apply_fixes(workspace, first)
    return first


def pytest_ids(value):
    return value.__name__.replace("_", " ")


def variants(*functions):
    """Each mistake. Only the first one of a code is in the first tier."""
    return pytest.mark.parametrize("plant", few(functions, 0), ids=pytest_ids)


# ---- M101, vocabularies ----


def two_tokens_are_swapped(workspace):
    workspace.models("student", "teacher", "other")
    path = workspace.folder / "models" / "other" / "tokenizer.json"
    text = path.read_text()
    assert {'"A": ', '"B": '} <= set(re.findall(r'"[AB]": ', text))
    path.write_text(
        text.replace('"A": ', '"§": ').replace('"B": ', '"A": ').replace('"§": ', '"B": ')
    )
    workspace.arguments.append("teacher.model=models/other")


def another_tokenizer(workspace, size):
    workspace.models("student", "teacher", "other")
    folder = workspace.folder / "models" / "other"
    text = ["quite different words stand here, one behind the other, and more of them"] * 50
    train_tokenizer([f"{line} {n}" for n, line in enumerate(text)], size).save_pretrained(folder)


def a_tokenizer_of_other_text(workspace):
    another_tokenizer(workspace, 590)
    workspace.arguments.append("teacher.model=models/other")


def a_smaller_tokenizer(workspace):
    another_tokenizer(workspace, 300)
    workspace.arguments.append("teacher.model=models/other")


def one_token_was_added(workspace):
    from transformers import AutoTokenizer

    workspace.models("student", "teacher", "other")
    tokenizer = AutoTokenizer.from_pretrained(workspace.folder / "models" / "other")
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(workspace.folder / "models" / "other")
    workspace.arguments.append("teacher.model=models/other")


def the_student_has_another_tokenizer(workspace):
    another_tokenizer(workspace, 590)
    workspace.arguments.append("student.model=models/other")


@pytest.mark.more
@variants(
    two_tokens_are_swapped, a_tokenizer_of_other_text, a_smaller_tokenizer, one_token_was_added,
    the_student_has_another_tokenizer,
)  # fmt: skip
def test_models_with_different_vocabularies_are_refused_and_a_matching_one_is_named(
    workspace, plant
):
    plant(workspace)
    error = follow(workspace, "M101").error
    assert "first difference: id " in error["where"]
    assert ".model=models/" in error["fix"]


# ---- M102, image tokens ----


def patches_are_larger(workspace):
    workspace.models("student", "teacher", "other")
    workspace.edit("other", "config.json", vision_config__patch_size=16)
    workspace.edit("other", "preprocessor_config.json", patch_size=16)
    workspace.arguments.append("teacher.model=models/other")


def more_patches_are_merged(workspace):
    workspace.models("student", "teacher", "other")
    workspace.edit("other", "config.json", vision_config__spatial_merge_size=4)
    workspace.edit("other", "preprocessor_config.json", merge_size=4)
    workspace.arguments.append("teacher.model=models/other")


def the_teacher_takes_larger_images(workspace):
    workspace.models("student", "teacher")
    workspace.edit(
        "teacher", "preprocessor_config.json", size={"shortest_edge": 4096, "longest_edge": 65536}
    )


def the_teacher_takes_smaller_images(workspace):
    workspace.models("student", "teacher", "other")
    workspace.edit(
        "other", "preprocessor_config.json", size={"shortest_edge": 1024, "longest_edge": 4096}
    )
    workspace.arguments.append("teacher.model=models/other")


def the_student_has_other_patches(workspace):
    workspace.models("student", "teacher")
    shutil.copytree(workspace.folder / "models" / "student", workspace.folder / "models" / "odd")
    workspace.edit("odd", "config.json", vision_config__patch_size=16)
    workspace.edit("odd", "preprocessor_config.json", patch_size=16)
    workspace.arguments.append("student.model=models/odd")


@pytest.mark.more
@variants(
    patches_are_larger, more_patches_are_merged, the_teacher_takes_larger_images,
    the_teacher_takes_smaller_images, the_student_has_other_patches,
)  # fmt: skip
def test_models_with_different_image_grids_are_refused_and_a_matching_one_is_named(
    workspace, plant
):
    plant(workspace)
    assert "patch 8, merge 2" in follow(workspace, "M102").error["why"]


# ---- M103, missing models ----


def the_teacher_is_misspelled(workspace):
    workspace.models("student", "teacher")
    workspace.arguments.append("teacher.model=models/techer")
    return "teacher"


def the_student_is_misspelled(workspace):
    workspace.models("student", "teacher")
    workspace.arguments.append("student.model=models/studnet")
    return "student"


def the_folder_of_the_models_is_named(workspace):
    workspace.models("student", "teacher")
    (workspace.folder / "models" / "a-notes").mkdir()
    workspace.arguments.append("teacher.model=models")
    return "teacher"


def an_included_model_is_misspelled(workspace):
    workspace.arguments.append("teacher.model=vistill:techer")
    return "teacher"


def a_hub_id_is_misspelled_and_the_right_one_is_cached(workspace):
    place = workspace.folder / "cache" / "models--Tiny--Seeing-Teacher"
    shutil.copytree(ASSETS / "teacher", place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    workspace.arguments.append("teacher.model=Tiny/Seeing-Techer")
    return "teacher"


@variants(
    the_teacher_is_misspelled, the_student_is_misspelled, the_folder_of_the_models_is_named,
    an_included_model_is_misspelled, a_hub_id_is_misspelled_and_the_right_one_is_cached,
)  # fmt: skip
def test_a_missing_model_is_named_with_its_role_and_a_similar_model(workspace, plant, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workspace.folder / "cache"))
    role = plant(workspace)
    error = follow(workspace, "M103").error
    assert error["what"].startswith(f"{role} ")
    assert error["fix"].startswith(f"{role}.model=")


# ---- C103, one rollout per prompt ----


def va_opd_has_one_rollout(workspace):
    workspace.recipe("per_prompt: 2", "per_prompt: 1")


def the_command_line_says_one_rollout(workspace):
    workspace.arguments.append("rollout.per_prompt=1")


def grpo_has_one_rollout(workspace):
    workspace.arguments += ["method=grpo", "rollout.per_prompt=1"]


def papo_has_one_rollout(workspace):
    workspace.recipe("method: va_opd", "method: papo")
    workspace.arguments.append("rollout.per_prompt=1")


def a_stage_sets_one_rollout_itself(workspace):
    workspace.recipe(
        more="stages:\n  warm: {method: opd}\n  see: {method: va_opd, rollout: {per_prompt: 1}}\n"
    )


@variants(
    va_opd_has_one_rollout, the_command_line_says_one_rollout, grpo_has_one_rollout,
    papo_has_one_rollout, a_stage_sets_one_rollout_itself,
)  # fmt: skip
def test_one_rollout_per_prompt_is_refused_before_any_data_is_read(workspace, plant):
    plant(workspace)
    is_argument = any("per_prompt" in word or "method=" in word for word in workspace.arguments)
    where = "command line" if is_argument else "r.yaml"
    assert where in follow(workspace, "C103").error["where"]


# ---- C104, memory ----


def the_budget_is_tiny(workspace):
    workspace.arguments.append("train.memory=1e-6")


def the_budget_is_tiny_for_opd(workspace):
    workspace.arguments += ["method=opd", "train.memory=1e-5"]


def the_budget_is_tiny_for_written_responses(workspace):
    workspace.arguments += [
        "method=sft",
        "teacher.model=",
        "data.columns.response=response",
        "train.memory=1e-5",
    ]


def responses_may_be_very_long(workspace):
    workspace.arguments += ["rollout.max_new_tokens=4000", "train.memory=0.01"]


def a_method_without_a_teacher_has_too_little_memory(workspace):
    workspace.arguments += ["method=grpo", "teacher.model=", "train.memory=2e-5"]


@pytest.mark.more
@variants(
    the_budget_is_tiny, the_budget_is_tiny_for_opd, the_budget_is_tiny_for_written_responses,
    responses_may_be_very_long, a_method_without_a_teacher_has_too_little_memory,
)  # fmt: skip
def test_a_memory_budget_too_small_for_one_prompt_says_what_is_enough(workspace, plant):
    plant(workspace)
    assert "train.memory=" in follow(workspace, "C104", before_weights=False).error["fix"]


# ---- C201, another recipe on resume ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step, trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISTILL_ERROR_JSON", "error.json")
        workspace = Workspace(tmp_path_factory.mktemp("trained"))
        workspace.command = "train"
        assert workspace.attempt().status == 0
    return workspace.folder


def the_learning_rate_changed(workspace):
    workspace.arguments.append("train.lr=5e-5")
    return "--accept train.lr"


def steps_and_learning_rate_changed(workspace):
    workspace.arguments += ["train.steps=2", "train.lr=5e-5"]
    return "--accept train.lr,train.steps"


def the_temperature_changed(workspace):
    workspace.arguments.append("rollout.temperature=0.9")
    return "run=runs/x-2"


def the_method_changed(workspace):
    workspace.arguments.append("method=opd")
    return "run=runs/x-2"


def the_file_changed_and_a_second_run_exists(workspace):
    workspace.recipe("per_prompt: 2", "per_prompt: 4")
    (workspace.folder / "runs" / "x-2").mkdir()
    return "run=runs/x-3"


@pytest.mark.more
@variants(
    the_learning_rate_changed, steps_and_learning_rate_changed, the_temperature_changed,
    the_method_changed, the_file_changed_and_a_second_run_exists,
)  # fmt: skip
def test_another_recipe_in_the_same_folder_is_refused_and_both_fixes_work(
    workspace, plant, trained
):
    shutil.copytree(trained / "runs", workspace.folder / "runs")
    workspace.command = "train"
    metrics = (workspace.folder / "runs" / "x" / "metrics.jsonl").read_bytes()
    words = plant(workspace)
    error = follow(workspace, "C201").error
    assert words in error["fix"]
    assert " -> " in error["why"]
    assert (workspace.folder / "runs" / "x" / "metrics.jsonl").read_bytes().startswith(metrics)


# ---- D101, columns ----


def renamed(workspace, old, new):
    workspace.rows = [
        {new if key == old else key: value for key, value in row.items()} for row in workspace.rows
    ]
    workspace.save()


def the_question_is_called_problem(workspace):
    renamed(workspace, "question", "problem")


def the_recipe_misspells_the_question(workspace):
    workspace.arguments.append("data.columns.prompt=qestion")


def the_images_column_is_called_image(workspace):
    renamed(workspace, "images", "image")


def the_answer_is_misspelled(workspace):
    workspace.arguments.append("data.columns.answer=anwser")


def there_are_no_choices(workspace):
    workspace.arguments.append("data.columns.choices=options")


@variants(
    the_question_is_called_problem, the_recipe_misspells_the_question,
    the_images_column_is_called_image, the_answer_is_misspelled, there_are_no_choices,
)  # fmt: skip
def test_a_wrong_column_names_the_right_one(workspace, plant):
    plant(workspace)
    error = follow(workspace, "D101").error
    assert error["fix"].startswith("data.columns.")
    assert "columns found: " in error["why"]


# ---- D201, missing images ----


def one_image_was_renamed(workspace):
    (workspace.folder / "data" / "images" / "fig_3.png").rename(
        workspace.folder / "data" / "images" / "fig-3.png"
    )


def the_file_extension_is_in_capitals(workspace):
    (workspace.folder / "data" / "images" / "fig_3.png").rename(
        workspace.folder / "data" / "images" / "fig_3.PNG"
    )


def an_image_was_deleted_and_bad_rows_stop_the_run(workspace):
    workspace.rows = workspace.rows * 20
    workspace.rows[5] = {**workspace.rows[5], "images": ["images/gone.png"]}
    workspace.save()
    workspace.arguments.append("data.on_bad_row=stop")


def one_of_two_images_is_missing(workspace):
    workspace.rows[2]["images"] = ["images/fig_2.png", "images/fig_20.png"]
    workspace.save()


def the_images_are_in_another_folder(workspace):
    (workspace.folder / "data" / "images").rename(workspace.folder / "pictures")
    for number, row in enumerate(workspace.rows):
        row["images"] = [f"fig_{number}.png"]
    workspace.save()


@variants(
    one_image_was_renamed, the_file_extension_is_in_capitals,
    an_image_was_deleted_and_bad_rows_stop_the_run, one_of_two_images_is_missing,
    the_images_are_in_another_folder,
)  # fmt: skip
def test_a_missing_image_is_named_with_its_row(workspace, plant):
    plant(workspace)
    assert "rows.jsonl:" in follow(workspace, "D201").error["where"]


# ---- D202, unreadable images ----


def a_png_is_cut(workspace):
    path = workspace.folder / "data" / "images" / "fig_1.png"
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def a_jpeg_is_cut(workspace):
    path = workspace.folder / "data" / "images" / "fig_1.jpg"
    Image.effect_noise((200, 200), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    workspace.rows[1]["images"] = ["images/fig_1.jpg"]
    workspace.save()


def a_web_page_was_saved_as_an_image(workspace):
    (workspace.folder / "data" / "images" / "fig_1.png").write_text(
        "<!doctype html><title>Not found</title>"
    )


def the_file_is_empty(workspace):
    (workspace.folder / "data" / "images" / "fig_1.png").write_bytes(b"")


def an_image_has_too_many_pixels(workspace):
    Image.new("1", (9000, 8000)).save(workspace.folder / "data" / "images" / "fig_1.png")


@variants(
    a_png_is_cut, a_jpeg_is_cut, a_web_page_was_saved_as_an_image,
    the_file_is_empty, an_image_has_too_many_pixels,
)  # fmt: skip
def test_an_image_that_cannot_be_decoded_is_named_with_its_row(workspace, plant):
    plant(workspace)
    assert "rows.jsonl:2" in follow(workspace, "D202").error["where"]


# ---- D203, prompts that are too long ----


def a_question_is_very_long(workspace):
    workspace.rows[4]["question"] = "How many bars are there? " * 60
    workspace.save()
    workspace.arguments.append("data.max_prompt_tokens=200")


def several_questions_are_too_long(workspace):
    for number in (2, 5, 6):
        workspace.rows[number]["question"] = "How many bars are there? " * (30 * number)
    workspace.save()
    workspace.arguments.append("data.max_prompt_tokens=200")


def a_system_message_is_too_long(workspace):
    workspace.arguments += [
        "data.max_prompt_tokens=100",
        "data.system=" + "Think before you speak. " * 30,
    ]


def an_image_takes_too_many_tokens(workspace):
    workspace.models("student", "teacher")
    for name in ("student", "teacher"):
        workspace.edit(
            name,
            "preprocessor_config.json",
            size={"shortest_edge": 4096, "longest_edge": 4096 * 16},
        )
    Image.effect_noise((256, 192), 80).convert("RGB").save(
        workspace.folder / "data" / "images" / "fig_1.png"
    )
    workspace.arguments.append("data.max_prompt_tokens=150")


def an_evaluation_row_is_too_long(workspace):
    workspace.save("held.jsonl", [{**workspace.rows[0], "question": "How many bars? " * 80}])
    workspace.arguments += ["data.eval=data/held.jsonl", "data.max_prompt_tokens=200"]


@variants(
    a_question_is_very_long, several_questions_are_too_long, a_system_message_is_too_long,
    an_image_takes_too_many_tokens, an_evaluation_row_is_too_long,
)  # fmt: skip
def test_a_prompt_that_is_too_long_says_what_is_enough(workspace, plant):
    plant(workspace)
    error = follow(workspace, "D203").error
    assert ".jsonl:" in error["where"]
    assert " image + " in error["what"]


# ---- D204, rows without an image ----


def a_row_has_no_images(workspace):
    workspace.rows[3]["images"] = []
    workspace.save()


def the_images_of_a_row_are_null(workspace):
    workspace.rows[0]["images"] = None
    workspace.save()


def a_row_lacks_the_column(workspace):
    del workspace.rows[6]["images"]
    workspace.save()


def an_evaluation_row_has_no_image(workspace):
    workspace.save("held.jsonl", [workspace.rows[0], {**workspace.rows[1], "images": []}])
    workspace.arguments.append("data.eval=data/held.jsonl")


def half_of_the_rows_are_text(workspace):
    for row in workspace.rows[::2]:
        row["images"] = []
    workspace.save()


@variants(
    a_row_has_no_images, the_images_of_a_row_are_null, a_row_lacks_the_column,
    an_evaluation_row_has_no_image, half_of_the_rows_are_text,
)  # fmt: skip
def test_rows_without_an_image_stop_the_run_until_the_user_decides(workspace, plant):
    plant(workspace)
    assert ".jsonl:" in follow(workspace, "D204").error["where"]


# ---- E301, packages that are not installed ----


def write_parquet(workspace, name):
    """A file that begins like Parquet; no package reads further here."""
    (workspace.folder / "data" / name).write_bytes(b"PAR1" + bytes(64))


def the_rows_are_in_a_parquet_file(workspace):
    write_parquet(workspace, "rows.parquet")
    workspace.arguments.append("data.train=data/rows.parquet")


def the_rows_are_on_the_hub(workspace):
    workspace.arguments.append("data.train=hf:owner/name")


def a_split_on_the_hub_is_named(workspace):
    workspace.arguments.append("data.train=hf:owner/name[test]")


def evaluation_rows_are_in_a_parquet_file(workspace):
    write_parquet(workspace, "held.parquet")
    workspace.arguments.append("data.eval=data/held.parquet")


def evaluation_rows_are_on_the_hub(workspace):
    workspace.arguments.append("data.eval=hf:owner/name[validation]")


@variants(
    the_rows_are_in_a_parquet_file, the_rows_are_on_the_hub, a_split_on_the_hub_is_named,
    evaluation_rows_are_in_a_parquet_file, evaluation_rows_are_on_the_hub,
)  # fmt: skip
def test_a_missing_extra_is_named_with_the_command_that_installs_it(workspace, plant, monkeypatch):
    for package in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    forbid_loading_weights(monkeypatch)
    plant(workspace)
    first = workspace.attempt()
    check_message(first, "E301")
    assert is_installable(first.pasteable_fixes()[0]), first.error["fix"]


# ---- D103 to D105, rows that cannot be read, or in more than one way ----


def an_image_has_no_placeholder(workspace):
    workspace.rows[1]["question"] = "<image> How many?"
    workspace.rows[1]["images"] *= 2
    workspace.save()
    return "D103"


def an_answer_ends_with_a_control_token(workspace):
    workspace.rows[1]["answer"] = "7<|im_end|>"
    workspace.save()
    return "D103"


def an_answer_names_no_option(workspace):
    for row in workspace.rows:
        row["options"] = ["a cat", "a dog"]
        row["answer"] = "B"
    workspace.rows[1]["answer"] = "E"
    workspace.save()
    workspace.arguments.append("data.columns.choices=options")
    return "D104"


def answers_stand_in_two_columns(workspace):
    for row in workspace.rows:
        row["messages"] = [{"role": "user", "content": row.pop("question")}]
        row["solution"] = row["label"] = row.pop("answer")
    workspace.save()
    return "D105"


def conversations_stand_in_two_columns(workspace):
    for row in workspace.rows:
        row["messages"] = [{"role": "user", "content": row.pop("question")}]
        row["conversations"] = row["messages"]
    workspace.save()
    return "D105"


def a_row_asks_twice(workspace):
    for row in workspace.rows:
        row["messages"] = [{"role": "user", "content": row.pop("question")}]
    workspace.rows[2]["messages"] *= 2
    workspace.save()
    return "D105"


def images_stand_in_a_folder_next_to_the_data(workspace):
    (workspace.folder / "data" / "images").rename(workspace.folder / "pictures")
    for number, row in enumerate(workspace.rows):
        row["images"] = [str(workspace.folder / "pictures" / f"fig_{number}.png")]
    workspace.save()
    return "D206"


@variants(
    an_image_has_no_placeholder, an_answer_ends_with_a_control_token, an_answer_names_no_option,
    answers_stand_in_two_columns, conversations_stand_in_two_columns, a_row_asks_twice,
    images_stand_in_a_folder_next_to_the_data,
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_named_with_a_fix_that_works(workspace, plant):
    workspace.arguments.append("data.overlap=allow")
    code = plant(workspace)
    assert follow(workspace, code).error["fix"]
