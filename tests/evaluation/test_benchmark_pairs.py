"""Paired differences, reducers and the comparison of several models, on replies of known score."""

import itertools
import json
import math
from pathlib import Path

import pytest

from vistill.answers.math_process import shared_judge
from vistill.errors import ConfigError
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow, ScoredReply
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, Column, Suite
from vistill.evaluation.benchmarks.comparing import (
    compare_logs,
    compare_models,
    compare_suite,
    matrix_table,
    names_of,
)
from vistill.evaluation.benchmarks.pairs import paired_results
from vistill.evaluation.benchmarks.protocols import PROTOCOLS, decoding_of, view_of, with_blind
from vistill.evaluation.benchmarks.reducers import (
    find_reducers,
    majority,
    pass_at,
    reduced_scores,
)
from vistill.evaluation.benchmarks.results import Wanted, task_results
from vistill.evaluation.benchmarks.sample_log import Sample, verdict_dict
from vistill.evaluation.benchmarks.sample_log import sample_of as read_line

AI2D = BENCHMARKS["ai2d"]


def reply(row, sample, right, extracted="A", group="", facts=None):
    """A scored reply of one row."""
    asked = BenchmarkRow(str(row), "?", group=group, facts=facts or {})
    unparsed = extracted is None
    return ScoredReply(asked, sample, {"choice": float(right)}, unparsed, False, 3, extracted)


def sample_of(name, mode, number, right, **changes):
    """A sample of a log."""
    values = {
        "row": BenchmarkRow(name, "?", group=changes.pop("group", "")),
        "content": "c-1",
        "mode": mode,
        "sample": number,
        "pictures": (),
        "question": "?",
        "response": "A",
        "finish": "stop",
        "tokens": 5,
        "seconds": 0.5,
        "verdicts": {"choice": {"correct": right, "unparsed": False, "extracted": "A"}},
    }
    return Sample(**{**values, **changes})


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample():
    for n, right in itertools.product(range(1, 6), range(6)):
        if right > n:
            continue
        flags = [1] * right + [0] * (n - right)
        for k in range(1, n + 1):
            draws = [max(draw) for draw in itertools.combinations(flags, k)]
            assert math.isclose(pass_at(n, right, k), sum(draws) / len(draws))


def test_reduced_scores_are_those_computed_by_hand():
    flags = {"a": [1, 0, 0], "b": [1, 1, 0], "c": [0, 0, 0], "d": [1, 1, 1]}
    replies = [reply(name, i, flag, "RW"[1 - flag]) for name, part in flags.items()
               for i, flag in enumerate(part)]  # fmt: skip
    reducers = find_reducers(["mean", "pass@k", "pass@2", "majority"], {"sampled": 3})
    reduced = reduced_scores(AI2D, replies, 3, reducers)
    assert list(reduced) == ["pass@3", "pass@2", "majority@3"]
    assert reduced["pass@3"]["rows"]["value"] == 0.75
    assert math.isclose(reduced["pass@2"]["rows"]["value"], (2 / 3 + 1 + 0 + 1) / 4)
    assert reduced["majority@3"]["accuracy"]["value"] == 0.5
    assert reduced_scores(AI2D, replies, 1, reducers) == {}


def test_the_majority_is_of_answers_as_read_and_ties_go_to_the_first():
    tie = [reply("a", 0, 0, "B"), reply("a", 1, 1, "A"), reply("a", 2, 1, "A"),
           reply("a", 3, 0, "B")]  # fmt: skip
    assert majority(tie).main == 0
    assert majority(tie[::-1]).main == 0
    silent = [reply("a", 0, 0, None), reply("a", 1, 0, None), reply("a", 2, 1, "x  Y")]
    assert majority(silent).main == 1
    assert majority([reply("a", 0, 0, "1"), reply("a", 1, 1, "X y"), *silent]).extracted == "X y"
    assert majority([reply("a", 1, 1, None), reply("a", 0, 0, None)]).main == 0


