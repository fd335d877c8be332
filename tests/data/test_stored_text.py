"""Golds and options as text of lists and mappings; linear time of every reader of row texts."""

import time
from types import SimpleNamespace

import pytest

from vistill.data.gold import is_quantity, read_gold, read_options
from vistill.data.images import image_bytes
from vistill.data.layouts import text_and_images
from vistill.data.placeholders import HTML_IMAGE, place_images
from vistill.data.stored_text import collection_in_text
from vistill.errors import DataError

FOUR = ("30", "40", "60", "80")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{1, 2, 3}", "{1, 2, 3}"), ("{5}", "{5}"), ("{a} + b", "{a} + b"), ("{}", "{}"),
        ("{x | x > 2}", "{x | x > 2}"), ("}", "}"), ("{", "{"),
        ("[1, 2]", "[1, 2]"), ("[0, 1)", "[0, 1)"), ("(1, 2)", "(1, 2)"), ("[7]", "[7]"),
        ("[[1, 2], [3, 4]]", "[[1, 2], [3, 4]]"), ("[a, b]", "[a, b]"), ("[1 2]", "[1 2]"),
        ("['24/7', '3.429']", ("24/7", "3.429")), ('["7","seven"]', ("7", "seven")),
        ("['7']", "7"), ("['7' 'seven']", ("7", "seven")), ("('7', '8')", ("7", "8")),
        ('{"answer": "7"}', "7"), ("{'ground_truth': ['7', 8]}", ("7", "8")),
        ("array(['7'], dtype=object)", "7"), ("array([7, 8])", "array([7, 8])"),
        ("[null]", None), ("[None]", None), ("[nan]", None), ("[]", None), ("[None, '7']", "7"),
        (["['7']"], "7"), ("none", "none"),
    ],
)  # fmt: skip
def test_a_list_or_mapping_as_text_is_read_and_mathematics_stays_text(value, expected):
    assert read_gold(value, (), "row 1") == expected


@pytest.mark.parametrize("value", ["None", "nan", "NULL", '{"a": 1, "b": "x"}', "['7", "['it's']"])
def test_a_text_that_may_be_missing_or_damaged_is_refused(value):
    with pytest.raises(DataError) as caught:
        read_gold(value, (), "row 1")
    assert caught.value.code == "D104"


def test_a_text_that_is_an_option_is_no_list_and_no_missing_value():
    assert read_gold("None", ("One", "None"), "row") == "None"
    assert read_gold("['a']", ("['a']", "['b']"), "row") == "['a']"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("['30' '40']", ("30", "40")), ("[\"it's\" 'b']", ("it's", "b")), ("[30 40]", ("30", "40")),
        ("['a'\n 'b']", ("a", "b")), ("array(['a', 'b'], dtype=object)", ("a", "b")),
        ('{"A": "30", "B": "40"}', ("30", "40")), ("['a, ' 'b']", ("a, ", "b")),
        ("['3', nan]", ("3",)),
    ],
)  # fmt: skip
def test_options_as_text_of_a_list_keep_their_number(value, expected):
    assert read_options(value, "row 1") == expected


def refused_or_read(read, *args):
    try:
        return read(*args)
    except DataError:
        return None


#: Each takes 100,000 characters in linear time.
READERS = {
    "gold": lambda text: refused_or_read(read_gold, text, (), ""),
    "gold with options": lambda text: refused_or_read(read_gold, text, FOUR, ""),
    "options": lambda text: refused_or_read(read_options, text, ""),
    "quantity": is_quantity,
    "collection": collection_in_text,
    "placeholders": lambda text: refused_or_read(
        place_images, text, [SimpleNamespace(name="a")], ""
    ),
    "HTML": HTML_IMAGE.search,
    "turn": lambda text: refused_or_read(
        text_and_images, {"content": [{"type": "text", "text": text}, {"type": "image"}]}, ""
    ),
    "base64": lambda text: refused_or_read(image_bytes, text, ""),
}
#: A head, what is repeated, and an end that does not match.
TEXTS = [
    ("A", "\n", "!"), ("A", "\n\n", "see figure"), ("", "A\n\n\n", "?"), ("A", " ", "!"),
    ("", "A and ", "!"), ("1", ".", "x1"), ("1", " ", "x1"), ("1", "1", "x1"), ("$", " ", "1x1"),
    ("<image", " ", "x"), ("<image", "1", "x"), ("<image", "1", ">"), ("<img", " ", "x"),
    ("<", " ", ""),
    ("[", "[1],", "]"), ("{", "{1:", "}"),
    ("", "<image ", ""), ("", "< ", ""), ("[", "'a' ", "]"), ("[", "\\'", "]"), ("[", "[", "]"),
    ("[", "{", "]"), ("{", "'a':", "}"), ("", "\\boxed{", ""), ("\\boxed{", "{", ""),
    ("", "<answer>", "</answer>"), ("", "#### ", ""), ("iVBORw0KGgo", " ", "!"), ("(", "(", ")"),
    ("[1", "+1", "]"), ("['", "\\", "']"), ("[", "1 ", "]"), ("[", "-", "]"),
]  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_texts_of_rows_are_read_in_linear_time(name):
    for head, part, end in TEXTS:
        text = head + part * (100_000 // len(part)) + end
        start = time.process_time()
        READERS[name](text)
        assert time.process_time() - start < 1.0, (head, part, end)


def test_many_parts_of_a_turn_are_read_in_linear_time():
    parts = [{"type": "text", "text": "a"}] * 20_000
    start = time.process_time()
    text_and_images({"content": parts}, "")
    assert time.process_time() - start < 1.0
