"""The page of benchmark runs: every number, the paper's values apart, hostile text, the browser."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, SUITES
from vistill.report.benchmark_page import render_benchmarks
from vistill.reproduction.benchmark_report import PAPERS, paper_tables

HOSTILE = "<script>document.title='owned'</script>"


def score(value, units=8):
    """A score as results have it."""
    return {"value": value, "low": value / 2, "high": 1 - (1 - value) / 2, "units": units,
            "clusters": units}  # fmt: skip


def mode(value, label):
    """A mode of a benchmark."""
    return {
        "label": label, "metrics": {"mean": score(value), "strict": score(value)},
        "categories": {"steps": {HOSTILE: score(value)}}, "questions": 8, "replies": 16,
        "unparsed_share": 0.25, "truncated_share": 0.125, "tokens": 123.0, "seconds": 0.5,
        "reduced": {"pass@4": {"rows": score(0.75)}},
    }  # fmt: skip


def one_model(value, **changes):
    """Results of one model on We-Math under VA-OPD's protocol."""
    gap = {"value": 0.1, "low": -0.1, "high": 0.3, "units": 8, "clusters": 8}
    blind = {**mode(value, "avg@8, text_only"),
             "gap": {"metrics": {"mean": gap}, "categories": {}}}  # fmt: skip
    task = {
        "title": "We-Math", "rows": 8, "other_rows": 0, "whole": 1740, "missing_replies": 0,
        "rule": "choice", "headline": "mean", "licence": "CC BY-NC 4.0", "subset": "ours",
        "failed": [], "modes": {"sampled": mode(value, "avg@8"), "sampled/text_only": blind},
    } | changes  # fmt: skip
    return {"model": HOSTILE, "protocol": "va_opd", "changed": {}, "data": "sets", "missing": {},
            "tasks": {"wemath": task}}  # fmt: skip


def several(**changes):
    """Two models with their difference."""
    difference = {"value": 0.125, "low": 0.02, "high": 0.25, "first": 0.5, "second": 0.375,
                  "units": 8, "clusters": 8}  # fmt: skip
    compared = {"metrics": {"mean": difference}, "categories": {}, "rows": 8}
    tasks = {"wemath": {"modes": {"sampled": compared}, "mismatched": 0, "settings_differ": {}}}
    models = {"opd": one_model(0.375, **changes), "va_opd": one_model(0.5, **changes)}
    return {"baseline": "opd", "order": ["opd", "va_opd"], "protocol": "va_opd", "changed": {},
            "data": "sets", "missing": {"ai2d": "absent"}, "models": models,
            "pairs": {"va_opd": {"tasks": tasks, "suite": {}}}}  # fmt: skip


class Cells(HTMLParser):
    """The cells of a page with their classes, row by row."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.kind = [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.kind = dict(attrs).get("class", "") if tag in ("td", "th") else None
        if self.kind is not None:
            self.rows[-1].append(["", self.kind])

    def handle_endtag(self, tag):
        self.kind = None

    def handle_data(self, data):
        if self.kind is not None:
            self.rows[-1][-1][0] += data


def test_the_page_has_every_number_and_its_caveats():
    page = render_benchmarks(several(), paper_tables("va_opd"))
    for text in ("37.5 [18.8, 68.8] on 8", "+12.5 [+2.0, +25.0]", "avg@8: pass@4 rows", "25.0 %",
                 "12.5 %", "123", "0.50", "+10.0 [-10.0, +30.0] on 8",
                 "8 of 1,740 rows", "Not here: ai2d", "subset: ours: wemath",
                 "other weights, other data"):  # fmt: skip
        assert text in page, text
    assert "<script" not in page
    assert "PARTIAL" not in page
    partial = render_benchmarks(several(missing_replies=3))
    assert "PARTIAL results of opd: wemath" in partial
    assert "PARTIAL: 6 replies are missing" in partial


def test_failed_samples_are_counted_by_code_and_a_judge_is_never_called_a_rule():
    page = render_benchmarks(several(failures={"R432": 5}, missing_replies=5, rule="judge:m"))
    assert "rule: judge:m. subset: ours. PARTIAL: 10 replies are missing. failed: 10 R432" in page
    notes = {name: one.note for name, one in BENCHMARKS.items()}
    assert not [name for name, note in notes.items() if "judged by a rule" in note.lower()]


def test_the_papers_values_stand_apart_and_ours_are_marked_as_a_part():
    rows = Cells(render_benchmarks(several(), paper_tables("va_opd"))).rows
    row = next(row for row in rows if row[0][0] == "We-Math")
    ours = [text for text, kind in row[1:] if kind != "paper"]
    papers = [text for text, kind in row if kind == "paper"]
    assert ours == ["37.5*", "50.0*"]
    assert papers == ["36.8", "39.7", "38.9", "44.1", "44.8", "43.3", "46.6"]
    for row in rows:
        assert not any("*" in text for text, kind in row if kind == "paper")


def test_a_value_of_two_decodings_is_split_and_a_single_one_is_greedy():
    results = one_model(0.5) | {"protocol": "vgs"}
    task = results["tasks"].pop("wemath") | {"modes": {}}
    modes = {"greedy": mode(0.5, "greedy"), "sampled": mode(0.25, "avg@16")}
    results["tasks"]["logicvista"] = task | {"modes": modes, "headline": "accuracy"}
    rows = Cells(render_benchmarks(results, paper_tables("vgs"))).rows
    greedy, sampled = [row for row in rows if row[0][0] == "LogicVista"][0::3][:2]
    assert [text for text, kind in greedy if kind == "paper"][:3] == ["60.01", "36.83", "45.53"]
    assert [text for text, kind in sampled if kind == "paper"][:3] == ["–", "–", "46.19"]


def test_every_column_of_a_suite_has_the_papers_values():
    assert set(PAPERS) == set(SUITES)
    for name, suite in SUITES.items():
        titles = {column.title for column in suite.columns} | set(suite.averages)
        for table in paper_tables(name):
            for _, values in table.rows:
                assert set(values) == titles, (name, table.title)
    assert paper_tables("official") == []


def test_models_keep_their_order_when_their_results_are_read_from_a_file():
    results = several()
    order = {**results, "models": dict(sorted(results["models"].items(), reverse=True))}
    assert list(order["models"]) == ["va_opd", "opd"]
    papers = paper_tables("va_opd")
    assert render_benchmarks(order, papers) == render_benchmarks(results, papers)


@pytest.mark.browser
def test_the_page_of_benchmarks_opens_in_chromium_light_dark_and_narrow(tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("VISTILL_NEEDS_BROWSER"), "CI must have chromium"
        pytest.skip("chromium is not installed")
    page = tmp_path / "report.html"
    page.write_text(render_benchmarks(several(), paper_tables("va_opd")), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    sizes = []
    for name, extra in (("light", ["--window-size=1200,1600"]),
                        ("dark", ["--window-size=1200,1600", "--force-dark-mode"]),
                        ("narrow", ["--window-size=500,1600"])):  # fmt: skip
        shot = tmp_path / f"{name}.png"
        command = [chromium, *flags, *extra, f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        sizes.append(shot.stat().st_size)
    assert min(sizes) > 10_000
    command = [chromium, *flags, "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()
    assert re.search(r"<title>vistill benchmarks: opd, va_opd</title>", dom)
