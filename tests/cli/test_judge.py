"""`vistill judge FILE`."""

import json

import pytest

from vistill.cli.main import entry


def run(capsys, *words):
    """Exit code, the verdicts, and what the terminal shows."""
    try:
        entry(["judge", *map(str, words)])
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_each_row_gets_a_verdict_with_its_reasons(tmp_path, capsys):
    file = write(
        tmp_path / "replies with spaces é.jsonl",
        {"id": "a", "reply": "The answer is B.", "gold": "B", "choices": ["30", "40"]},
        {"id": "b", "reply": "\\boxed{12 km}", "gold": "12 m", "correct": False},
        {"reply": "no idea", "gold": ["3", "4"], "choices": None, "correct": True},
        {"reply": "104", "gold": 100, "checker": "relaxed"},
    )
    code, verdicts, err = run(capsys, file)
    assert code == 0
    assert [v["correct"] for v in verdicts] == [True, False, False, True]
    assert [v["checker"] for v in verdicts] == ["choice", "math", "math", "relaxed"]
    assert verdicts[0] == {
        "id": "a",
        "gold": "B",
        "correct": True,
        "extracted": "B",
        "rule": "phrase",
        "position": [14, 15],
        "reply_form": "B",
        "gold_form": "B",
        "reason": "",
        "unparsed": False,
        "checker": "choice",
    }
    assert verdicts[1]["reason"]
    assert verdicts[2]["unparsed"]
    assert "4 replies: 2 correct, 1 without an answer; 1 of 2 as the file expects" in err


def test_options_choose_checker_and_commitment(tmp_path, capsys):
    file = write(tmp_path / "r.jsonl", {"reply": "\\boxed{3} \\boxed{7}", "gold": "3"})
    assert run(capsys, file)[1][0]["extracted"] == "7"
    assert run(capsys, file, "--take", "first")[1][0]["correct"]
    assert run(capsys, file, "--checker", "yes_no")[1][0]["checker"] == "yes_no"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("not json", "D102"),
        ("[1]", "D102"),
        ('{"gold": "1"}', "D104"),
        ('{"reply": "1"}', "D104"),
        ('{"reply": "1", "gold": []}', "D104"),
        ('{"reply": "1", "gold": "B", "chioces": ["1", "2"]}', "D104"),
        ('{"response": "1", "gold": "1"}', "D104"),
        ('{"reply": "1", "gold": [null]}', "D104"),
        ('{"reply": "1", "gold": NaN}', "D104"),
        ('{"reply": "1", "gold": Infinity}', "D104"),
        ('{"reply": "1", "gold": {"a": "1"}}', "D104"),
        ('{"reply": "1", "gold": "A", "choices": [null, "40"]}', "D104"),
        ('{"reply": "1", "gold": "A", "choices": 5}', "D104"),
        ('{"reply": "1", "gold": "1", "checker": 5}', "D104"),
        ('{"reply": "1", "gold": "1", "take": "middle"}', "D104"),
        ('{"reply": "1", "gold": "1", "checker": "unknown"}', "C105"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(tmp_path, capsys, text, code):
    file = tmp_path / "r.jsonl"
    file.write_text(text)
    status, _, err = run(capsys, file)
    assert status != 0
    assert f"error[{code}]" in err
    assert code == "D102" or "r.jsonl:1" in err


def test_gold_answers_and_options_are_read_as_those_of_rows(tmp_path, capsys):
    file = write(
        tmp_path / "r.jsonl",
        {"reply": "yes", "gold": True},
        {"reply": "7", "gold": 7.0, "take": None, "checker": None},
        {"reply": "5", "gold": "so it is\n#### 5"},
        {"reply": "5", "gold": "\\boxed{5}"},
        {"reply": "5", "gold": {"ground_truth": ["4", 5]}},
        {"reply": "B", "gold": 1, "choices": ["x", "y"]},
        {"reply": "B", "gold": "B", "choices": {"B": "40", "A": "30"}},
        {"reply": "B", "gold": "B. 40", "choices": ["30", "40", None]},
        {"reply": "A", "gold": 1, "choices": ["x", "y"]},
    )
    code, verdicts, _ = run(capsys, file)
    assert code == 0
    assert [v["correct"] for v in verdicts] == [True] * 8 + [False]


def test_a_number_is_a_value_where_one_of_the_file_is_no_index(tmp_path, capsys):
    row = {"reply": "1", "gold": 1, "choices": ["1", "0"]}
    assert run(capsys, write(tmp_path / "one.jsonl", row))[0] != 0
    file = write(tmp_path / "two.jsonl", row, {"reply": "7", "gold": 7, "choices": ["7", "8"]})
    code, verdicts, _ = run(capsys, file)
    assert code == 0
    assert [v["correct"] for v in verdicts] == [True, True]


@pytest.mark.parametrize(
    ("words", "code"), [(("--take", "lats"), "C002"), (("--checker", "maht"), "C105")]
)
def test_an_unknown_option_is_refused(tmp_path, capsys, words, code):
    status, _, err = run(capsys, write(tmp_path / "r.jsonl"), *words)
    assert status != 0
    assert f"error[{code}]" in err


def test_a_missing_file_is_named(tmp_path, capsys):
    status, _, err = run(capsys, tmp_path / "none.jsonl")
    assert status == 3
    assert "error[D102]" in err


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.csv", "reply,gold\n")]
)
def test_a_file_without_replies_is_refused(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    code, verdicts, err = run(capsys, tmp_path / name)
    assert (code, verdicts) == (3, [])
    assert "D102" in err


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"prediction": "B", "gold": "B"}, "rename prediction to reply"),
        ({"Reply": "B", "Gold": "B"}, "rename Reply to reply"),
        ({"reply": "B", "answer": "B"}, "rename answer to gold"),
        ({"reply": ["B"], "gold": "B"}, "`reply` is not text: ['B']"),
    ],
)
def test_a_row_with_other_keys_is_answered_with_the_right_ones(tmp_path, capsys, row, hint):
    code, _, err = run(capsys, write(tmp_path / "a.jsonl", row))
    assert code == 3
    assert hint in err


def test_decimal_commas_are_counted(tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", {"reply": "3.5", "gold": "3,5"}, {"reply": "3", "gold": "3"})
    assert "1 gold answers look like decimals with a comma" in run(capsys, file)[2]
