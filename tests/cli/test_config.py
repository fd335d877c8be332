"""The recipe: strict, typed, with errors that teach."""

import shlex

import pytest

from vistill.config import compare_recipes, key_class, load_recipe, load_stages
from vistill.errors import ConfigError

GOOD = """\
run: runs/x
student: {model: a}
teacher: {model: b}
method: va_opd
va_opd: {high_share: 0.3}
train:
  lr: 1e-5
  schedule: {kind: linear}
data: {train: diagrams}
"""


def recipe(tmp_path, text=GOOD, overrides=()):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


def caught(tmp_path, text=GOOD, overrides=()):
    with pytest.raises(ConfigError) as error:
        recipe(tmp_path, text, overrides)
    rendered = error.value.render()
    assert len(rendered.splitlines()) <= 12
    assert error.value.exit_code == 2
    return error.value


def test_a_recipe_is_read_typed_and_overridden(tmp_path):
    loaded = recipe(
        tmp_path,
        overrides=[
            "train.lr=2e-6",
            "va_opd.tie_rule=random",
            "seed=7",
            "data.columns.prompt=problem",
        ],
    )
    assert loaded.train.lr == 2e-6
    assert loaded.knobs == {"high_share": 0.3, "tie_rule": "random"}
    assert loaded.train.schedule.kind == "linear"
    assert loaded.seed == 7
    assert loaded.data.columns.prompt == "problem"


def test_toml_is_accepted_by_suffix(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('run = "x"\nmethod = "opd"\n[student]\nmodel = "a"\n[teacher]\nmodel = "b"\n')
    assert load_recipe(path).method == "opd"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("lr: 1e-5", "learning_rat: 1e-5"), "C001", ["train.learning_rat", "r.yaml:7"]),
        (("high_share", "high_shares"), "C001", ["va_opd.high_shares", "high_share", "r.yaml:5"]),
        (("lr: 1e-5", "lr: fast"), "C002", ["train.lr", "r.yaml:7"]),
        (("high_share: 0.3", "high_share: many"), "C002", ["va_opd.high_share"]),
        (("method: va_opd", "method: va_odp"), "C102", ["va_opd"]),
        (("va_opd: {high_share: 0.3}", "opd: {x: 1}"), "C101", ["opd"]),
        (("teacher: {model: b}\n", ""), "C101", ["teacher"]),
        (("run: runs/x\n", ""), "C002", ["run"]),
        (("run: runs/x", "run: runs/x\nrun: runs/y"), "C003", ["twice", "r.yaml:2"]),
        (("run: runs/x", "run: &a runs/x"), "C003", ["anchors"]),
        (("run: runs/x", "run: !!python/object:os.system x"), "C003", ["tags"]),
        (("data: {train: diagrams}", "data: {<<: {train: x}}"), "C003", ["merge"]),
        (("train: diagrams", "train: diagrams, on_bad_row: skip"), "C002", ["on_bad_row"]),
    ],
)
def test_mistakes_have_code_place_and_fix(tmp_path, change, code, words):
    assert change[0] in GOOD
    error = caught(tmp_path, GOOD.replace(*change))
    assert error.code == code
    for word in words:
        assert word in error.render(), error.render()


def test_one_rollout_with_sibling_weights_is_refused_and_the_fixes_work(tmp_path):
    error = caught(tmp_path, overrides=["rollout.per_prompt=1"])
    assert error.code == "C103"
    assert recipe(tmp_path, overrides=["rollout.per_prompt=4"])
    assert recipe(tmp_path, overrides=["rollout.per_prompt=1", "va_opd.rollout_weights=false"])


def test_numbers_and_words_mean_what_they_look_like(tmp_path):
    text = GOOD.replace("run: runs/x", "run: no").replace("train: diagrams", "train: 12:30")
    loaded = recipe(tmp_path, text)
    assert loaded.run == "no"
    assert loaded.data.train == "12:30"
    assert loaded.train.lr == 1e-5


@pytest.mark.parametrize("override", ["train.lr", "=3", "train lr=3", "method.x=3", "seed=[1"])
def test_overrides_that_cannot_be_read_are_explained(tmp_path, override):
    assert caught(tmp_path, overrides=[override]).code in ("C005", "C102")


