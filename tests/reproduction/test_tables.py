"""The papers' tables: each row has its recipe, each value of a recipe its source."""

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import REPO
from tiers import few

from vistill.cli.main import entry
from vistill.config import flatten, load_stages
from vistill.errors import ConfigError, StorageError
from vistill.planning.run_plan import Sizes
from vistill.reproduction.cells import choose_cells, make_cells, plan_cells
from vistill.reproduction.planned import check_disk_of_all, format_planned, planned_dict, total_of
from vistill.reproduction.tables import Row, find_table, table_names
from vistill.reproduction.tiny import SETTINGS, make_tiny
from vistill.studies.plan import PlanOptions

PAPERS = sorted(REPO.glob("recipes/paper_*.yaml"))
#: The source of a value, at the end of its line.
SOURCE = re.compile(r"# .*\[(?:P [^\]]+|A|R|PAPO|ours)\]")
#: Lines that name what a stage runs.
NAMES = re.compile(r" *method: |    (?:student|teacher): |  \w+: \{\}$")


@pytest.mark.parametrize("name", table_names())
def test_every_row_has_a_stage_and_its_checkpoint_is_the_papers_rule(name):
    table = find_table(name)
    stages = load_stages(table.recipe)
    assert set(table.stages) <= set(stages)
    assert len({row.label for row in table.rows}) == len(table.rows)
    assert table.source and table.rule and table.protocol  # noqa: PT018
    for stage in table.stages:
        best = stages[stage].save.keep_best
        if stages[stage].method != "grpo" or table.checkpoint == "last":
            assert best == {"best": "accuracy", "last": "none"}[table.checkpoint], stage


def test_every_stage_of_a_papers_recipe_is_in_a_table():
    shown = {(t.recipe, stage) for t in map(find_table, table_names()) for stage in t.stages}
    assert {(f.name, stage) for f in PAPERS for stage in load_stages(f)} == shown


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_every_value_of_a_papers_recipe_names_its_source(file):
    text = file.read_text(encoding="utf-8").partition("version: 1\n")[2]
    text = re.sub(r"(>-.*\n)(?:    .+\n)+", r"\1", text)  # the lines of a system message
    values = [line for line in text.splitlines() if re.match(r" *\w+: +[^#\s]", line)]
    assert len(values) > 40
    assert [x for x in values if not SOURCE.search(x) and not NAMES.match(x)] == []


def test_the_papers_averages_follow_from_their_columns():
    for name, groups in {
        "va_opd-1": ((0, 3, 3), (4, 9, 9)),
        "va_opd-2": ((0, 3, 3), (4, 9, 9)),
        "visual_opsd-1": ((0, 9, 9),),
    }.items():
        for row in find_table(name).rows:
            for first, last, average in groups:
                values = row.paper[first:last]
                if None not in values:
                    mean = sum(values) / len(values)
                    assert mean == pytest.approx(row.paper[average], abs=0.051), (name, row.label)


def test_a_cell_that_another_one_needs_stands_before_it():
    cells = make_cells(find_table("vgs-2"))
    assert [cell.name for cell in cells] == [
        "grpo_2b", "teacher", "grpo_standard_2b", "grpo_vgs_2b",
    ]  # fmt: skip
    assert cells[2].needs == ("teacher",)
    assert cells[2].arm.settings.teacher.model == str(cells[1].arm.folder)
    chosen = choose_cells(find_table("vgs-2"), cells, ["grpo_vgs_2b"])
    assert [cell.name for cell in chosen] == ["teacher", "grpo_vgs_2b"]


CHAIN = """\
run: runs/chain
data: {train: diagrams}
student: {model: 'vistill:student'}
teacher: {model: '{run}/first'}
train: {steps: 10}
method: opd
stages:
  first: {method: grpo, teacher: {model: ''}}
  second: {}
  third:
    teacher: {model: ''}
    teachers:
      a: {model: '{run}/second', rows: [x]}
      b: {model: 'vistill:teacher', others: true}
"""


def chain_cells(tmp_path):
    file = tmp_path / "chain.yaml"
    file.write_text(CHAIN)
    table = replace(find_table("va_opd-masks"), recipe=str(file), rows=(Row("C", "third"),))
    return table, make_cells(table, [f"run={tmp_path / 'runs'}"])


def test_a_cell_needs_the_students_that_its_teachers_are(tmp_path):
    """Teachers of several were not looked at, and a choice had the needs of its needs left out."""
    table, cells = chain_cells(tmp_path)
    assert {cell.name: cell.needs for cell in cells} == {
        "first": (), "second": ("first",), "third": ("second",),
    }  # fmt: skip
    third = cells[-1].arm.settings
    assert third.teachers["a"].model == str(tmp_path / "runs/second")
    assert [cell.name for cell in choose_cells(table, cells, ["third"])] == [
        "first", "second", "third",
    ]  # fmt: skip


def test_a_sum_over_cells_is_unknown_where_a_cell_is():
    rows = [{"money": 1.5, "hours": None}, {"money": 2.5, "hours": 1.0}]
    assert (total_of(rows, "money"), total_of(rows, "hours")) == (4.0, None)


