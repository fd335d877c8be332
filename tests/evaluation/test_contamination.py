"""Training rows that are rows of a benchmark, and sources that are for evaluation only."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from vistill.data.loading import load_rows
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.contamination import (
    PictureKeys,
    find_contamination,
    picture_key,
    question_key,
    question_of,
)
from vistill.evaluation.benchmarks.licences import reason_for_evaluation_only
from vistill.training.checks.benchmarks import compare_with_benchmarks, find_evaluation_sets

LONG = "How many leaves does the plant in the picture have, and which of them is the largest?"


def drawing(seed, size=(120, 90)):
    """A picture of smooth random areas."""
    values = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def write_benchmark(folder, pictures, questions):
    """`mmstar`, whose question holds its options."""
    (folder / "mmstar").mkdir(parents=True)
    rows = []
    for number, (picture, question) in enumerate(zip(pictures, questions, strict=True)):
        picture.save(folder / "mmstar" / f"{number}.png")
        rows.append(
            {"index": number, "question": question, "image": f"{number}.png", "answer": "A",
             "category": "c", "l2_category": "l"}
        )  # fmt: skip
    (folder / "mmstar" / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def write_training(folder, pictures, questions, suffix="png", **save):
    folder.mkdir(parents=True)
    rows = []
    for number, (picture, question) in enumerate(zip(pictures, questions, strict=True)):
        picture.save(folder / f"t{number}.{suffix}", **save)
        rows.append({"question": question, "images": [f"t{number}.{suffix}"], "answer": "1"})
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return DataSettings(train=str(folder / "train.jsonl"))


def matches(settings, benchmarks):
    prompts = load_rows(settings.train, settings, None).prompts
    result = find_contamination(prompts, settings, benchmarks)
    return {(m.train.rpartition(":")[2], m.row, m.how) for m in result.matches}, result


def test_the_same_pixels_in_another_lossless_file_are_the_same_picture(tmp_path):
    write_benchmark(tmp_path / "sets", [drawing(1), drawing(2)], ["Which one?", "Which two?"])
    settings = write_training(
        tmp_path / "own", [drawing(7), drawing(2)], ["What?", "And this?"], "bmp"
    )
    hits, result = matches(settings, tmp_path / "sets")
    assert hits == {("2", "mmstar_1", "picture")}
    assert result.compared == {"mmstar": 2}
    assert "1 training rows are like rows of benchmarks: mmstar 1 by picture" in result.summary()


@pytest.mark.parametrize("quality", [60, 90])
def test_a_picture_that_was_stored_with_loss_and_shrunk_is_similar(quality, tmp_path):
    write_benchmark(tmp_path / "sets", [drawing(1), drawing(2)], ["Which one?", "Which two?"])
    small = [drawing(7), drawing(2).resize((60, 45))]
    settings = write_training(tmp_path / "own", small, ["What?", "Q"], "jpg", quality=quality)
    assert matches(settings, tmp_path / "sets")[0] == {("2", "mmstar_1", "similar picture")}


def test_the_same_question_counts_in_other_case_with_other_blanks_and_in_a_template(tmp_path):
    write_benchmark(tmp_path / "sets", [drawing(1)], [LONG])
    settings = write_training(tmp_path / "own", [drawing(7)], ["<image>" + LONG.upper() + "  "])
    template = DataSettings(train=settings.train, template="{prompt}\nPut it in \\boxed{{}}.")
    assert matches(template, tmp_path / "sets")[0] == {("1", "mmstar_0", "question")}


def test_picture_and_question_together_are_a_row(tmp_path):
    write_benchmark(tmp_path / "sets", [drawing(1)], [LONG])
    settings = write_training(tmp_path / "own", [drawing(1)], [LONG], "jpg", quality=80)
    assert matches(settings, tmp_path / "sets")[0] == {("1", "mmstar_0", "row")}


def test_a_question_that_many_pictures_have_is_no_evidence_and_neither_is_a_short_one(tmp_path):
    two = [drawing(1), drawing(2)]
    write_benchmark(tmp_path / "sets", [*two, drawing(3)], [LONG, LONG, "How many?"])
    settings = write_training(tmp_path / "own", [drawing(7), drawing(8)], [LONG, "How many?"])
    assert matches(settings, tmp_path / "sets")[0] == set()
    write_benchmark(tmp_path / "one", [drawing(1)], [LONG])
    settings = write_training(tmp_path / "own2", [drawing(7), drawing(8)], [LONG, LONG])
    assert matches(settings, tmp_path / "one")[0] == set()


def test_pictures_of_one_colour_match_nothing(tmp_path):
    white = Image.new("RGB", (40, 40), "white")
    write_benchmark(tmp_path / "sets", [white], ["Which one?"])
    settings = write_training(tmp_path / "own", [white], ["What?"])
    assert matches(settings, tmp_path / "sets")[0] == set()


def test_a_row_of_a_benchmark_without_its_picture_is_counted(tmp_path):
    write_benchmark(tmp_path / "sets", [drawing(1), drawing(2)], ["Which one?", "Which two?"])
    (tmp_path / "sets/mmstar/0.png").unlink()
    settings = write_training(tmp_path / "own", [drawing(7)], ["What?"])
    result = matches(settings, tmp_path / "sets")[1]
    assert result.unreadable == 1
    assert "1 rows cannot be read" in result.summary()


def test_numbers_and_signs_of_a_question_stay():
    keys = {question_key(f"Find all values of x for which {e} holds.") for e in
            ("x+1=2", "x-1=2", "x+1=3", "x^2=2")}  # fmt: skip
    assert len(keys) == 4
    assert question_key("How large is x?") == ""


def test_the_template_and_its_options_are_taken_off_a_question(tmp_path):
    settings = write_training(tmp_path / "own", [drawing(7)], [LONG])
    data = DataSettings(
        train=settings.train,
        template="Look. {prompt}\n{choices}\nAnswer:",
        columns=Columns(answer=""),
    )
    prompt = load_rows(data.train, data, None).prompts[0]
    assert question_of(prompt, data.template) == LONG


def test_the_pictures_of_a_set_are_decoded_once_for_all_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTILL_CACHE", str(tmp_path / "cache"))
    settings = write_training(tmp_path / "own", [drawing(1)], ["What?"])
    images = load_rows(settings.train, settings, None).prompts[0].images
    first = PictureKeys()
    keys = first.keys_of(images)
    assert first.cache.is_changed
    first.cache.save()
    later = PictureKeys()
    assert later.keys_of(images) == keys != []
    assert not later.cache.is_changed


def test_a_folder_without_benchmarks_is_refused(tmp_path):
    data = DataSettings(benchmarks=str(tmp_path))
    with pytest.raises(DataError, match="holds no benchmark"):
        compare_with_benchmarks(data, [], is_drawn=False)


def test_a_picture_key_does_not_depend_on_the_file(tmp_path):
    buffer = io.BytesIO()
    drawing(3).save(buffer, "PNG", optimize=True)
    assert picture_key(Image.open(buffer)).pixels == picture_key(drawing(3)).pixels


@pytest.mark.slow
def test_real_training_rows_match_no_real_benchmark_and_a_benchmark_matches_itself(shared_data):
    """No false positive among rows of different sets; every row with a picture finds itself."""
    source = shared_data / "puzzlevqa" / "data.jsonl"
    settings = DataSettings(train=str(source), columns=Columns(answer=""))
    assert matches(settings, shared_data)[0] == set()
    source = shared_data / "wemath" / "data.jsonl"
    settings = DataSettings(train=str(source), columns=Columns(answer=""))
    prompts = load_rows(settings.train, settings, None).prompts
    result = find_contamination(prompts, settings, shared_data)
    assert {match.benchmark for match in result.matches} == {"wemath"}
    assert len(result.matches) == len(prompts)
    assert {match.how for match in result.matches} <= {"row", "picture"}


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_benchmark_of_the_hub_is_refused_as_training_data(name):
    for source in BENCHMARKS[name].hub_sources:
        assert bool(reason_for_evaluation_only(source)) != BENCHMARKS[name].may_train


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        ("hf:AI4Math/MathVista[testmini]", True),
        ("hf:ai4math/mathvista[train]", True),
        ("hf:MMMU/MMMU:Art[validation]", True),
        ("hf:MMMU/MMMU:Art[dev]", False),
        ("hf:array/SAT[train]", False),
        ("hf:array/SAT", False),
        ("hf:array/SAT[train+test]", True),
        ("hf:neulab/VisualPuzzles", True),
        ("hf:hiyouga/geometry3k[train]", False),
        ("hf:hiyouga/geometry3k[validation]", False),
        ("hf:someone/else[test]", False),
        ("diagrams", False),
        ("nowhere.jsonl", False),
    ],
)
def test_a_source_of_the_hub_is_refused_by_name_and_split(source, is_refused):
    assert bool(reason_for_evaluation_only(source)) == is_refused


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("License: MIT. Evaluation use only.", True),
        ("It must not be used for training.", True),
        ("Using it as a training set is prohibited.", True),
        ("Only for evaluation!", True),
        ("Training data, evaluated on other rows. Not only for evaluation of students.", False),
        ("A training set.", False),
    ],
)
def test_a_page_next_to_a_file_can_forbid_training(text, is_refused, tmp_path):
    (tmp_path / "set/data").mkdir(parents=True)
    (tmp_path / "set/README.md").write_text(text)
    (tmp_path / "set/data/train.jsonl").write_text("{}\n")
    assert bool(reason_for_evaluation_only(str(tmp_path / "set/data/train.jsonl"))) == is_refused
    (tmp_path / "set/data/SOURCE.md").write_text("Free for all.")
    assert not reason_for_evaluation_only(str(tmp_path / "set/data/train.jsonl"))


def test_a_file_of_the_hubs_cache_is_its_data_set(tmp_path):
    folder = tmp_path / "hub/datasets--AI4Math--MathVista/snapshots/1/data"
    folder.mkdir(parents=True)
    (folder / "testmini-00000.parquet").write_bytes(b"")
    reason = reason_for_evaluation_only(str(folder / "testmini-00000.parquet"))
    assert "benchmark mathvista" in reason


def test_an_allowed_set_is_named_with_its_reason_and_a_refused_one_with_its_key():
    source = "hf:AI4Math/MathVista[testmini]"
    allowed = find_evaluation_sets(DataSettings(train=source, evaluation_only="allow"))
    assert list(allowed) == [source]
    with pytest.raises(DataError, match="D312") as caught:
        find_evaluation_sets(DataSettings(train=source))
    assert "data.evaluation_only=allow" in caught.value.fix