@pytest.mark.parametrize(
    "override",
    ["va_opd.high_share=2", "va_opd.high_weight=5", "va_opd.rollout_temperature=0",
     "rollout.temperature=-1", "train.steps=-1", "train.steps=0", "eval.samples=0", "train.lr=-1",
     "rollout.max_new_tokens=0", "rollout.per_prompt=0", "rollout.top_p=0",
     "train.prompts_per_step=0", "train.clip_norm=0", "views.pixelate=0", "save.keep=0",
     "data.max_bad_share=2"],
)  # fmt: skip
def test_values_out_of_range_are_refused_with_a_fix_that_works(tmp_path, override):
    error = caught(tmp_path, overrides=[override])
    assert error.code == "C002"
    assert override.split("=")[0] in error.render()
    if error.fix.startswith(override.split("=")[0]) and "VALUE" not in error.fix:
        assert recipe(tmp_path, overrides=[error.fix])


@pytest.mark.parametrize(
    "override",
    [
        "rollout.engine=vlm",
        "views.thought=daat",
        "eval.task=x",
        "eval.checker=x",
        "reward.checker=answer",
    ],
)
def test_names_that_stand_for_nothing_are_refused_with_a_fix_that_works(tmp_path, override):
    error = caught(tmp_path, overrides=[override])
    assert error.code == "C105"
    assert override.split("=")[0] in error.what
    assert "--plugin" in error.why
    assert recipe(tmp_path, overrides=[error.fix])


def test_an_unknown_reward_is_refused_with_a_fix_that_works(tmp_path):
    error = caught(tmp_path, overrides=["reward.extra.mine=0.5"])
    assert (error.code, error.fix) == ("C105", "reward.extra={}")
    assert recipe(tmp_path, overrides=["reward.extra={}"])


def test_ranges_hold_in_python_too():
    from vistill.objectives import VAOPD
    from vistill.training.settings import TrainSettings

    for make in (
        lambda: VAOPD(high_share=2.0),
        lambda: VAOPD(rollout_temperature=0.0),
        lambda: TrainSettings(lr=-1),
    ):
        with pytest.raises(ConfigError):
            make()


def test_names_that_other_trainers_taught_are_translated(tmp_path):
    assert 'did you mean "lr"' in caught(tmp_path, overrides=["train.learning_rate=1"]).render()


def test_a_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(ConfigError) as error:
        load_recipe("dmo.yaml")
    assert error.value.code == "C004"
    assert "demo.yaml" in error.value.render()


def test_stages_share_the_base_and_name_each_other(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "run: R\nmethod: sft\nstudent: {model: a}\nstages:\n  warm: {}\n"
        "  opd: {method: opd, student: {model: '{run}/warm'}, teacher: {model: t}}\n"
    )
    stages = load_stages(path, ["seed=3"])
    assert list(stages) == ["warm", "opd"]
    assert stages["opd"].student.model == "R/warm"
    assert stages["opd"].run == "R/opd"
    assert {r.seed for r in stages.values()} == {3}


def test_the_shared_part_of_a_recipe_can_name_the_student_of_a_stage(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "run: R\nmethod: opd\nstudent: {model: a}\nteacher: {model: '{run}/teacher'}\nstages:\n"
        "  teacher: {method: sft, teacher: {model: ''}}\n  opd: {}\n"
    )
    stages = load_stages(path, ["run=S"])
    assert stages["opd"].teacher.model == "S/teacher" == stages["teacher"].run
    assert stages["teacher"].teacher.model == ""


def test_changed_settings_on_resume_are_refused_accepted_or_free(tmp_path):
    old = recipe(tmp_path).to_dict()
    free = recipe(tmp_path, overrides=["save.every=7", "train.micro_batch=2"]).to_dict()
    assert compare_recipes(old, free) == []
    schedule = recipe(tmp_path, overrides=["train.lr=3e-5"]).to_dict()
    with pytest.raises(ConfigError) as error:
        compare_recipes(old, schedule)
    assert error.value.code == "C201"
    assert "--accept train.lr" in error.value.fix
    assert compare_recipes(old, schedule, ["train.lr"]) == ["train.lr"]
    with pytest.raises(ConfigError) as error:
        compare_recipes(
            old,
            recipe(tmp_path, overrides=["rollout.temperature=0.9"]).to_dict(),
            ["rollout.temperature"],
        )
    assert "rollout.temperature" in error.value.render()


def test_every_key_has_a_class():
    assert key_class("student.model") == "identity"
    assert key_class("train.schedule.kind") == "schedule"
    assert key_class("eval.limit") == "free"


def test_init_writes_a_recipe_that_parses(tmp_path, monkeypatch):
    from vistill.cli.init import write_recipe

    monkeypatch.chdir(tmp_path)
    for name in ("va-opd", "opd", "sft"):
        write_recipe(name, "s", "t", "d.jsonl")
        loaded = load_recipe(tmp_path / f"{name.replace('-', '_')}.yaml")
        assert loaded.method == name.replace("-", "_")
    with pytest.raises(ConfigError):
        write_recipe("opd", "s", "t", "d.jsonl")


