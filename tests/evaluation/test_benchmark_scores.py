"""Metrics of benchmarks on small cases computed by hand, and their intervals."""

import math
import re
import weakref
from dataclasses import replace

import pytest
from conftest import REPO

from vistill.evaluation.benchmarks import blink
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow, ScoredReply, Unit, accuracy
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, SUITES, find_suite
from vistill.evaluation.benchmarks.pairs import paired_results
from vistill.evaluation.benchmarks.results import (
    CSV_COLUMNS,
    csv_rows,
    results_table,
    suite_results,
    task_results,
)
from vistill.evaluation.benchmarks.sample_log import Sample
from vistill.evaluation.benchmarks.scores import score_benchmark, score_units


def reply(name, right, group="", sample=0, **facts):
    return ScoredReply(BenchmarkRow(name, "?", group=group, facts=facts), sample, {"r": right})


def wemath_group(name, steps, composite, sample=0):
    """A group: what of its steps and its composite problem is right."""
    keys = {str(i + 1): right for i, right in enumerate(steps)} | {"multi": composite}
    return [
        reply(f"{name}_{key}", float(right), name, sample, step=key, steps=str(len(steps)))
        for key, right in keys.items()
    ]


def metrics(name, replies):
    values = score_benchmark(BENCHMARKS[name], replies)["metrics"]
    return {metric: score["value"] for metric, score in values.items()}


