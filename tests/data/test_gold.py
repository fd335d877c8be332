"""Gold answers and options as data sets store them: read by convention, or D104."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pytest
from PIL import Image

from vistill.answers.values import has_decimal_comma
from vistill.data.gold import read_gold, read_options
from vistill.data.loading import load_rows
from vistill.data.option_indices import numbers_are_values
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError
from vistill.types import Prompt

FOUR = ("cat", "40", "a bird", "5 cm")


def gold_error(value, choices=()):
    with pytest.raises(DataError) as caught:
        read_gold(value, choices, "row 1")
    assert caught.value.code == "D104"
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", "7"), ("\\frac{1}{2}", "\\frac{1}{2}"), (" x ", " x "),
        (7, "7"), (7.0, "7"), (0.5, "0.5"), (1e300, "1e+300"), (-3.0, "-3"),
        (float(np.float32(0.1)), "0.1"), (0.1, "0.1"), (float(np.float32(1 / 3)), "0.33333334"),
        (float(np.float16(0.1)), "0.1"), (0.25, "0.25"), (1 / 3, "0.3333333333333333"),
        (np.float32(2.7), "2.7"), (np.int64(7), "7"), (np.array(["7", "8"]), ("7", "8")),
        (Decimal("7.50"), "7.50"), (Decimal("1E+2"), "100"),
        (None, None), (float("nan"), None), ("", None), ("  ", None), ([], None), ([None], None),
        (["7"], "7"), (["7", "8"], ("7", "8")), (["7", "7"], "7"), (("a", None, "b"), ("a", "b")),
        ({"ground_truth": "7", "style": "rule"}, "7"), ({"ground_truth": ["7", 8]}, ("7", "8")),
        ({"answer": 3}, "3"), ([{"answer": "net"}, {"answer": "net"}, {"answer": "nets"}],
                               ("net", "net", "nets")),
        ({"text": ["Paris"], "answer_start": [3]}, "Paris"),
        (True, ("Yes", "True")), (False, ("No", "False")),
        ("<answer> 7 </answer>", "7"), ("\\boxed{40}", "40"), ("$\\boxed{40}$.", "40"),
        ("3 + 4 = 7\n#### 7", "7"), ("a #### b", "a #### b"),
        ("So x = 7 and \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"), ("\\boxed{1} no, \\boxed{2}", "2"),
        ("<think>7?</think><answer>\\boxed{7}</answer>\n", "7"), ("\\boxed{7", "\\boxed{7"),
        ("3 + 5 = \\boxed { 8 } \\boxed { 7 }", "3 + 5 = \\boxed { 8 } \\boxed { 7 }"),
        ("<answer></answer>", "<answer></answer>"),
    ],
)  # fmt: skip
def test_a_gold_answer_is_read_by_convention(value, expected):
    assert read_gold(value, (), "row 1") == expected


@pytest.mark.parametrize(
    "value",
    [b"7", {"style": "rule"}, float("inf"), datetime.date(2026, 1, 1), [b"7"], 1j, object()],
)
def test_a_gold_answer_without_a_convention_is_refused(value):
    gold_error(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), (" D ", "D"),
        ("B. 40", "B"), ("(B) 40", "B"), ("B) 40", "B"), ("b: 40", "B"), ("A - cat", "A"),
        ("40", "40"), ("a bird", "a bird"), ("A bird", "A bird"), ("5 cm", "5 cm"),
        (0, "A"), (3, "D"), ("2", "C"), ([2], "C"), (np.int64(1), "B"), (1.0, "B"),
        ("A, C", "A, C"), ("AC is wrong", "AC is wrong"), (["B", "40"], ("B", "40")),
        (["B", "B. 40"], "B"),
    ],
)  # fmt: skip
def test_with_options_a_gold_answer_is_a_letter_an_index_or_an_option(value, expected):
    assert read_gold(value, FOUR, "row 1") == expected


@pytest.mark.parametrize(
    ("value", "choices", "word"),
    [
        ("E", FOUR, "no option E"), ("e", FOUR, "no option E"), ("A, F", FOUR, "no option F"),
        (4, FOUR, "no option of that index"), ("9", FOUR, "counted from 0"),
        ("B. cat", FOUR, "option A"), ("A", ("C", "A", "B"), "by its text it is option B"),
        (3, ("2", "3", "4", "5"), "index of option D"), (["A", "C"], FOUR, "any of them"),
    ],
)  # fmt: skip
def test_a_gold_answer_that_names_no_option_or_two_is_refused(value, choices, word):
    assert word in gold_error(value, choices).why


def test_numbers_are_values_if_one_of_them_is_no_index_of_options_that_are_numbers():
    options = [("2", "3", "4", "5"), ("10 cm", "20 cm")]
    assert numbers_are_values([3, 20], options)
    assert not numbers_are_values([3, 1], options)
    assert not numbers_are_values([9], [("cat", "dog")])
    assert read_gold(3, options[0], "row", numbers_are_values=True) == "3"
    assert read_gold(9, options[0], "row", numbers_are_values=True) == "9"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["3", "4"], ("3", "4")), ([3, 4.0, 0.5], ("3", "4", "0.5")), (None, ()), ("", ()),
        ([], ()), (float("nan"), ()), (["3", "4", None, None], ("3", "4")),
        (["3", float("nan")], ("3",)), ([None, None], ()),
        ("['3', '4']", ("3", "4")), ('["3", 4]', ("3", "4")), ("[]", ()),
        ({"A": "3", "B": "4"}, ("3", "4")), ({"B": "4", "A": "3"}, ("3", "4")),
        ({"text": ["3", "4"], "label": ["A", "B"]}, ("3", "4")),
        ({"text": ["3", "4"], "label": [1, 2]}, ("3", "4")),
        (np.array(["3", "4"]), ("3", "4")), ([np.float32(0.1)], ("0.1",)),
        ([f"option {n}" for n in range(26)], tuple(f"option {n}" for n in range(26))),
    ],
)  # fmt: skip
def test_options_are_read_by_convention(value, expected):
    assert read_options(value, "row 1") == expected


@pytest.mark.parametrize(
    "value",
    [
        5, "AB", ["3", None, "4"], ["", "4"], [f"{n}" for n in range(27)], [["3"], ["4"]],
        [{"text": "3"}], {"A": "3", "C": "4"}, {"text": ["3", "4"], "label": ["B", "A"]}, b"ab",
    ],
)  # fmt: skip
def test_options_without_a_convention_are_refused(value):
    with pytest.raises(DataError) as caught:
        read_options(value, "row 1")
    assert caught.value.code == "D104"


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "0.png")
    return tmp_path


def load(folder, rows, **settings):
    path = folder / "data.jsonl"
    lines = ({"question": "What?", "images": ["0.png"], "answer": "1", **row} for row in rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_rows(str(path), DataSettings(train=str(path), **settings), None)


def test_conventions_that_change_a_gold_answer_are_counted_for_the_user(folder):
    rows = [{"answer": 0, "o": ["x", "y"]}, {"answer": ["p", "q"]}, {"answer": ""}, {"answer": 1}]
    data = load(folder, rows, columns=Columns(choices="o"), template="{prompt} {choices}")
    assert [p.answer for p in data.prompts] == ["A", ("p", "q"), None, "1"]
    assert [p.golds for p in data.prompts] == [("A",), ("p", "q"), (), ("1",)]
    notes = "\n".join(data.notes)
    assert "1 gold answers are indices of options, counted from 0" in notes
    assert "1 rows have several gold answers: any of them is right" in notes
    assert "1 rows have no gold answer" in notes


def test_a_column_inside_a_mapping_is_named_with_a_dot(folder):
    rows = [{"extra": {"gold": "7"}}, {"extra": {"gold": "8"}}]
    data = load(folder, rows, columns=Columns(answer="extra.gold"))
    assert [p.answer for p in data.prompts] == ["7", "8"]


@pytest.mark.parametrize(
    ("change", "settings", "name"),
    [
        ({"answer": "7<|im_end|>"}, {}, "answer"),
        ({"answer": ["7", "<|eot_id|>"]}, {}, "answer"),
        ({"r": "It is 7.<|endoftext|>"}, {"columns": Columns(response="r")}, "response"),
        ({"question": "Is it <\uff5cend\u2581of\u2581sentence\uff5c>?"}, {}, "question"),
    ],
)  # fmt: skip
def test_a_special_token_in_a_text_of_a_row_is_refused(folder, change, settings, name):
    with pytest.raises(DataError) as caught:
        load(folder, [change], **settings)
    assert caught.value.code == "D103"
    assert f"the {name} contains the special token" in caught.value.why


def test_a_special_token_in_a_text_of_the_recipe_is_refused_once(folder):
    with pytest.raises(DataError) as caught:
        load(folder, [{}], system="You are kind.<|im_end|>")
    assert caught.value.code == "D103"
    assert "data.system" in caught.value.what


def test_a_response_template_takes_the_first_of_several_gold_answers(folder):
    data = load(folder, [{"answer": ["7", "seven"]}], response_template="It is {answer}.")
    assert data.prompts[0].response == "It is 7."


def test_a_row_without_several_gold_answers_keeps_its_id(folder):
    # The id keys the sampling noise, so it never changes.
    Image.new("L", (2, 2), 7).save(folder / "0.bmp")
    assert load(folder, [{"images": ["0.bmp"]}]).prompts[0].id == "9da2028a546cf6e9"


@pytest.mark.parametrize("value", [["a", "b"], {"text": "a"}, 7, True])
def test_a_response_that_is_no_text_is_refused(folder, value):
    with pytest.raises(DataError) as caught:
        load(folder, [{"r": value}], columns=Columns(response="r"))
    assert caught.value.code == "D104"


def test_a_response_may_be_the_turn_of_an_assistant_and_an_empty_id_is_none(folder):
    turn = [{"role": "assistant", "content": "It is 7."}]
    rows = [{"r": turn, "k": float("nan")}, {"r": None, "k": None, "question": "Other?"}]
    prompts = load(folder, rows, columns=Columns(response="r", id="k")).prompts
    assert [p.response for p in prompts] == ["It is 7.", None]
    assert len({p.id for p in prompts} | {"nan", "None"}) == 4


def test_golds_of_a_prompt():
    assert Prompt("a", ("x",), answer="7").golds == ("7",)
    assert Prompt("a", ("x",)).golds == ()


def test_how_many_people_gave_an_answer_is_kept():
    people = ["red"] * 2 + ["dark red"] * 8
    assert read_gold(people, (), "row") == tuple(people)
    assert read_gold(["red"] * 10, (), "row") == "red"


def test_the_rows_of_a_maze_are_one_gold_answer():
    rows = ["_*_", "_#_", "_@_"]
    assert read_gold(rows, (), "row") == read_gold(str(rows), (), "row") == "_*_/_#_/_@_"
    assert read_gold(["_*_", "___"], (), "row") == ("_*_", "___")


def test_a_maze_stays_a_grid():
    maze = '[["@", "_"], ["#", "*"]]'
    assert read_gold(maze, (), "row") == maze


def test_ten_gold_answers_are_said_to_be_judged_by_the_rule_of_vqa(tmp_path):
    rows = [
        {"question": "?", "answer": ["red"] * 6 + ["blue"] * 4},
        {"question": "??", "answer": ["1", "2"]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(train=str(file), text_only="plain")
    notes = " ".join(load_rows(str(file), settings, None).notes)
    assert (
        "1 rows have 10 or more gold answers: the checker vqa gives the full score for 3" in notes
    )
    assert "1 rows have several gold answers: any of them is right" in notes


@pytest.mark.parametrize("text", ["3,5", "1.234,5", "-0,25", "0,125", "12,75 cm", "3,1415", "3,5%"])
def test_decimal_commas_are_seen(text):
    assert has_decimal_comma(text)


@pytest.mark.parametrize(
    "text", ["1,234", "3, 5", "1,2,3", "(3,5)", "A,B", "3.5", "12", "1,234,567"]
)
def test_thousands_and_lists_are_no_decimal_commas(text):
    assert not has_decimal_comma(text)


WORDS = ["red", "blue", "green", "yellow"]
HEIGHTS = ["30", "40", "50", "60"]


def load_indices(folder, golds, options=WORDS, **settings):
    rows = [{"answer": gold, "o": options, "question": f"{n}?"} for n, gold in enumerate(golds)]
    return load(folder, rows, columns=Columns(choices="o"), **settings)


@pytest.mark.parametrize("options", [WORDS, HEIGHTS])
@pytest.mark.parametrize("settings", [{}, {"max_bad_share": 0.5}, {"on_bad_row": "stop"}])
def test_indices_counted_from_1_are_refused_with_the_setting_that_reads_them(
    folder, options, settings
):
    golds = [n % 4 + 1 for n in range(24)]
    with pytest.raises(DataError) as caught:
        load_indices(folder, golds, options, **settings)
    assert (caught.value.code, caught.value.fix) == ("D104", "data.index_base=1")
    assert "count the options from 1" in caught.value.what
    data = load_indices(folder, golds, options, index_base=1, **settings)
    assert [p.answer for p in data.prompts] == list("ABCD") * 6
    assert "24 gold answers are indices of options, counted from 1" in "\n".join(data.notes)


def test_rows_that_all_name_the_last_option_count_from_1_too(folder):
    with pytest.raises(DataError) as caught:
        load_indices(folder, [4] * 24)
    assert caught.value.fix == "data.index_base=1"


def test_indices_counted_from_0_are_refused_where_the_recipe_says_1(folder):
    with pytest.raises(DataError) as caught:
        load_indices(folder, [0, 1, 2, 3], index_base=1)
    assert (caught.value.code, caught.value.fix) == ("D104", "data.index_base=0")


def test_one_index_too_many_does_not_change_the_base(folder):
    for settings in ({}, {"on_bad_row": "stop"}):
        with pytest.raises(DataError) as caught:
            load_indices(folder, [0, 1, 2, 3, 4], **settings)
        assert "no option of that index" in f"{caught.value.why}{caught.value.what}"
        assert "index_base" not in caught.value.fix


def test_values_among_options_that_are_numbers_are_no_indices(folder):
    golds = [1, 2, 3, 4, 1, 2]
    options = ["1 cm", "2 cm", "3 cm", "5 cm"]
    assert len(load_indices(folder, golds, options).prompts) == 6
    assert load_indices(folder, [4], HEIGHTS).prompts[0].answer == "4"


def test_many_indices_without_a_0_are_called_uncertain(folder):
    golds = [n % 3 + 1 for n in range(20)]
    notes = "\n".join(load_indices(folder, golds).notes)
    assert "20 gold answers are indices of options and none is 0" in notes
    assert "data.index_base=1" in notes
    for other, settings in [(golds[1:], {}), ([0, *golds], {}), (golds, {"index_base": 1})]:
        notes = "\n".join(load_indices(folder, other, **settings).notes)
        assert "none is 0" not in notes
