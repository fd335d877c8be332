"""Matched arms: allowed differences, finished runs, pairing by seed and question."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from vistill.config import load_stages
from vistill.errors import (
    CATALOGUE,
    KINDS,
    ConfigError,
    StorageError,
    VistillError,
    error_from_dict,
)
from vistill.runs.storage import to_json
from vistill.studies.arms import (
    Arm,
    check_matched,
    compare_arms,
    make_arms,
    setting_differences,
    unmatched_sentence,
)

RECIPE = """
run: {run}
seed: {seed}
student: {{model: "vistill:student"}}
teacher: {{model: "vistill:teacher"}}
data: {{train: diagrams, diagrams: {{train: 8, eval: 4, seed: {seed}}}}}
stages:
  opd: {{method: opd}}
  va_opd: {{method: va_opd, va_opd: {{high_share: 0.3}}, train.memory: 2.0, save: {{every: 7}}}}
"""


def arms_in(folder, *overrides, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(run=folder, seed=seed))
    return make_arms(str(recipe), overrides)


def write_evaluation(arm, scores, step=8):
    """Write the last evaluation of an arm: one greedy and two sampled answers per question."""
    (arm.folder / "samples").mkdir(parents=True, exist_ok=True)
    accuracy = sum(sum(pair) / 2 for pair in scores.values()) / len(scores)
    (arm.folder / "evaluations.jsonl").write_text(
        to_json({"step": step, "accuracy": accuracy}) + "\n"
    )
    lines = []
    for prompt, pair in scores.items():
        answers = [("full", "greedy", 0), ("text_only", "sampled", 0)]
        answers += [("full", "sampled", correct) for correct in pair]
        lines += [
            {"prompt": prompt, "view": view, "mode": mode, "correct": bool(correct)}
            for view, mode, correct in answers
        ]
    (arm.folder / "samples" / f"step-{step:06d}.jsonl").write_text(
        "".join(to_json(line) + "\n" for line in lines)
    )


def test_every_stage_is_an_arm_with_the_command_that_trains_it_alone(tmp_path):
    arms = arms_in(tmp_path, "train.lr=1e-5")
    assert [arm.name for arm in arms] == ["opd", "va_opd"]
    assert [arm.folder for arm in arms] == [tmp_path / "opd", tmp_path / "va_opd"]
    train = ("-m", "vistill", "train", str(tmp_path / "recipe.yaml"))
    assert arms[1].command[1:] == (*train, "train.lr=1e-5", "--stage", "va_opd")
    assert arms[0].settings.train.lr == 1e-5


def test_the_method_its_knobs_and_settings_without_effect_on_numbers_may_differ(tmp_path):
    opd, va_opd = arms_in(tmp_path)
    assert setting_differences(opd, va_opd) == []
    check_matched([opd, va_opd])


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ("stages.va_opd.eval.limit=3", ["eval.limit"]),
        ("stages.va_opd.student.model=other", ["student.model"]),
        ("stages.va_opd.teacher.model=other", ["teacher.model"]),
        ("stages.va_opd.seed=5", ["seed"]),
        ("stages.va_opd.data.diagrams.eval=9", ["data.diagrams.eval"]),
        ("stages.va_opd.train.lr=0.5", ["train.lr"]),
        ("stages.va_opd.views.pixelate=0.3", ["views.pixelate"]),
    ],
)
def test_any_other_difference_is_an_error_and_its_fix_makes_the_arms_match(tmp_path, change, keys):
    arms = arms_in(tmp_path, change)
    with pytest.raises(ConfigError) as caught:
        check_matched(arms)
    assert caught.value.code == "C301"
    assert all(key in caught.value.what for key in keys)
    check_matched(arms_in(tmp_path, change, *caught.value.fix.splitlines()))
    check_matched(arms, varies=[keys[0].split(".")[0]])


def test_the_sentence_names_the_arms_that_do_not_match():
    arms = make_arms(str(REPO / "recipes" / "every_method.yaml"))
    sentence = unmatched_sentence(arms, arms[0], varies=("views",))
    assert sentence.endswith("visual_opsd, vision_opd (different student.model, teacher.model)")
    matched = [arm for arm in arms if arm.settings.student.model == "vistill:student"]
    assert len(matched) == len(arms) - 2
    assert unmatched_sentence(matched, arms[0], varies=("views",)) == ""


def test_the_arms_of_the_demo_match():
    check_matched(make_arms(str(REPO / "recipes" / "demo.yaml")))


def test_an_arm_is_finished_if_its_folder_holds_the_finished_run_of_its_recipe(tmp_path):
    arm = arms_in(tmp_path)[0]
    assert not arm.is_finished()
    arm.folder.mkdir()
    (arm.folder / "run.lock.json").write_text(to_json({"recipe": arm.settings.to_dict()}))
    assert not arm.is_finished()
    (arm.folder / "result.json").write_text('{"finished": false}')
    assert not arm.is_finished()
    (arm.folder / "result.json").write_text('{"finished": true}')
    assert arm.is_finished()
    assert not arms_in(tmp_path, "eval.limit=1")[0].is_finished()
    assert not arms_in(tmp_path, "train.lr=1.0")[0].is_finished()


def test_two_methods_are_paired_by_seed_and_question(tmp_path):
    seeds = [arms_in(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    (opd_0, va_0), (opd_1, va_1) = seeds
    write_evaluation(opd_0, {"a": (0, 0), "b": (1, 1)})
    write_evaluation(va_0, {"b": (1, 1), "a": (1, 0)})
    write_evaluation(opd_1, {"c": (0, 1), "d": (0, 0)})
    write_evaluation(va_1, {"c": (1, 1), "d": (1, 0)})
    comparison = compare_arms([opd_0, opd_1], [va_1, va_0])
    assert (comparison.base, comparison.other, comparison.seeds) == ("opd", "va_opd", (0, 1))
    assert comparison.accuracy == {"opd": [0.5, 0.25], "va_opd": [0.75, 0.75]}
    assert comparison.differences == [0.25, 0.5]
    assert comparison.mean == 0.375
    assert comparison.deviation == pytest.approx(0.25 / 2**0.5)
    assert comparison.scores["va_opd"] == [{"a": 0.5, "b": 1.0}, {"c": 1.0, "d": 0.5}]
    assert compare_arms([opd_0], [va_0]).deviation is None


def test_the_lines_of_a_comparison_over_seeds(tmp_path):
    from vistill.studies.demo import seed_lines

    arms = [arms_in(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    for number, (opd, va_opd) in enumerate(arms):
        write_evaluation(opd, {"a": (0, 1), "b": (0, 0)})
        write_evaluation(va_opd, {"a": (1, number), "b": (1, 0)})
    assert seed_lines(compare_arms(*zip(*arms, strict=True))) == [
        "   opd: 25.0 %, 25.0 %",
        "   va_opd: 50.0 %, 75.0 %",
        "   va_opd minus opd, paired: +37.5 points, standard deviation 17.7 over 2 seeds",
    ]


def test_different_questions_or_seeds_and_missing_evaluations_are_errors(tmp_path):
    (opd, va_opd), (other, _) = arms_in(tmp_path / "0"), arms_in(tmp_path / "1", seed=1)
    write_evaluation(opd, {"a": (0, 0), "b": (1, 1)})
    with pytest.raises(StorageError) as missing:
        compare_arms([opd], [va_opd])
    assert missing.value.code == "S605"
    write_evaluation(va_opd, {"a": (0, 0), "c": (1, 1)})
    with pytest.raises(ConfigError, match="2 of 3 questions") as caught:
        compare_arms([opd], [va_opd])
    assert caught.value.code == "C301"
    write_evaluation(other, {"a": (0, 0)})
    with pytest.raises(ConfigError, match="different seeds"):
        compare_arms([opd], [other])
    with pytest.raises(ConfigError, match="different seeds"):
        compare_arms([opd], [va_opd, other])


@pytest.mark.parametrize("code", list(CATALOGUE))
def test_an_error_from_another_process_is_restored_unchanged(code):
    error = KINDS[code[0]](code, "what", where="where", why="why", fix="fix", note="note")
    restored = error_from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(restored) is type(error)
    assert restored.to_dict() == error.to_dict()
    assert restored.render() == error.render()


def test_every_kind_of_error_has_a_letter():
    assert set(KINDS.values()) == set(VistillError.__subclasses__())
    assert set(KINDS) == {code[0] for code in CATALOGUE}


def test_the_parent_process_of_the_arms_imports_no_torch():
    modules = "vistill.studies.demo, vistill.studies.stages, vistill.studies.methods"
    program = f"import sys, {modules}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPO, check=False).returncode == 0


def test_the_table_of_methods_needs_the_stage_opd(tmp_path):
    from vistill.studies.methods import run_methods

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        RECIPE.format(run=tmp_path / "r", seed=0).replace("  opd: {method: opd}\n", "")
    )
    with pytest.raises(ConfigError, match="no stage `opd`"):
        run_methods(str(recipe), [], print)


def test_an_arm_without_a_recipe_defines_when_it_is_done(tmp_path):
    assert not Arm("a", Path(tmp_path)).is_finished()
    assert Arm("a", Path(tmp_path), done=lambda: True).is_finished()


def test_stages_are_trained_in_order_and_a_failure_ends_the_study(tmp_path, monkeypatch):
    from vistill import api
    from vistill.studies.arms import train_in_order

    trained = []

    def train(recipe, **options):
        trained.append((recipe.method, options["accept"]))
        options["progress"]({"step": 1})
        if len(trained) == 2:
            raise ConfigError("C101", "x", fix="y")
        return api.Run(Path(recipe.run))

    # the order of the arms is tested, not their training
    monkeypatch.setattr(api, "train", train)
    arms = [*arms_in(tmp_path), *arms_in(tmp_path)]
    finished, shown = [], []
    with pytest.raises(ConfigError):
        finished += [arm.name for arm, _ in train_in_order(arms, shown.append, ["train.lr"])]
    assert trained == [("opd", ["train.lr"]), ("va_opd", ["train.lr"])]
    assert shown[1:] == [{"stage": "opd", "step": 1}, {"stage": "va_opd", "step": 1}]
    assert load_stages(tmp_path / "recipe.yaml")["opd"] == arms[0].settings


def test_progress_names_the_stage_and_begins_anew_with_each(capsys):
    from vistill.display.run_display import RunDisplay

    step = {"step": 1, "steps": 2, "loss": 1.0, "rollout/tokens": 5, "seconds": 1.0}
    with RunDisplay(ticks=False) as display:
        for stage, accuracy in (("opd", 0.5), ("va_opd", 0.25), ("", 0.75)):
            name = {"stage": stage} if stage else {}
            display.show(name | {"event": "an event"})
            display.show(name | {"step": 0, "steps": 2, "eval/accuracy": accuracy})
            display.show(name | step)
            display.show(name | step | {"step": 2})
    lines = capsys.readouterr().err.splitlines()
    words = [line.split()[0] for line in lines]
    assert words == ["opd"] * 4 + ["va_opd"] * 4 + ["an", "step", "step", "step"]
    shown = [re.search("accuracy ([0-9.]+) %", line)[1] for line in lines if "loss" in line]
    assert shown == ["50.0"] * 2 + ["25.0"] * 2 + ["75.0"] * 2


@pytest.mark.parametrize(
    ("verb", "study"), [("demo", "demo.run_demo"), ("methods", "methods.run_methods")]
)
def test_a_signal_between_two_arms_ends_the_verb_with_exit_code_and_message(
    verb, study, monkeypatch, capsys
):
    from vistill.cli.main import entry
    from vistill.studies import demo, methods

    # a study that only sends the signal
    monkeypatch.setattr(
        {"demo": demo, "methods": methods}[verb],
        study.split(".")[1],
        lambda *words, **options: signal.raise_signal(signal.SIGTERM),
    )
    with pytest.raises(SystemExit) as stop:
        entry([verb])
    assert stop.value.code == 75
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "stopped by SIGTERM"
    assert lines[1] == f"run the same command again to continue:   vistill {verb}"