def test_wemath_divides_the_four_outcomes_by_the_groups_present():
    replies = [
        *wemath_group("mastered", [1, 1], 1),
        *wemath_group("not_general", [1, 1, 1], 0),
        *wemath_group("unknown", [0, 1], 0),
        *wemath_group("rote_by_strict", [0, 1], 1),
        *wemath_group("rote", [0, 0], 1),
    ]
    values = metrics("wemath", replies)
    assert values["strict"] == pytest.approx((1 + 0.5) / 5)
    assert values["loose"] == pytest.approx((1 + 0.5 + 1) / 5)
    assert values["mean"] == pytest.approx((1.5 + 2.5) / 10)
    assert (values["ik"], values["ig"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert (values["cm_strict"], values["cm_loose"]) == (pytest.approx(0.2), pytest.approx(0.4))
    assert values["rm_rate_strict"] == pytest.approx(2 / 3)
    assert values["rm_rate_loose"] == pytest.approx(1 / 3)
    assert values["rows"] == pytest.approx(10 / 16)


def test_wemath_all_wrong_is_zero_on_one_group_and_a_part_of_a_group_is_left_out():
    wrong = wemath_group("a", [0, 0], 0)
    assert metrics("wemath", wrong)["mean"] == 0
    right = wemath_group("b", [1, 1], 1)
    assert metrics("wemath", [*wrong, *right[:-1]])["mean"] == 0
    assert metrics("wemath", [*wrong, *right])["mean"] == 0.5


def test_a_metric_of_groups_is_the_mean_over_samples():
    replies = wemath_group("a", [1, 1], 1, 0) + wemath_group("a", [1, 1], 0, 1)
    values = metrics("wemath", replies)
    assert values["strict"] == pytest.approx((1 + 0.5) / 2)
    scores = score_benchmark(BENCHMARKS["wemath"], replies)["metrics"]
    assert (scores["strict"]["units"], scores["strict"]["clusters"]) == (1, 1)


def hallusion(category, figure, question, right):
    one = f"{category}_map_0"
    return reply(
        f"{category}{figure}{question}", right, one, category=category, subcategory="map",
        set=one, figure=f"{one}_{figure}", question=f"{one}_{question}",
        has_figure=str(not (category == "VS" and figure == 0)),
    )  # fmt: skip


def test_hallusionbench_by_row_figure_and_question():
    replies = [
        hallusion("VD", 0, 0, 1.0), hallusion("VD", 0, 1, 1.0),
        hallusion("VD", 1, 0, 1.0), hallusion("VD", 1, 1, 0.0),
        hallusion("VS", 0, 0, 0.0), hallusion("VS", 1, 0, 1.0),
    ]  # fmt: skip
    values = metrics("hallusionbench", replies)
    assert values["aAcc"] == pytest.approx(4 / 6)
    assert values["fAcc"] == pytest.approx(2 / 3)  # VD 0, VS 1 of VD 0, VD 1, VS 1
    assert values["qAcc"] == pytest.approx(1 / 3)  # VD question 0 of three
    assert values["mean"] == pytest.approx((4 / 6 + 2 / 3 + 1 / 3) / 3)


def test_mathverse_overall_is_the_five_versions_without_text_only():
    versions = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
    facts = {"subject": "s", "subfield": "t", "type": "free_form"}
    right = [1.0, 1.0, 0.0, 1.0, 0.0]
    replies = [
        reply(name, value, "p", version=name, **facts)
        for name, value in zip(versions, right, strict=True)
    ]
    replies.append(reply("Text Only", 1.0, "p", version="Text Only", **facts))
    values = metrics("mathverse", replies)
    assert values["overall"] == pytest.approx(3 / 5)
    assert (values["vision_only"], values["text_only"]) == (0, 1)
    score = score_benchmark(BENCHMARKS["mathverse"], replies)["metrics"]["overall"]
    assert (score["units"], score["clusters"]) == (5, 1)


def test_pairs_of_mmvp_and_the_means_of_cv_bench():
    pairs = [reply("1", 1.0, "p1"), reply("2", 1.0, "p1"), reply("3", 1.0, "p2"),
             reply("4", 0.0, "p2"), reply("5", 1.0, "p3")]  # fmt: skip
    assert metrics("mmvp", pairs) == {"pairs": 0.5, "rows": 0.8}
    rows = [
        reply("a", 1.0, type="2D", source="ADE20K", task="t"),
        reply("b", 0.0, type="2D", source="COCO", task="t"),
        reply("c", 0.0, type="2D", source="COCO", task="t"),
        reply("d", 1.0, type="3D", source="Omni3D", task="t"),
    ]
    values = metrics("cv_bench", rows)
    assert (values["2D"], values["3D"], values["overall"]) == (0.5, 1.0, 0.75)


def test_blink_is_the_mean_of_its_tasks_and_names_each():
    replies = [reply(f"{task} {n}", 0.0, task=task) for task in blink.TASKS for n in range(2)]
    replies += [reply(f"more {n}", 1.0, task="Jigsaw") for n in range(6)]
    values = metrics("blink", replies)
    assert values["Jigsaw"] == pytest.approx(6 / 8)
    assert values["overall"] == pytest.approx(6 / 8 / 14)
    assert values["rows"] == pytest.approx(6 / 34)
    assert metrics("blink_jigsaw", replies[-6:]) == {"accuracy": 1.0}


def test_the_interval_has_the_width_of_independent_clusters():
    """100 clusters of 4 equal rows: the standard error is that of 100 rows, not of 400."""
    units = [
        Unit(f"{c}.{i}", str(c), float(c % 2)) for c in range(100) for i in range(4)
    ]  # fmt: skip
    score = score_units({"accuracy": units})["accuracy"]
    assert score.value == 0.5
    assert (score.units, score.clusters) == (400, 100)
    half = 1.96 * math.sqrt(0.25 / 100)
    assert score.low == pytest.approx(0.5 - half, abs=0.015)
    assert score.high == pytest.approx(0.5 + half, abs=0.015)
    assert score == score_units({"accuracy": units})["accuracy"]


def test_equal_clusters_give_the_interval_of_wilson():
    units = [Unit(str(i), str(i), 1.0) for i in range(10)]
    score = score_units({"accuracy": units})["accuracy"]
    assert (score.value, score.high) == (1.0, pytest.approx(1.0))
    assert score.low == pytest.approx(0.7225, abs=1e-3)


def test_a_mean_of_metrics_uses_the_same_resamples():
    """Two metrics that are one minus the other: their mean does not vary."""
    first = [Unit(str(i), str(i), float(i % 2)) for i in range(50)]
    second = [Unit(u.key, u.cluster, 1 - u.value) for u in first]
    scores = score_units({"a": first, "b": second}, {"mean": ("a", "b")})
    assert scores["mean"].value == 0.5
    assert scores["a"].low < 0.45 < 0.55 < scores["a"].high


def test_suites_have_the_columns_and_averages_of_the_papers():
    counts = {name: len(suite.columns) for name, suite in SUITES.items()}
    assert counts == {"va_opd": 8, "vgs": 7, "visual_opsd": 9}
    for suite in SUITES.values():
        titles = {column.title for column in suite.columns}
        assert all(set(parts) <= titles for parts in suite.averages.values())


def made_task(value):
    """Results of a benchmark with one value for the metric of its column."""
    score = {"value": value, "low": 0.0, "high": 1.0, "units": 10, "clusters": 10}
    metrics = dict.fromkeys(("accuracy", "mean", "overall"), score)
    mode = {
        "label": "avg@8", "metrics": metrics, "categories": {"type": {"x": score}},
        "unparsed_share": 0.1, "truncated_share": 0.0, "tokens": 3.0, "seconds": 0.1,
    }  # fmt: skip
    return {
        "title": "T", "rows": 10, "subset": "ours", "failed": [], "missing_replies": 0,
        "rule": "auto", "modes": {"sampled": mode},
    }  # fmt: skip


def test_a_suite_prints_no_average_over_a_part():
    suite = find_suite("va_opd")
    values = {"wemath": 0.4, "mathvista": 0.6, "mathverse": 0.2, "ai2d": 0.7}
    tasks = {name: made_task(value) for name, value in values.items()}
    part = suite_results(suite, tasks)["modes"]["sampled"]
    assert part["averages"]["Math Avg"] == pytest.approx(0.4)
    assert part["averages"]["Visual Avg"] is None
    assert part["columns"]["MMMU"] is None
    results = {
        "model": "m", "protocol": "va_opd", "changed": {}, "data": "d", "tasks": tasks,
        "missing": {"mmmu": "not here"}, "suite": suite_results(suite, tasks),
    }  # fmt: skip
    text = results_table(results)
    assert "Visual Avg               -" in text
    assert "Math Avg                 40.0" in text
    assert "not here: mmmu" in text
    assert "subset: ours" in text
    rows = list(csv_rows(results))
    assert len(rows) == 4 * (3 + 1)
    values = [rows[0][name] for name in CSV_COLUMNS]
    assert values[:6] == ["wemath", "va_opd", "sampled", "", "accuracy", 0.4]
    assert values[6:] == [0.0, 1.0, 10, 10, "ours", False, "auto", "mean", "m"]


@pytest.mark.parametrize("part", [{"failed": [{"row": "3"}]}, {"missing_replies": 2}])
def test_a_suite_prints_no_average_over_a_partial_result(part):
    suite = find_suite("va_opd")
    tasks = {name: made_task(0.5) for name in suite.benchmarks}
    tasks["mathverse"] |= part
    for one in tasks.values():
        metrics = one["modes"]["sampled"]["metrics"]
        assert {"accuracy", "mean", "overall"} == set(metrics)
    of_suite = suite_results(suite, tasks)
    averages = of_suite["modes"]["sampled"]["averages"]
    assert averages == {"Math Avg": None, "Visual Avg": 0.5}
    assert of_suite["modes"]["sampled"]["columns"]["MathVerse"] == 0.5
    results = {
        "model": "m", "protocol": "va_opd", "changed": {}, "data": "d", "tasks": tasks,
        "missing": {}, "suite": of_suite,
    }  # fmt: skip
    assert "PARTIAL: mathverse; no average over them" in results_table(results)


def test_the_page_lists_every_benchmark_with_its_rows_source_and_metric():
    page = (REPO / "docs" / "benchmarks.md").read_text().partition("## Scores of another")[0]
    listed = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|", page, re.MULTILINE)
    assert [name for name, *_ in listed[-len(BENCHMARKS) :]] == list(BENCHMARKS)
    for name, rows, hub, metrics_of in listed[-len(BENCHMARKS) :]:
        benchmark = BENCHMARKS[name]
        assert rows.removeprefix("about ") == f"{benchmark.rows:,}"
        assert f"**{benchmark.headline}**" in metrics_of
        shown = benchmark.hub or "none"
        if len(benchmark.configs) == 1:
            shown = shown.replace("*", benchmark.configs[0])
        assert hub.split(", 14")[0] == shown


def test_the_samples_of_a_row_share_it_and_no_text_is_kept():
    """What scoring keeps of a sample does not grow with its text, nor the rows with the samples."""
    references, most, kept = [], [0], []

    def samples():
        for sample in range(16):
            for name in ("a", "b", "c"):
                row = BenchmarkRow(name, "?" * 10_000, group="g", facts={"f": "x"})
                one = Sample(
                    row, "", "sampled", sample, (), "q" * 10_000, "r" * 10_000, "stop", 3, 0.1,
                    {"choice": {"correct": True, "unparsed": False}},
                )  # fmt: skip
                references.append(weakref.ref(one))
                most[0] = max(most[0], sum(known() is not None for known in references))
                yield one

    def score(replies):
        kept.extend(replies)
        return accuracy(replies)

    benchmark = replace(BENCHMARKS["ai2d"], score=score)
    results = task_results(benchmark, samples(), {"sampled": 16})
    assert results["modes"]["sampled"]["replies"] == 48
    assert most[0] <= 2
    assert len({id(reply.row) for reply in kept}) == 3
    assert {reply.row.question for reply in kept} == {""}


def test_intervals_do_not_depend_on_the_order_in_which_responses_were_written():
    replies = [reply(f"r{i}", float(i % 3 == 0), f"g{i // 2}", subject="s") for i in range(20)]
    others = [replace(one, credit={"r": float(i % 4 == 0)}) for i, one in enumerate(replies)]
    benchmark = BENCHMARKS["ai2d"]
    assert score_benchmark(benchmark, replies) == score_benchmark(benchmark, replies[::-1])
    pairs = [paired_results(benchmark, a, b)[0]
             for a, b in ((replies, others), (replies[::-1], others[7:] + others[:7]))]  # fmt: skip
    assert pairs[0] == pairs[1]