def test_checkpoints_that_a_cell_already_has_count_as_free_for_it(monkeypatch, tmp_path):
    _, cells = chain_cells(tmp_path)
    plans = plan_cells(cells, PlanOptions(sizes=Sizes(rows=100)))
    need = sum(plan.cost.disk_bytes()["all"] for plan in plans.values()) / 1e9
    free = shutil.disk_usage(tmp_path).free / 1e9
    assert need < free
    small = need * 0.9
    with pytest.raises(StorageError):
        check_disk_of_all(cells, plans, small)
    checkpoint = cells[0].arm.folder / "checkpoint-000001"
    checkpoint.mkdir(parents=True)
    with (checkpoint / "part.bin").open("wb") as file:
        file.truncate(int(need * 0.2 * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=small * 1e9))
    check_disk_of_all(cells, plans, None)


def test_tables_share_their_runs():
    first, second = ({c.name: c.arm for c in make_cells(find_table(f"va_opd-{n}"))} for n in (1, 2))
    for name in ("opd", "va_opd"):
        assert first[name].folder == second[name].folder
        assert first[name].settings == second[name].settings


@pytest.mark.parametrize("name", few(table_names(), 0, 5, 9))
def test_a_tiny_run_changes_models_data_and_sizes_only(name):
    allowed = {*SETTINGS, "run", "visual_opsd.gate", "data.diagrams.options.thoughts"}
    allowed |= {f"{role}.{key}" for role in ("student", "teacher") for key in ("model", "revision")}
    tiny = {cell.name: cell.arm.values() for cell in make_cells(find_table(name), (), tiny=True)}
    for cell in make_cells(find_table(name)):
        full, small = cell.arm.values(), tiny[cell.name]
        assert {key for key in full if full[key] != small[key]} <= allowed
        assert "Qwen" not in small["student.model"] + small["teacher.model"]
        assert small["run"] != full["run"]


def test_settings_of_the_command_line_win_over_those_of_a_tiny_run():
    words = ("train.steps=5", "stages.opd.train.lr=0.5")
    cells = {c.name: c.arm.settings for c in make_cells(find_table("va_opd-2"), words, tiny=True)}
    assert cells["opd"].train.steps == cells["va_opd"].train.steps == 5
    assert cells["opd"].train.lr == 0.5
    assert cells["va_opd"].train.lr == SETTINGS["train.lr"]


def test_a_tiny_run_can_be_made_of_any_recipe_of_a_paper():
    recipe = load_stages("paper_visual_opsd.yaml")["noise"]
    tiny = make_tiny(recipe, kept=["train.steps"])
    assert tiny.student.model == "vistill:base"
    assert tiny.train.steps == recipe.train.steps == 1000
    assert flatten(tiny.knobs)["thoughts"] == "noise"


@pytest.mark.parametrize("name", few(table_names(), 0, 5, 9))
def test_every_cell_is_planned_with_hours_and_disk(name):
    table = find_table(name)
    cells = make_cells(table)
    values = planned_dict(table, cells, plan_cells(cells, PlanOptions()))
    assert [row["cell"] for row in values["cells"]] == [cell.name for cell in cells]
    for row in values["cells"]:
        assert math.isfinite(row["hours"] + row["disk_gb"] + row["peak_gib"])
    assert values["hours"] == pytest.approx(sum(row["hours"] for row in values["cells"]))
    assert len(format_planned(values).splitlines()) == len(cells) + 5
    assert json.loads(json.dumps(values)) == values


def test_the_disk_must_hold_the_runs_of_all_cells():
    cells = make_cells(find_table("va_opd-masks"))
    plans = plan_cells(cells, PlanOptions(sizes=Sizes(response_tokens=512)))
    with pytest.raises(StorageError) as caught:
        check_disk_of_all(cells, plans, 110.0)
    assert caught.value.code == "C131"
    check_disk_of_all(cells, plans, float(shlex.split(caught.value.fix)[2]))


def run_verb(words, capsys):
    with pytest.raises(SystemExit) as stop:
        entry(["reproduce", *words])
    shown = capsys.readouterr()
    return stop.value.code, shown.out, shown.err


def test_the_verb_plans_all_cells_and_exits_by_the_verdict(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["va_opd-masks", "--dry-run", "--disk", "9999", "--json"]
    code, out, _ = run_verb(words, capsys)
    assert code == 0
    assert json.loads(out)["fits"] is True
    code, out, err = run_verb([*words, "--gpu", "4090"], capsys)
    assert (code, json.loads(out)["fits"]) == (2, False)
    assert "C130" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["va-opd-1"], "va_opd-1   in place of va-opd-1"),
        (["vgs1"], "vgs-1   in place of vgs1"),
        (["va_opd-1", "--cell", "vaopd"], "--cell va_opd   in place of --cell vaopd"),
    ],
)
def test_an_unknown_table_or_cell_is_named_with_a_near_one(
    words, fix, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_verb(words, capsys)
    assert code == 2
    assert "C140" in err
    assert f"fix   {fix}" in err


def test_no_table_has_an_unknown_name():
    with pytest.raises(ConfigError, match="C140"):
        find_table("../tables/va_opd-1")
