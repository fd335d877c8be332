"""Pictures and texts of rows in other formats are read or refused, never dropped in silence."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from vistill.data.loading import load_rows
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    return tmp_path


def load_one(folder, row, columns=None):
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    settings = DataSettings(
        train=str(path), columns=columns or Columns(), text_only="plain", on_bad_row="stop"
    )
    data = load_rows(str(path), settings, None)
    return data.prompts[0], data.notes


def shown(prompt):
    names = {(255, 0, 0): "<a>", (0, 0, 255): "<b>"}
    return "".join(
        part if isinstance(part, str) else names[part.load().getpixel((0, 0))]
        for part in prompt.parts
    )


def user(content):
    return {"role": "user", "content": content}


TURNS = [user("<image>Q")]
TALK = [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "4"}]


@pytest.mark.parametrize(
    ("row", "code", "word"),
    [
        ({"image": "a.png", "images": ["b.png"], "conversations": TALK}, "D105", "image"),
        ({"image": "a.png", "image2": "b.png", "conversations": TALK}, "D105", "image2"),
        ({"instruction": "Do", "output": "4", "images": ["a.png"], "history": [["a", "b"]]},
         "D105", "history"),
        ({"answer": "4", "question": "Q", "images": ["a.png"], "history": [["a", "b"]]},
         "D105", "history"),
        ({"messages": TURNS, "images": ["a.png"], "history": "[['a', 'b']]"}, "D105", "history"),
        ({"prompt": TURNS, "images": ["a.png"], "answer": "9",
          "reward_model": {"ground_truth": "4"}}, "D105", "reward_model"),
        ({"question": "Q", "images": ["a.png"], "answer": "9",
          "reward_model": '{"ground_truth": "4"}'}, "D105", "reward_model"),
        ({"instruction": 7, "input": ["x"], "output": "4", "images": ["a.png"]}, "D104", "7"),
        ({"instruction": "Do", "input": {"x": 1}, "output": "4", "images": ["a.png"]},
         "D104", "x"),
        ({"prompt": [user("Q"), {"role": "assistant", "content": "4"}], "completion": "5",
          "images": ["a.png"]}, "D105", "completion"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_is_refused(folder, row, code, word):
    with pytest.raises(DataError) as caught:
        load_one(folder, row)
    assert caught.value.code == code
    assert word in caught.value.what


def test_equal_columns_are_no_contradiction(folder):
    row = {"image": "a.png", "images": ["a.png"], "question": "Q", "answer": "4",
           "reward_model": {"ground_truth": "4"}, "history": []}  # fmt: skip
    prompt, _ = load_one(folder, row)
    assert (shown(prompt), prompt.answer) == ("<a>Q", "4")


def test_a_column_of_the_recipe_settles_it(folder):
    row = {"image": "a.png", "images": ["b.png"], "question": "Q", "answer": "9",
           "reward_model": {"ground_truth": "4"}}  # fmt: skip
    columns = Columns(images="image", answer="reward_model.ground_truth")
    prompt, _ = load_one(folder, row, columns)
    assert (shown(prompt), prompt.answer) == ("<a>Q", "4")


@pytest.mark.parametrize("indices", [(0, 1), (1, 0), (None, None)])
def test_the_index_of_an_image_part_selects_the_image(folder, indices):
    parts = [{"type": "text", "text": "Q", "index": None}]
    parts += [{"type": "image", "text": None, "index": index} for index in indices]
    prompt, _ = load_one(folder, {"messages": [user(parts)], "images": ["a.png", "b.png"]})
    assert shown(prompt) == ("Q<b><a>" if indices == (1, 0) else "Q<a><b>")


@pytest.mark.parametrize("completion", ["4", [{"role": "assistant", "content": "4"}]])
def test_the_completion_of_a_prompt_is_its_response(folder, completion):
    row = {"prompt": TURNS, "completion": completion, "images": ["a.png"]}
    prompt, notes = load_one(folder, row)
    assert prompt.response == "4"
    assert "completion" in notes[0]


def test_numbered_columns_of_images_are_read_in_order(folder):
    row = {"question": "<image 2> or <image 1>?", "image_2": "b.png", "image_1": "a.png",
           "image_3": None, "answer": "4"}  # fmt: skip
    prompt, notes = load_one(folder, row)
    assert shown(prompt) == "<b> or <a>?"
    assert "image_1, image_2, image_3" in notes[0]
    named, _ = load_one(folder, row | {"question": "<image>?"}, Columns(images="image_2"))
    assert shown(named) == "<b>?"
    named, _ = load_one(folder, row, Columns(images="image_2, image_1"))
    assert shown(named) == "<a> or <b>?"


def test_numbered_columns_are_read_where_rows_must_have_an_image(folder):
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"question": "Q", "image_1": "a.png", "answer": "4"}))
    (prompt,) = load_rows(str(path), DataSettings(train=str(path)), None).prompts
    assert shown(prompt) == "<a>Q"


OPTIONS = {"question": "Q", "image": "a.png", "A": "cat", "B": 40, "C": "dog", "D": None}


def test_one_column_per_option_is_read_where_the_gold_answers_are_their_letters(folder):
    columns = Columns(images="image")
    prompt, notes = load_one(folder, OPTIONS | {"answer": "B"}, columns)
    assert (prompt.choices, prompt.answer) == (("cat", "40", "dog"), "B")
    assert "options: one column each, A, B, C, D" in notes[0]
    prompt, _ = load_one(folder, OPTIONS | {"answer": "40"}, columns)
    assert (prompt.choices, prompt.answer) == ((), "40")
    prompt, _ = load_one(folder, OPTIONS | {"answer": "40"}, replace(columns, choices="A,B,C,D"))
    assert (prompt.choices, prompt.answer) == (("cat", "40", "dog"), "40")


def test_an_empty_option_between_others_is_refused(folder):
    with pytest.raises(DataError) as caught:
        load_one(
            folder,
            OPTIONS | {"B": None, "answer": "C"},
            Columns("question", "image", choices="A,B,C"),
        )
    assert caught.value.code == "D104"


def test_a_missing_column_of_a_group_is_named_with_those_that_there_are(folder):
    with pytest.raises(DataError) as caught:
        load_one(folder, OPTIONS | {"answer": "B"}, Columns("question", "image", choices="A,B,E"))
    assert (caught.value.code, caught.value.fix) == ("D101", "data.columns.choices=A,B")


NAMES = {
    "bare": ("A", "B", "C"),
    "option letters": ("option_a", "option_b", "option_c"),
    "joined": ("optionA", "optionB", "optionC"),
    "words": ("Option A", "Option B", "Option C"),
    "numbers": ("choice_1", "choice_2", "choice_3"),
    "from 0": ("option0", "option1", "option2"),
    "medical": ("opa", "opb", "opc"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("gold", ["B", 1, "1"])
def test_one_column_per_option_is_read_for_letters_and_indices(folder, names, gold):
    cells = dict(zip(names, ("cat", "cow", "dog"), strict=True))
    row = {"question": "Q", "image": "a.png", **cells, "answer": gold}
    prompt, notes = load_one(folder, row, Columns(images="image"))
    assert (prompt.choices, prompt.answer) == (("cat", "cow", "dog"), "B")
    assert f"options: one column each, {', '.join(names)}" in notes[0]


def test_the_text_of_an_option_names_it_in_columns_called_options(folder):
    row = {"question": "Q", "image": "a.png", "option_a": "cat", "option_b": "cow"}
    prompt, _ = load_one(folder, row | {"answer": "cow"}, Columns(images="image"))
    assert (prompt.choices, prompt.answer) == (("cat", "cow"), "cow")


@pytest.mark.parametrize(
    ("cells", "answer"), [({"A": "3", "B": "4"}, 1), ({"option_a": "cat", "option_b": "cow"}, "x")]
)
def test_columns_like_options_that_are_not_read_are_named(folder, cells, answer):
    row = {"question": "Q", "image": "a.png", **cells, "answer": answer}
    prompt, notes = load_one(folder, row, Columns(images="image"))
    assert prompt.choices == ()
    names = ",".join(cells)
    assert f"look like options and are not read: data.columns.choices={names}" in notes[0]