def judged_reply(number, text, row):
    """A scored reply as a log has it: judged by the rule of the benchmark, written and read."""
    benchmark = BENCHMARKS["mmmu"]
    verdicts = {
        name: verdict_dict(rule(text, row, "last", shared_judge()))
        for name, rule in benchmark.rules.items()
    }
    sample = sample_of("a", "sampled", number, False, row=row, response=text, verdicts=verdicts)
    return read_line(json.loads(json.dumps(sample.to_dict()))).scored()


@pytest.mark.parametrize(
    ("texts", "gold", "choices"),
    [
        (("A", "(B)", "The answer is B.", "A", "a bowl"), "B", ("a vase", "a bowl")),
        (("\\boxed{3}", "\\boxed{\\frac{1}{2}}", "\\boxed{0.50}", "\\boxed{3}", "0.5"), "0.5", ()),
    ],
)
def test_the_majority_counts_an_answer_in_all_its_forms(texts, gold, choices):
    row = BenchmarkRow("a", "?", answer=gold, choices=choices)
    replies = [judged_reply(number, text, row) for number, text in enumerate(texts)]
    assert [reply.main for reply in replies] == [0, 1, 1, 0, 1]
    assert majority(replies).main == 1


@pytest.mark.parametrize(
    ("names", "counts", "code"),
    [
        (["pass@9"], {"sampled": 8}, "C101"),
        (["majority"], {"greedy": 1}, "C101"),
        (["pas@k"], {"sampled": 8}, "C105"),
        (["pass@0"], {"sampled": 8}, "C105"),
    ],
)
def test_reducers_that_cannot_be_are_refused(names, counts, code):
    with pytest.raises(ConfigError, match=code):
        find_reducers(names, counts)
    assert find_reducers(["mean"], {"greedy": 1})


def test_a_paired_difference_is_narrower_than_two_scores_and_has_the_common_rows():
    hard = [reply(i, 0, i % 2) for i in range(40)]
    better = [reply(i, 0, max(i % 2, i < 8)) for i in range(38)] + [reply("other", 0, 1)]
    plain, _ = paired_results(AI2D, better, hard)
    one = plain["metrics"]["accuracy"]
    assert (plain["rows"], one["units"], one["clusters"]) == (38, 38, 38)
    assert math.isclose(one["value"], 4 / 38)
    assert math.isclose(one["first"], 23 / 38)
    assert 0 < one["low"] < 4 / 38 < one["high"] < 0.23
    twice, _ = paired_results(AI2D, hard, better)
    assert math.isclose(twice["metrics"]["accuracy"]["value"], -4 / 38)


def test_a_difference_resamples_whole_groups_and_never_has_width_zero():
    groups = [reply(f"{g}.{i}", 0, g % 2, group=str(g)) for g in range(6) for i in range(10)]
    wrong = [reply(f"{g}.{i}", 0, 0, group=str(g)) for g in range(6) for i in range(10)]
    one = paired_results(AI2D, groups, wrong)[0]["metrics"]["accuracy"]
    assert (one["units"], one["clusters"]) == (60, 6)
    assert one["low"] < 0.2
    assert one["high"] > 0.8
    same = paired_results(AI2D, wrong, wrong)[0]["metrics"]["accuracy"]
    assert same["value"] == 0
    assert same["low"] < -0.1
    assert same["high"] > 0.1


def test_blind_modes_have_their_gap_and_miss_nothing_of_rows_without_a_picture():
    protocol = with_blind(PROTOCOLS["official"])
    assert dict(protocol.samples) == {"greedy": 1, "greedy/pixelated": 1, "greedy/text_only": 1}
    assert (decoding_of("sampled/text_only"), view_of("sampled/text_only")) == (
        "sampled",
        "text_only",
    )
    assert view_of("greedy") == "full"
    samples = [sample_of(f"r{i}", "greedy", 0, i < 3) for i in range(5)]
    for view in ("pixelated", "text_only"):
        samples += [sample_of(f"r{i}", f"greedy/{view}", 0, i < 1) for i in range(4)]
    results = task_results(AI2D, samples, protocol.samples, wanted=Wanted(5, 4))
    assert results["missing_replies"] == 0
    gap = results["modes"]["greedy/text_only"]["gap"]["metrics"]["accuracy"]
    assert (gap["first"], gap["second"], gap["value"], gap["units"]) == (0.75, 0.25, 0.5, 4)
    assert "gap" not in results["modes"]["greedy"]
    assert results["modes"]["greedy/text_only"]["label"] == "greedy, text_only"


