"""`vistill compare`: matched arms over students, teachers and seeds, and its table."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPO
from typer.testing import CliRunner

from vistill.cli.compare import split_folder
from vistill.cli.main import app
from vistill.errors import ConfigError, StorageError
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json
from vistill.studies import compare
from vistill.studies.compare import Pairing, Study
from vistill.studies.compare_table import (
    Comparison,
    RunResult,
    best_rates,
    mean_figures,
    p_value,
    page,
    write_files,
)
from vistill.studies.models_by_seed import TinyModels
from vistill.studies.tiny_plans import STUDENT, changed_plan

THREE = ("opd", "va_opd", "grounded_opd")


def study(tmp_path, **changes):
    return Study("demo.yaml", THREE, tmp_path, **changes)


@pytest.mark.parametrize(
    ("seeds", "students", "teachers"), [(3, 2, 2), (4, 2, 2), (10, 5, 2), (7, 3, 2), (2, 1, 1)]
)
def test_every_pair_of_models_comes_before_one_comes_twice(tmp_path, seeds, students, teachers):
    pairings = study(tmp_path, seeds=seeds, students=students, teachers=teachers).pairings()
    assert [p.seed for p in pairings] == list(range(seeds))
    pairs = [(p.student, p.teacher) for p in pairings]
    assert len(set(pairs)) == min(seeds, students * teachers)
    if seeds >= max(students, teachers) > 1:
        assert {p.student for p in pairings} == set(range(students))
        assert {p.teacher for p in pairings} == set(range(teachers))


def test_arms_of_a_seed_differ_in_the_method_alone(tmp_path):
    arms = study(tmp_path).arms(Pairing(2, 1, 0), {})
    assert [arm.name for arm in arms] == list(THREE)
    values = [arm.values() for arm in arms]
    for other in values[1:]:
        assert {k for k in other if other[k] != values[0].get(k)} <= {"method", "run"}
    first = arms[0].settings
    assert (first.seed, first.data.diagrams.seed, first.profile) == (2, 2, True)
    assert "student-1-" in first.student.model
    assert first.teacher.model == "vistill:teacher"
    assert arms[2].command[-1] == "grounded_opd"
    assert "stages.grounded_opd.method=grounded_opd" in arms[2].command


def test_seeds_change_what_a_seed_decides_and_nothing_else(tmp_path):
    first, second = (study(tmp_path).arms(Pairing(n, 0, 0), {})[0] for n in (0, 1))
    ours, theirs = first.values(), second.values()
    changed = {k for k in ours if ours[k] != theirs[k]}
    assert changed == {"run", "seed", "data.diagrams.seed"}


def test_an_arm_that_does_not_match_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        'run: x\nstudent: {model: "vistill:student"}\nteacher: {model: "vistill:teacher"}\n'
        "data: {train: diagrams}\nstages:\n  opd: {method: opd}\n"
        "  more: {method: va_opd, rollout.per_prompt: 8}\n"
    )
    mixed = Study(str(tmp_path / "recipe.yaml"), ("opd", "more"), tmp_path)
    with pytest.raises(ConfigError) as caught:
        mixed.arms(Pairing(0, 0, 0), {})
    assert caught.value.code == "C301"
    assert "rollout.per_prompt" in caught.value.what


def test_a_recipe_without_stages_is_compared_by_the_names_of_methods(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "run: x\nstudent: {model: a/b}\nteacher: {model: c/d}\nmethod: opd\n"
        "data: {train: rows.jsonl}\n"
    )
    plain = Study(str(tmp_path / "recipe.yaml"), ("opd", "vgs"), tmp_path, seeds=2)
    assert not plain.makes_models
    assert plain.pairings() == [Pairing(0, 0, 0), Pairing(1, 0, 0)]
    arms = plain.arms(Pairing(1, 0, 0), {})
    assert [arm.settings.method for arm in arms] == ["opd", "vgs"]
    assert arms[0].settings.student.model == "a/b"


def test_tuned_rates_are_those_of_the_arm_and_may_differ(tmp_path):
    arms = study(tmp_path, rates=(1e-4, 3e-4)).arms(
        Pairing(0, 0, 0), {"opd": 1e-4, "va_opd": 3e-4, "grounded_opd": 3e-4}
    )
    assert [arm.settings.train.lr for arm in arms] == [1e-4, 3e-4, 3e-4]


def stages_recipe(tmp_path, first, second, shared=""):
    """A recipe file with the shipped pair and two stages."""
    text = (
        'run: x\nstudent: {model: "vistill:student"}\nteacher: {model: "vistill:teacher"}\n'
        f"data: {{train: diagrams}}\n{shared}stages:\n  one: {{method: opd{first}}}\n"
        f"  two: {{method: va_opd{second}}}\n"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    return Study(str(tmp_path / "recipe.yaml"), ("one", "two"), tmp_path, seeds=2)


def test_seeds_and_models_of_a_run_reach_a_stage_that_sets_its_own(tmp_path):
    own = ', seed: 7, profile: false, student.model: "vistill:student", data.diagrams.seed: 7'
    arms = stages_recipe(tmp_path, own, own).arms(Pairing(1, 1, 0), {})
    for settings in (arm.settings for arm in arms):
        assert (settings.seed, settings.data.diagrams.seed, settings.profile) == (1, 1, True)
        assert "student-1-" in settings.student.model


def test_a_stage_with_another_student_is_refused_and_no_model_is_made(tmp_path):
    mixed = stages_recipe(tmp_path, "", ', student.model: "vistill:base"')
    assert not mixed.makes_models
    with pytest.raises(ConfigError, match=r"differ in student\.model"):
        mixed.arms(Pairing(0, 0, 0), {})


def test_quick_shortens_a_stage_that_sets_its_own_length(tmp_path):
    own = ", train.steps: 500, eval.every: 50"
    quick = replace(stages_recipe(tmp_path, own, own), quick=True)
    assert [arm.settings.train.steps for arm in quick.arms(Pairing(0, 0, 0), {})] == [6, 6]


def test_the_rate_of_a_stage_is_refused_unless_rates_are_tuned(tmp_path):
    plain = stages_recipe(tmp_path, "", ", train.lr: 1.0e-5")
    with pytest.raises(ConfigError, match=r"differ in train\.lr"):
        plain.arms(Pairing(0, 0, 0), {})
    tuned = replace(plain, rates=(1e-4, 1e-5))
    assert len(tuned.arms(Pairing(0, 0, 0), {})) == 2
    rates = [a.settings.train.lr for a in tuned.arms(Pairing(0, 0, 0), {"one": 1e-4, "two": 1e-5})]
    assert rates == [1e-4, 1e-5]


def test_a_recipe_without_stages_has_no_arm_called_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "run: x\nstudent: {model: a/b}\nteacher: {model: c/d}\nmethod: opd\n"
        "data: {train: rows.jsonl}\n"
    )
    plain = Study(str(tmp_path / "recipe.yaml"), ("opd", "run"), tmp_path)
    with pytest.raises(ConfigError, match='unknown method "run"') as caught:
        plain.arms(Pairing(0, 0, 0), {})
    assert caught.value.code == "C102"


def test_a_recipe_that_never_evaluates_is_refused_before_anything_runs(tmp_path):
    never = replace(stages_recipe(tmp_path, "", ""), overrides=("eval.every=0",), quick=True)
    with pytest.raises(StorageError) as caught:
        compare.run_compare(never)
    assert caught.value.code == "S605"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    assert caught.value.fix.startswith("eval.every=")


def test_a_folder_of_another_comparison_is_refused_before_anything_runs(tmp_path):
    one_pair = replace(stages_recipe(tmp_path, "", ""), folder=tmp_path / "q", students=1)
    quick = replace(one_pair, quick=True, seeds=1).arms(Pairing(0, 0, 0), {})
    for arm in quick:
        RunFolder(arm.folder).write_lock({"recipe": json.loads(to_json(arm.settings.to_dict()))})
    compare.check_started(quick, one_pair.folder)
    with pytest.raises(ConfigError) as caught:
        compare.run_compare(one_pair)
    assert caught.value.code == "C201"
    assert "train.steps   6 -> " in caught.value.why
    assert caught.value.fix == f"run={tmp_path / 'q-2'}"
    assert not (one_pair.folder / "models").exists()


def test_a_model_by_seed_is_found_by_everything_that_decides_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTILL_CACHE", str(tmp_path / "cache"))
    models = TinyModels(tmp_path)
    assert models.source("student", 0) == "vistill:student"
    own = models.path("student", 1)
    assert own.parent == tmp_path / "cache" / "tiny-models"
    assert own != models.path("student", 2)
    changed = replace(models, student={"wrong_share": 0.3})
    assert changed.source("student", 0) != "vistill:student"
    assert changed.path("student", 1) != own
    (arm,) = models.arms("student", [0, 1, 1], tmp_path)
    assert not arm.is_finished()
    assert json.loads(arm.command[-1]) == {"seed": STUDENT.seed + 100}
    monkeypatch.setenv("VISTILL_CACHE", "off")
    assert models.path("student", 1).parent == tmp_path


def test_the_plan_of_a_model_takes_changes_of_its_fields_and_of_its_diagrams():
    changes = {"seed": 9, "versions": ["vision_only"], "side": 48, "wrong_share": 0.3}
    plan = changed_plan("student", changes)
    assert (plan.seed, plan.wrong_share, plan.settings.side) == (9, 0.3, 48)
    assert plan.settings.versions == ("vision_only",)
    assert changed_plan("student", {}) == STUDENT


def result(arm, seed, accuracy, compute=10.0, **changes):
    values = {
        "arm": arm, "seed": seed, "student": seed % 2, "teacher": seed // 2, "rate": 1e-3,
        "updates": 4, "before": 0.2, "accuracy": accuracy, "greedy": None, "compute": compute,
        "curve": ((0.0, 0.2), (compute, accuracy)), "figures": {},
    }  # fmt: skip
    return RunResult(**{**values, **changes})


def comparison(**changes):
    results = [result("opd", n, 0.5 + 0.01 * n) for n in range(4)]
    results += [result("va_opd", n, 0.6 + 0.02 * n, compute=20.0) for n in range(4)]
    return replace(Comparison(("opd", "va_opd"), tuple(results), {}, ("A note.",)), **changes)


def test_differences_are_paired_by_seed_in_both_views():
    table = comparison()
    equal = table.difference("va_opd", "opd", "equal updates")
    assert equal.mean == pytest.approx(0.1 + 0.01 * 1.5)
    assert equal.ahead == 4
    # At the compute of opd, va_opd is half of its way from 0.2.
    cheaper = table.difference("va_opd", "opd", "equal compute")
    assert cheaper.mean == pytest.approx(0.4 + 0.01 * 1.5 - 0.515)


def test_a_run_between_two_evaluations_is_on_the_line_between_them():
    run = result("opd", 0, 0.8, curve=((0.0, 0.2), (4.0, 0.6), (10.0, 0.8)))
    assert run.accuracy_at(2.0) == pytest.approx(0.4)
    assert run.accuracy_at(7.0) == pytest.approx(0.7)
    assert run.accuracy_at(10.0) == pytest.approx(0.8)
    assert run.accuracy_at(99.0) == 0.8


def test_at_an_evaluation_equal_arms_are_equal_to_the_last_digit():
    """0.2 + (0.9 - 0.2) is 0.9 less one unit in the last place, which would be a run behind."""
    curves = {"opd": ((0.0, 0.9), (10.0, 0.9)), "va_opd": ((0.0, 0.2), (10.0, 0.9))}
    runs = [result(arm, 0, 0.9, curve=curve) for arm, curve in curves.items()]
    assert runs[1].accuracy_at(0.0) == 0.2
    assert runs[1].accuracy_at(10.0) == 0.9
    table = Comparison(tuple(curves), tuple(runs), {}, ())
    for view in ("equal updates", "equal compute"):
        difference = table.difference("va_opd", "opd", view)
        assert (difference.mean, difference.ahead, difference.behind) == (0.0, 0, 0)


def test_a_skipped_update_leaves_its_figures_out_of_the_means():
    """A log has null for a number that is not finite."""
    steps = [{"loss/reverse_kl": 0.5, "va/mean": None}, {"loss/reverse_kl": None, "finite": 0.0}]
    assert mean_figures(steps) == {"loss/reverse_kl": 0.5}


def test_a_p_value_is_never_shown_as_zero():
    table = comparison(results=tuple(
        result(arm, n, accuracy + 1e-5 * n * (arm == "opd"))
        for arm, accuracy in (("opd", 0.5), ("va_opd", 0.6)) for n in range(4)
    ))  # fmt: skip
    assert "&lt; 0.001" in page(table)
    assert p_value(0.0) == "< 0.001"
    assert p_value(0.0474) == "0.047"
    assert (p_value(0.0275, 4), p_value(9e-5, 4)) == ("0.0275", "< 0.0001")
    assert p_value(float("nan")) == "-"


def test_the_best_rate_is_the_most_accurate_and_of_equal_ones_the_lower():
    runs = {
        "opd": [result("opd", 0, a, rate=r) for r, a in ((3e-4, 0.5), (1e-4, 0.5), (6e-4, 0.4))]
    }
    assert best_rates(runs) == {"opd": 1e-4}


def test_arms_that_did_not_start_alike_are_marked():
    table = comparison()
    assert table.marks() == []
    other = replace(table.results[0], before=0.25)
    (mark,) = replace(table, results=(other, *table.results[1:])).marks()
    assert "NOT MATCHED" in mark
    assert "seed 0" in mark


def test_the_files_hold_every_run_every_difference_and_no_nan(tmp_path):
    table = comparison()
    write_files(table, tmp_path)
    runs = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert len(runs) == 8
    assert float(runs[4]["accuracy_equal_compute"]) == pytest.approx(0.4)
    differences = list(csv.DictReader((tmp_path / "differences.csv").read_text().splitlines()))
    assert [(row["arm"], row["minus"], row["view"]) for row in differences] == [
        ("va_opd", "opd", "equal updates"),
        ("va_opd", "opd", "equal compute"),
    ]
    text = (tmp_path / "compare.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["notes"] == ["A note."]
    html = page(table)
    assert "va_opd minus opd" in html
    assert "<svg" in html


@pytest.mark.parametrize(
    "words", [["--methods", "opd"], ["--rates", "fast"], ["--rates", "3"], ["--models", "2"]]
)
def test_options_that_make_no_comparison_are_refused(words):
    done = CliRunner().invoke(app, ["compare", "demo.yaml", *words])
    assert done.exit_code == 2
    assert words[0] in done.output


@pytest.mark.parametrize(
    "word", ["seed=5", "data.diagrams.seed=5", "profile=false", "stages.opd.seed=5"]
)
def test_a_setting_that_the_comparison_gives_each_run_is_refused(word):
    done = CliRunner().invoke(app, ["compare", "demo.yaml", word])
    assert done.exit_code == 2
    assert word.partition("=")[0] in done.output


@pytest.mark.parametrize(
    ("words", "part"),
    [(["run="], "folder has no name"), (["--methods", "opd,a.b"], "a.b: a name has no dot")],
)
def test_a_folder_or_an_arm_without_a_usable_name_is_refused(words, part):
    done = CliRunner().invoke(app, ["compare", "demo.yaml", *words])
    assert done.exit_code == 2
    assert part in done.output


def test_the_last_folder_counts_as_in_every_verb():
    words = ["run=a", "train.lr=1e-4", "run=b=c"]
    assert split_folder(words) == (Path("b=c"), ("train.lr=1e-4",))
    assert split_folder([]) == (Path("runs/compare"), ())


def test_each_arm_is_tuned_on_seeds_of_its_own_and_then_runs_with_its_rate(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTILL_CACHE", str(tmp_path / "cache"))
    ran, best = [], {"opd": 1e-4, "va_opd": 3e-4, "grounded_opd": 6e-4}

    def read(arm, seed, student, teacher):
        rate = arm.settings.train.lr
        accuracy = 0.9 if rate == best[arm.name] else 0.5
        return result(arm.name, seed, accuracy, rate=rate, student=student, teacher=teacher)

    # What is tested is the choice of rates and seeds: 30 runs would take minutes.
    monkeypatch.setattr(compare, "run_side_by_side", lambda label, arms, *_: ran.append(arms))
    monkeypatch.setattr(compare, "read_result", read)
    monkeypatch.setattr(TinyModels, "measured", lambda *_: {"greedy": 0.9, "sampled": 0.5})
    table = compare.run_compare(study(tmp_path, rates=tuple(best.values())))
    models, tuning, compared = ran
    assert [arm.name for arm in models] == ["teacher 1", "student 1", "student 2"]
    assert {arm.seed for arm in tuning} == {1000}
    assert all("student-2-" in arm.settings.student.model for arm in tuning)
    assert len(tuning) == len(compared) == 9
    assert len({arm.folder for arm in (*tuning, *compared)}) == 18
    assert {arm.seed for arm in compared} == {0, 1, 2}
    assert table.rates == best
    assert all(arm.settings.train.lr == best[arm.settings.method] for arm in compared)
    assert "student 1: 90.0 % greedy, 50.0 % sampled when it was made." in table.notes
    assert (tmp_path / "compare.html").is_file()


def test_runs_wait_for_their_own_models_only(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTILL_CACHE", str(tmp_path / "cache"))
    whole = study(tmp_path)
    pairings = whole.pairings()
    models = compare.missing_models(whole, pairings)
    runs = compare.runs_of(whole, {pairing: whole.arms(pairing, {}) for pairing in pairings})
    assert [arm.name for arm in models] == ["teacher 1", "student 1"]
    assert [arm.name for arm in runs[::3]] == ["opd seed 0", "opd seed 1", "opd seed 2"]

    def make(kind):
        folder = whole.models.path(kind, 1)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        assert not whole.models.exists(kind, 1)  # its card is written last
        card = {"sha256": hashlib.sha256(b"weights").hexdigest()}
        (folder / "CARD.json").write_text(json.dumps(card))

    def seeds_that_start():
        return sorted({arm.seed for arm in runs if arm.ready()})

    assert seeds_that_start() == [0]
    make("teacher")  # seed 2 has it with student 0
    assert seeds_that_start() == [0, 2]
    make("student")
    assert seeds_that_start() == [0, 1, 2]
    assert compare.missing_models(whole, pairings) == []


#: The shipped pair by its folders, so that no model is made by seed.
RECIPE = """
run: x
student: {model: STUDENT}
teacher: {model: TEACHER}
method: opd
data: {train: diagrams, diagrams: {train: 64, eval: 8}}
rollout: {per_prompt: 2, max_new_tokens: 24, all_truncated: go_on}
train: {prompts_per_step: 4, steps: 8, lr: 3.0e-4}
save: {every: 0, keep_best: none}
eval: {every: 4, limit: 8, final_limit: 8, extra_limit: 8, max_new_tokens: 24, blind: false}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_comparison_goes_on_to_the_same_table(tmp_path):
    assets = REPO / "vistill" / "assets"
    recipe = RECIPE.replace("STUDENT", str(assets / "student"))
    (tmp_path / "small.yaml").write_text(recipe.replace("TEACHER", str(assets / "teacher")))
    words = ["compare", "small.yaml", "--methods", "opd,grounded_opd", "--seeds", "2"]

    def start(folder):
        command = [sys.executable, "-m", "vistill", *words, f"run={folder}"]
        with (tmp_path / f"{folder}.txt").open("w") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=output, cwd=tmp_path, start_new_session=True
            )

    killed, begun = start("a"), tmp_path / "a" / "seed-0-student-0-teacher-0" / "opd"
    while killed.poll() is None and not (begun / "metrics.jsonl").exists():
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGTERM)
    assert killed.wait(200) == 75, (tmp_path / "a.txt").read_text()
    for folder in ("a", "b"):
        assert start(folder).wait(400) == 0, (tmp_path / f"{folder}.txt").read_text()
    for name in ("runs.csv", "differences.csv", "compare.html"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    runs = list(csv.DictReader((tmp_path / "a" / "runs.csv").read_text().splitlines()))
    assert len(runs) == 4
    assert {float(row["updates"]) for row in runs} == {8.0}
    assert all(float(row["compute"]) > 0 for row in runs)
    assert len({(row["seed"], row["before"]) for row in runs}) == 2
    printed = (tmp_path / "a.txt").read_text()
    assert "grounded_opd minus opd" in printed
    assert "misread/rollout_share" in (tmp_path / "a" / "compare.html").read_text()
