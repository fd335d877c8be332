"""The processor files of an exported folder: copied, adapted, written, or refused."""

import json
import shutil

import pytest
from conftest import REPO

from vistill.errors import ModelError
from vistill.models.loading import load_encoder
from vistill.models.processor_files import (
    IMAGE,
    OLD_TEMPLATE,
    PROCESSOR,
    TEMPLATE,
    VIDEO,
    copy_processor_files,
)

OURS = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "size": {"a": 1}}


def folder_with(path, **files):
    """A model folder with JSON files, named without their ending."""
    path.mkdir()
    for name, content in {"config": {}, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_missing_files_come_from_the_base_with_the_image_settings_of_training(tmp_path, target):
    source = folder_with(tmp_path / "student", preprocessor_config=OURS)
    nested = {"processor_class": "X", "image_processor": {"size": {"a": 9}}, "video_processor": {}}
    base = folder_with(tmp_path / "base", processor_config=nested)
    notes = copy_processor_files(source, target, [base], "unknown_family")
    assert read(target, PROCESSOR) == {**nested, "image_processor": OURS}
    assert read(target, IMAGE) == OURS
    assert not (target / VIDEO).exists()
    assert notes == [f"{PROCESSOR} is that of {base}"]


def test_the_nearest_base_with_the_file_wins(tmp_path, target):
    source = folder_with(tmp_path / "student", preprocessor_config=OURS)
    plain = {"processor_class": "Near"}
    near = folder_with(tmp_path / "near", processor_config=plain)
    other = {"video_processor_type": "V"}
    far = folder_with(tmp_path / "far", processor_config={}, video_preprocessor_config=other)
    copy_processor_files(source, target, [near, far], "unknown_family")
    assert read(target, PROCESSOR) == plain
    assert read(target, VIDEO) == other


def test_files_that_no_base_has_are_written_for_a_plain_processor(tmp_path, target):
    source = folder_with(tmp_path / "student", preprocessor_config={**OURS, "image_mean": [0.5]})
    copy_processor_files(source, target, [str(tmp_path / "gone")], "qwen3_vl")
    assert read(target, PROCESSOR) == {"processor_class": "Qwen3VLProcessor"}
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 8, "image_mean": [0.5]}
    assert read(target, VIDEO) == video


def test_a_complete_processor_stays_as_it_is(tmp_path, target):
    nested = {"processor_class": "X", "image_processor": OURS}
    source = folder_with(tmp_path / "student", processor_config=nested)
    base = folder_with(tmp_path / "base", processor_config={"processor_class": "Y"})
    assert copy_processor_files(source, target, [base], "qwen3_vl") == []
    assert read(target, PROCESSOR) == nested
    assert not (target / VIDEO).exists()


def test_the_template_of_training_is_never_shadowed_by_that_of_a_base(tmp_path, target):
    """transformers prefers `chat_template.json` where both exist."""
    source = folder_with(tmp_path / "student", preprocessor_config=OURS)
    (tmp_path / "student" / TEMPLATE).write_text("ours")
    base = folder_with(tmp_path / "base", chat_template={"chat_template": "theirs"})
    copy_processor_files(source, target, [base], "qwen3_vl")
    assert (target / TEMPLATE).read_text() == "ours"
    assert not (target / OLD_TEMPLATE).exists()
    (tmp_path / "student" / TEMPLATE).unlink()
    (target / TEMPLATE).unlink()
    notes = copy_processor_files(source, target, [base], "qwen3_vl")
    assert read(target, OLD_TEMPLATE) == {"chat_template": "theirs"}
    assert notes[0] == f"{OLD_TEMPLATE} is that of {base}"


def test_no_image_settings_is_m120_with_the_base_that_has_them(tmp_path, target):
    source = folder_with(tmp_path / "student")
    base = folder_with(tmp_path / "base", preprocessor_config=OURS)
    with pytest.raises(ModelError) as caught:
        copy_processor_files(source, target, [base], "qwen3_vl")
    assert caught.value.code == "M120"
    assert caught.value.fix == f"cp {base}/{IMAGE} {source}/"


@pytest.mark.parametrize("text", ["not json", "[1]"])
def test_a_damaged_file_is_m120(tmp_path, target, text):
    source = folder_with(tmp_path / "student", preprocessor_config=OURS)
    (tmp_path / "student" / PROCESSOR).write_text(text)
    with pytest.raises(ModelError) as caught:
        copy_processor_files(source, target, [], "qwen3_vl")
    assert caught.value.code == "M120"
    assert PROCESSOR in caught.value.what


def copy_student(path):
    """A copy of the shipped student without its chat template, and the template."""
    shutil.copytree(REPO / "vistill" / "assets" / "student", path)
    template = (path / TEMPLATE).read_text()
    (path / TEMPLATE).unlink()
    return path, template


def test_a_chat_template_in_its_older_file_is_read(tmp_path):
    folder, template = copy_student(tmp_path / "student")
    (folder / OLD_TEMPLATE).write_text(json.dumps({"chat_template": template}))
    assert load_encoder(folder).tokenizer.chat_template == template


@pytest.mark.parametrize("text", [None, "{}", "[]", "no json"])
def test_no_chat_template_is_refused_before_weights(tmp_path, text):
    folder, _ = copy_student(tmp_path / "student")
    if text is not None:
        (folder / OLD_TEMPLATE).write_text(text)
    with pytest.raises(ModelError) as caught:
        load_encoder(folder)
    assert caught.value.code == "M108"


@pytest.mark.parametrize("name", [IMAGE, "tokenizer.json"])
def test_a_folder_without_a_file_is_told_which_one_it_lacks(tmp_path, name):
    shutil.copytree(REPO / "vistill" / "assets" / "student", tmp_path / "student")
    (tmp_path / "student" / name).unlink()
    with pytest.raises(ModelError) as caught:
        load_encoder(tmp_path / "student")
    assert caught.value.code == "M108"
    assert f"no {name}" in caught.value.why