def test_a_setting_that_a_stage_makes_itself_is_kept_and_named(capsys):
    from conftest import REPO

    from vistill.studies.stages import warn_stage_settings

    warn_stage_settings(
        str(REPO / "recipes" / "every_method.yaml"),
        ["student.model=x", "train.steps=2"],
        ["opd", "visual_opsd"],
    )
    assert capsys.readouterr().err.splitlines() == [
        "stage visual_opsd sets student.model itself; to change it: "
        "stages.visual_opsd.student.model=..."
    ]


def test_a_number_with_thousands_of_digits_is_an_error_with_a_code_not_a_crash(tmp_path):
    assert caught(tmp_path, GOOD + f"seed: {'9' * 5000}\n").code == "C003"
    assert caught(tmp_path, overrides=[f"seed={'9' * 5000}"]).code == "C005"


@pytest.mark.parametrize("stages", ["{a: 5}", "[a]", "a", "{}", "{a: {method: [1]}}"])
def test_stages_that_are_no_mapping_of_keys_are_refused(tmp_path, stages):
    error = caught(tmp_path, GOOD + f"stages: {stages}\n")
    assert error.code in ("C002", "C102")


@pytest.mark.parametrize("folder", ["", " "])
@pytest.mark.parametrize("stages", ["", "stages: {a: {seed: 1}}\n"])
def test_a_run_folder_without_a_name_is_refused_and_no_stage_is_put_at_the_root(
    tmp_path, folder, stages
):
    (tmp_path / "r.yaml").write_text(GOOD + stages)
    with pytest.raises(ConfigError) as error:
        load_stages(tmp_path / "r.yaml", {"run": folder})
    assert (error.value.code, error.value.what) == ("C002", f'run cannot be "{folder}"')
    assert "text that is not blank" in error.value.why


def test_an_error_over_two_keys_names_them_in_full_with_a_fix_that_works(tmp_path):
    error = caught(tmp_path, overrides=["train.schedule.min_lr=1"])
    assert error.what.startswith("train.schedule.min_lr = 1")
    assert recipe(tmp_path, overrides=["train.schedule.min_lr=1", error.fix])
    (fix,) = shlex.split(caught(tmp_path, overrides=["reward.pattern=("]).fix)
    assert fix.startswith("reward.pattern=")
    assert recipe(tmp_path, overrides=["reward.pattern=(", fix])


def test_a_group_may_be_empty_and_knobs_stand_under_the_methods_name_alone(tmp_path):
    assert recipe(tmp_path, GOOD + "eval:\n").eval.every == 50
    assert caught(tmp_path, GOOD + "knobs: {high_share: 0.1}\n").code == "C001"


MISTAKES = {
    "run: r\n student:\n   model: x\n": ("r.yaml:2", "begin the line with 0 spaces"),
    "run: r\nstudent:\n  model: x\n   device: cpu\n": ("r.yaml:4", "with 0 or 2 spaces"),
    "run: r\ndata:\n  train: a\n eval: b\n": ("r.yaml:4", "with 0 or 2 spaces"),
    "run: r\nstudent: {model: x\nmethod: opd\n": ("r.yaml:2", "write the closing }"),
    "run: r: s\n": ("r.yaml:1", 'write   run: "r: s"'),
    'run: "r\nmethod: opd\n': ("r.yaml:1", "write the closing quote"),
    "run r\nmethod: opd\n": ("r.yaml:1", "key: value"),
    "run:r\nmethod: opd\n": ("r.yaml:1", "key: value"),
    "run: r\nmethod: @opd\n": ("r.yaml:2", "put the value into quotes"),
    "data:\n  template: {prompt}\\n{choices}\n": (
        "r.yaml:2",
        'write   template: "{prompt}\\n{choices}"',
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_yaml_is_named_with_its_own_line_and_fix(tmp_path, text):
    where, fix = MISTAKES[text]
    error = caught(tmp_path, text)
    assert (error.code, error.where) == ("C003", where)
    assert fix in error.fix


def test_knobs_of_another_method_on_the_command_line_are_left_out_of_it(tmp_path):
    error = caught(tmp_path, GOOD, ["vgs.gamma=2"])
    assert (error.code, error.where) == ("C101", "command line")
    assert error.fix.startswith("the same command without vgs.gamma   or   method=vgs")
    error = caught(tmp_path, GOOD + "vgs: {gamma: 2}\n")
    assert error.fix.startswith("method=vgs   or   sed -i.bak 10d ")
