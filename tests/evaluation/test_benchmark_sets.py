"""Real sets with scripted replies of known score, and real replies with official verdicts."""

import json
import random
import re
from collections import defaultdict

import pytest
from answers_official import read

from vistill.answers.judge import right_answer
from vistill.answers.math_process import shared_judge
from vistill.evaluation.benchmarks import mmmu_official
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow, ScoredReply
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.scores import score_benchmark

#: By benchmark: its folder among the real data.
SETS = {
    "wemath": "wemath",
    "mathverse": "mathverse",
    "mathvision_testmini": "mathvision_testmini",
    "blink_jigsaw": "blink_jigsaw",
    "vlms_are_blind": "vlms_are_blind",
    "vsp_maze": "vsp_maze",
    "hallusionbench": "annotations_hallusionbench",
    "ocrbench": "annotations_ocrbench",
    "geometry3k": "geometry3k_sample",
}
#: Rows whose gold answer stands in any reply, so that a refusal would be right.
LETTERS = "ABCDEFGH"


def rows_of(shared_data, name):
    lines = (shared_data / SETS[name] / "data.jsonl").read_text().splitlines()
    return [BENCHMARKS[name].read_row(json.loads(line)) for line in lines]


def gold_of(name, row):
    gold = row.answer if isinstance(row.answer, str) else row.answer[0]
    return right_answer(next(iter(BENCHMARKS[name].rules)), gold)


def scored(name, rows, say):
    """The replies of a script with their verdicts."""
    replies = []
    for row in rows:
        rules = BENCHMARKS[name].rules.items()
        verdicts = {rule: judge(say(row), row, "last", shared_judge()) for rule, judge in rules}
        credit = {rule: float(verdict.correct) for rule, verdict in verdicts.items()}
        unparsed = next(iter(verdicts.values())).unparsed
        replies.append(ScoredReply(row, 0, credit, unparsed))
    return replies


def results_of(name, replies):
    values = score_benchmark(BENCHMARKS[name], replies)
    return {metric: score["value"] for metric, score in values["metrics"].items()}, values


@pytest.mark.more
@pytest.mark.parametrize("name", list(SETS))
def test_scripted_replies_have_their_known_score(shared_data, name):
    rows = rows_of(shared_data, name)
    headline = BENCHMARKS[name].headline
    right, facts = results_of(
        name, scored(name, rows, lambda row: f"So it is \\boxed{{{gold_of(name, row)}}}")
    )
    assert right[headline] == 1
    assert facts["questions"] == len(rows)
    refused, facts = results_of(name, scored(name, rows, lambda row: "I can't help with that."))
    assert refused[headline] == 0
    if name != "ocrbench":  # whose rule reads the whole reply
        assert facts["unparsed_share"] >= 0.98


#: Sets whose headline, or the metric named, is a mean over rows.
MEANS = {name: BENCHMARKS[name].headline for name in SETS} | {
    "wemath": "rows", "hallusionbench": "aAcc",
}  # fmt: skip


@pytest.mark.more
@pytest.mark.parametrize("name", list(MEANS))
def test_a_mix_of_right_replies_and_refusals_has_the_share_of_the_right_ones(shared_data, name):
    """Right or refused by a key, so the mean over rows is a count."""
    rows = [row for row in rows_of(shared_data, name) if BENCHMARKS[name].is_counted(row)]
    right = {row.id for row in rows if random.Random(row.id).random() < 0.4}

    def say(row):
        box = f"So it is \\boxed{{{gold_of(name, row)}}}"
        return box if row.id in right else "I can't help with that."

    values, _ = results_of(name, scored(name, rows, say))
    assert values[MEANS[name]] == pytest.approx(len(right) / len(rows))
    assert 0.25 < values[MEANS[name]] < 0.55 or len(rows) < 20


def next_letter(row):
    """Another option than the gold one."""
    place = LETTERS.index(row.answer) + 1
    return LETTERS[place % max(2, len(row.choices))]