def write_log(folder, right, contents="c-1", **facts):
    """A log of eight rows of AI2D of which `right` are right, and its results."""
    log = folder / "samples" / "ai2d.va_opd.jsonl"
    log.parent.mkdir(parents=True)
    head = {"log": "vistill samples", "version": 1, "task": "ai2d", "protocol": "va_opd",
            "model": folder.name, "weights": folder.name, "seed": 0, "take": "first",
            "asked": {"rows": 8, "samples": {"sampled": 2}}, **facts}  # fmt: skip
    samples = [sample_of(f"r{i}", "sampled", k, i < right,
                         content=contents if i == 7 else "c-1") for i in range(8)
               for k in range(2)]  # fmt: skip
    lines = [head, *(sample.to_dict() for sample in samples)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = task_results(AI2D, samples, {"sampled": 2})
    return {"model": folder.name, "protocol": "va_opd", "changed": {}, "data": "", "missing": {},
            "tasks": {"ai2d": {**task, "log": str(log)}}}  # fmt: skip


def test_models_are_compared_with_the_first_on_rows_that_were_asked_alike(tmp_path):
    results = {
        "a": write_log(tmp_path / "a", 2),
        "b": write_log(tmp_path / "b", 5, seed=1),
        "c": write_log(tmp_path / "c", 8, contents="c-2"),
    }
    compared = compare_models(results, {"ai2d": [f"r{i}" for i in range(8)]})
    tasks = {name: pair["tasks"]["ai2d"] for name, pair in compared["pairs"].items()}
    of_b = tasks["b"]["modes"]["sampled"]
    assert (of_b["rows"], of_b["metrics"]["accuracy"]["value"]) == (8, 3 / 8)
    assert tasks["b"]["settings_differ"] == {"seed": [1, 0]}
    of_c = tasks["c"]["modes"]["sampled"]
    assert (of_c["rows"], tasks["c"]["mismatched"]) == (7, 1)
    assert math.isclose(of_c["metrics"]["accuracy"]["value"], 5 / 7)
    table = matrix_table(compared)
    assert "+37.5 [" in table
    assert "1 rows of ai2d were asked otherwise of c and are not compared" in table
    assert "b was asked with seed 1, a with 0" in table
    fewer = compare_models(results, {"ai2d": ["r0", "r1"]})
    rows = fewer["pairs"]["b"]["tasks"]["ai2d"]["modes"]["sampled"]["rows"]
    assert rows == 2


def test_names_of_models_are_their_shortest_ends_that_differ():
    assert names_of(["vistill:student", "runs/a"]) == ["vistill-student", "a"]
    assert names_of(["runs/a/student", "runs/b/student"]) == ["a-student", "b-student"]
    assert names_of(["runs/a", "./runs/a/"]) == ["runs-a", "runs-a"]


def test_averages_of_a_suite_are_compared_where_both_have_them(tmp_path):
    suite = Suite("small", (Column("AI2D", "ai2d"),), {"Avg": ("AI2D",)})
    results = {name: write_log(tmp_path / name, right) for name, right in (("a", 2), ("b", 5))}
    for value, one in zip((2 / 8, 5 / 8), results.values(), strict=True):
        one["suite"] = {"name": "small", "modes": {"sampled": {"averages": {"Avg": value}}}}
    logs = [Path(results[name]["tasks"]["ai2d"]["log"]) for name in ("b", "a")]
    draws = {"ai2d": compare_logs("ai2d", *logs, None)[1]}
    average = compare_suite(suite, results["b"], results["a"], draws)["sampled"]["Avg"]
    assert average["value"] == 3 / 8
    assert average["low"] < 3 / 8 < average["high"]
    results["b"]["suite"]["modes"]["sampled"]["averages"]["Avg"] = None
    assert compare_suite(suite, results["b"], results["a"], draws) == {}