@pytest.mark.more
@pytest.mark.parametrize("name", ["wemath", "blink_jigsaw"])
def test_wrong_letters_score_zero(shared_data, name):
    rows = rows_of(shared_data, name)
    values, facts = results_of(name, scored(name, rows, next_letter))
    assert values[BENCHMARKS[name].headline] == 0
    assert facts["unparsed_share"] == 0


def wrong_reply(name, row):
    """A reply in the form that is asked for, with another answer than the gold one."""
    gold = row.answer if isinstance(row.answer, str) else row.answer[0]
    if name == "vsp_maze":
        return "Action plan: U"
    if name == "hallusionbench":
        return {"1": "No.", "0": "Yes."}[gold]
    if gold in ("Yes", "No"):
        return {"Yes": "{No}", "No": "{Yes}"}[gold]
    if row.choices and gold in LETTERS:
        return f"Answer: {next_letter(row)}"
    return "\\boxed{987654321}"


def is_goal_above(row):
    """Whether the square above the start is the goal."""
    lines = row.answer.split("\n")
    place = next((y, line.index("@")) for y, line in enumerate(lines) if "@" in line)
    return place[0] > 0 and lines[place[0] - 1][place[1]] == "*"


@pytest.mark.more
@pytest.mark.parametrize("name", list(SETS))
def test_wrong_replies_score_zero_on_every_set(shared_data, name):
    """A step up is right in the mazes whose goal is above the start."""
    rows = rows_of(shared_data, name)
    values, facts = results_of(name, scored(name, rows, lambda row: wrong_reply(name, row)))
    right = sum(is_goal_above(row) for row in rows) if name == "vsp_maze" else 0
    assert values[BENCHMARKS[name].headline] == pytest.approx(right / len(rows))
    assert facts["unparsed_share"] <= 0.02


def letters_of(row):
    """The letters of a gold answer: `(B)` is B, and `C\\nD` is both; none of a formula."""
    is_letters = re.fullmatch(r"\(?[A-H]\)?(\s[A-H])*", row.answer)
    return re.findall(r"[A-H]", row.answer) if is_letters else []


@pytest.mark.more
@pytest.mark.parametrize("name", ["mathverse", "mathvision_testmini", "blink_jigsaw"])
def test_random_letters_score_the_rows_whose_letter_they_are(shared_data, name):
    rows = [row for row in rows_of(shared_data, name) if BENCHMARKS[name].is_counted(row)]
    letter = {row.id: random.Random(row.id).choice("ABCD"[: len(row.choices) or 4]) for row in rows}
    values, _ = results_of(name, scored(name, rows, lambda row: f"Answer: {letter[row.id]}"))
    right = sum(letters_of(row) == [letter[row.id]] for row in rows)
    assert right > 0
    assert values[BENCHMARKS[name].headline] == pytest.approx(right / len(rows))


def test_random_letters_on_wemath_equal_a_count_of_their_groups(shared_data):
    """The four outcomes, counted here from the letters alone."""
    rows = rows_of(shared_data, "wemath")
    letter = {row.id: random.Random(row.id).choice(LETTERS[: len(row.choices)]) for row in rows}
    values, _ = results_of("wemath", scored("wemath", rows, lambda row: letter[row.id]))
    groups = defaultdict(dict)
    for row in rows:
        groups[row.group][row.facts["step"]] = letter[row.id] == row.answer
    strict = loose = 0.0
    for right in groups.values():
        composite = right.pop("multi")
        if all(right.values()):
            strict, loose = strict + (1 if composite else 0.5), loose + (1 if composite else 0.5)
        elif composite:
            loose += any(right.values())
    assert values["strict"] == pytest.approx(strict / len(groups))
    assert values["loose"] == pytest.approx(loose / len(groups))
    assert 0 < values["mean"] < 0.5


#: Options of tasks of BLINK, for which the file has stand-ins or none.
BLINK_OPTIONS = {
    "Spatial Relation": ["yes", "no"],
    "Multi-view Reasoning": ["left", "right"],
    "Visual Similarity": ["the second image", "the third image"],
    "Art Style": ["the second image", "the third image"],
}
#: Parts that differ by more than 3 points. The authors let a language model choose an option for
#: replies that name none, such as `right (counter-clockwise)`.
FAR = {"blink": {"Multi-view Reasoning"}}
#: The rule whose verdicts the official ones are compared with.
OFFICIAL_RULES = {"mathvision": "official", "blink": "choice", "mmmu": "official"}


def part_of(record):
    """The task of BLINK, or the model."""
    return record.get("task", record["model"]).removesuffix("_concat").replace("_", " ")


def official_row(record):
    """The row of an official reply."""
    gold = record["gold"]
    return BenchmarkRow(
        id=f"{record['id']} {record['model']}",
        question="",
        answer=tuple(gold) if isinstance(gold, list) else gold,
        choices=tuple(BLINK_OPTIONS.get(part_of(record), record["choices"])),
        facts={"subject": "", "level": "", "task": record.get("task", ""), "type": ""},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OFFICIAL_RULES))
def test_official_replies_score_within_a_point_of_the_official_verdicts(shared_data, name):
    """Within 1 point per benchmark, and 3 points per task or model, with one task apart.

    MMMU has one model; its random guesses count as wrong.
    """
    judge = BENCHMARKS[name].rules[OFFICIAL_RULES[name]]
    ours, theirs = defaultdict(list), defaultdict(list)
    for record in read(shared_data / "official_replies", name):
        row = official_row(record)
        is_right = judge(record["reply"], row, "last", shared_judge()).correct
        official = record["official_correct"] and not record.get("official_guesses", False)
        for key in ("all", part_of(record)):
            ours[key].append(is_right)
            theirs[key].append(official)
    points = {
        key: 100 * (sum(ours[key]) - sum(theirs[key])) / len(values) for key, values in ours.items()
    }
    assert abs(points.pop("all")) <= 1
    assert {key for key, value in points.items() if abs(value) > 3} == FAR.get(name, set())


@pytest.mark.slow
def test_mmmus_own_rule_gives_every_verdict_and_letter_of_the_authors(shared_data):
    """451 of 451; where the authors choose at random, no letter is read."""
    rows = read(shared_data / "official_replies", "mmmu")
    for record in rows:
        verdict = mmmu_official.judge(record["reply"], official_row(record), "last", shared_judge())
        guessed = record["official_guesses"]
        assert verdict.correct == (record["official_correct"] and not guessed), record["id"]
        if record["choices"]:
            letter = None if guessed else record["official_answer"]
            assert verdict.extracted == letter, record["id"]
    assert (len(rows), sum(r["official_guesses"] for r in rows)) == (451, 24)


@pytest.mark.parametrize(
    ("reply", "options", "gold", "is_right"),
    [
        ("The answer is (A), not (B).", ("3", "4"), "B", True),
        ("(A) or B", ("3", "4"), "A", True),
        ("A B", ("3", "4"), "B", True),
        ("B.", ("3", "4"), "B", True),
        ("I see that it must be the Blue car.", ("red", "blue"), "B", True),
        ("the blue car", ("red", "blue"), "B", False),
        ("So x = 1,234.567", (), "1234.57", True),
        ("The total is 12 cm. Thus it could be 7.", (), "12 cm", False),
        ("The total is 12 cm\nThus it could be 7.", (), "12 cm", True),
        ("It is a.", (), "b", False),
        ("7\nso :'", (), "7", False),
    ],
)
def test_mmmus_own_rule_by_hand(reply, options, gold, is_right):
    row = BenchmarkRow(id="r", question="", answer=gold, choices=options)
    assert mmmu_official.judge(reply, row, "last", shared_judge()).correct == is_right
