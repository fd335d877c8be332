"""Errors of the Python functions: the fix is Python, and its names exist."""

import inspect
import subprocess
import sys

import pytest

import vistill
from vistill.config import load_recipe
from vistill.errors import ConfigError, VistillError
from vistill.python_fixes import GROUPS, INNER, fix_in_python
from vistill.training.recipe import Recipe

OPTIONS = (*vistill.DistillOptions.__annotations__, "student", "teacher", "prompts", "objective",
           "out")  # fmt: skip
CASES = {
    "train.lr=1e-06 --accept train.lr   or in a new run:   train.precision=fp32 run='runs/a b'": (
        "vistill.distill(..., train=vistill.TrainSettings(lr=1e-06), accept=['train.lr'])"
        "   or in a new run:   "
        "vistill.distill(..., train=vistill.TrainSettings(precision='fp32'), out='runs/a b')"
    ),
    "rollout.per_prompt=4   or, on purpose,   va_opd.rollout_weights=false": (
        "vistill.distill(..., rollout=vistill.RolloutSettings(per_prompt=4))   or, on purpose,   "
        "vistill.distill(..., objective=vistill.VAOPD(rollout_weights=False))"
    ),
    "a stronger teacher:   teacher.model=FOLDER_OR_HUB_ID": (
        "a stronger teacher:   vistill.distill(..., teacher=vistill.load(FOLDER_OR_HUB_ID))"
    ),
    "train.freeze=[vision,head]": (
        "vistill.distill(..., train=vistill.TrainSettings(freeze=['vision', 'head']))"
    ),
    "train.schedule.min_lr=0": (
        "vistill.distill(..., train=vistill.TrainSettings("
        "schedule=vistill.ScheduleSettings(min_lr=0)))"
    ),
    "'reward.extra.short=0.5'   in place of reward.extra.shart": (
        "vistill.distill(..., reward=vistill.RewardSettings(extra={'short': 0.5}))"
    ),
    "student.lora.rank=8   or   student.train=full": (
        "vistill.distill(..., student=vistill.load(..., lora=vistill.LoraSettings(rank=8)))"
        "   or   student.train=full"
    ),
    "teachers.math.model=FOLDER_OR_HUB_ID": (
        "vistill.distill(..., teacher={'math': vistill.load(FOLDER_OR_HUB_ID)})"
    ),
    "data.sets.one.weight=2": "data.sets.one.weight=2",
    "teachers.math=null   or   teachers.art=null": "teachers.math=null   or   teachers.art=null",
    "eval.limit=5": "vistill.distill(..., evaluation=vistill.EvalSettings(limit=5))",
    "data.columns.answer=COLUMN, or remove these rows": (
        "vistill.distill(..., prompts=vistill.load_prompts(..., answer=COLUMN))"
        "   or remove these rows"
    ),
    "method=distillm   or   --plugin 'my file.py'": (
        'vistill.distill(..., objective=vistill.METHODS["distillm"]())   or   '
        "vistill.distill(..., plugins=['my file.py'])"
    ),
    "free space and run the same command again": "free space and run the same command again",
    "vistill eval runs/x   or   train.lr=1": (
        "vistill eval runs/x   or   vistill.distill(..., train=vistill.TrainSettings(lr=1))"
    ),
}


@pytest.mark.parametrize("fix", CASES)
def test_settings_become_arguments(fix):
    assert fix_in_python(fix, "distill", OPTIONS) == CASES[fix]


def test_every_group_of_a_recipe_has_its_class_in_vistill():
    hints = inspect.get_annotations(Recipe)
    for group, (argument, kind) in GROUPS.items():
        assert hints[group].__name__ == kind
        assert argument in vistill.DistillOptions.__annotations__
        assert getattr(vistill, kind) is hints[group]
    assert all(kind in vistill.__all__ for kind in INNER.values())


def test_settings_classes_are_imported_without_torch():
    names = [kind for _, kind in GROUPS.values()]
    code = f"import sys, vistill\n[getattr(vistill, n) for n in {names}]\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("options", "fix"), [
    ({"lr": 1}, "vistill.distill(..., train=vistill.TrainSettings(lr=1))   in place of lr="),
    ({"learning_rate": 1}, "train=vistill.TrainSettings(lr=1))   in place of learning_rate="),
    ({"min_lr": 0.1}, "schedule=vistill.ScheduleSettings(min_lr=0.1)))   in place of min_lr="),
    ({"temperature": 1}, "rollout=vistill.RolloutSettings(temperature=1))   in place of"),
    ({"eval": 1}, "vistill.distill(..., evaluation=...)   in place of eval="),
    ({"zebra": 1}, "leave zebra out"),
])  # fmt: skip
def test_a_setting_in_place_of_an_option_of_distill_names_its_class(options, fix, tmp_path):
    with pytest.raises(ConfigError) as caught:
        vistill.distill(None, None, [], None, tmp_path / "run", **options)
    assert caught.value.code == "C001"
    assert fix in caught.value.fix


def test_distill_generate_export_and_judge_print_python(student, teacher, tmp_path):
    prompts = vistill.load_prompts("diagrams")[:4]
    settings = vistill.TrainSettings(prompts_per_step=64)

    def fix_of(function):
        with pytest.raises(VistillError) as caught:
            function()
        assert caught.value.fix in str(caught.value)
        return caught.value.fix

    assert fix_of(
        lambda: vistill.distill(
            student, teacher, prompts, vistill.OPD(), tmp_path / "run", train=settings,
            progress=lambda record: None,
        )
    ) == "vistill.distill(..., train=vistill.TrainSettings(prompts_per_step=4))"  # fmt: skip
    assert fix_of(lambda: vistill.generate("vistill:studnt", prompts)) == (
        "vistill.load('vistill:student')"
    )
    assert fix_of(lambda: vistill.judge("1", "1", checker="maths")) == (
        "vistill.judge(..., checker='math')"
    )
    file = tmp_path / "rows.jsonl"
    file.write_text('{"frage": "?", "images": [], "answer": "1"}\n')
    assert fix_of(lambda: vistill.load_prompts(file)).startswith(
        "vistill.load_prompts(..., prompt=COLUMN)   one of: frage, images, answer"
    )
    run = vistill.Run("vistill:student")
    assert fix_of(lambda: run.export(dtype="fp8")).startswith(
        "vistill.Run('vistill:student').export(..., dtype='bf16')   or   vistill.Run("
    )
    assert fix_of(lambda: run.export(to=tmp_path)) == (
        f"vistill.Run('vistill:student').export(..., to='{tmp_path}-2')"
    )


@pytest.mark.parametrize(("kind", "values", "fix"), [
    ("TrainSettings", {"lr": "a"}, "vistill.TrainSettings(lr=1e-06)"),
    ("TrainSettings", {"freeze": "a"}, "vistill.TrainSettings(freeze=[])"),
    ("RewardSettings", {"checker": "maths"}, "vistill.RewardSettings(checker='math')"),
    ("RolloutSettings", {"engine": "shard"}, "vistill.RolloutSettings(engine='shared')"),
    ("EvalSettings", {"limit": 0}, "vistill.EvalSettings(limit=400)"),
    ("ScheduleSettings", {"warmup": "5%"},
     "vistill.TrainSettings(schedule=vistill.ScheduleSettings(warmup=0.05))"),
])  # fmt: skip
def test_a_wrong_value_of_a_settings_class_gets_its_constructor(kind, values, fix):
    with pytest.raises(ConfigError) as caught:
        getattr(vistill, kind)(**values)
    assert caught.value.fix.partition("(")[0] == fix.partition("(")[0]
    expression = eval(caught.value.fix, {"vistill": vistill})
    assert type(expression).__name__ in fix
    if "limit" not in values:
        assert caught.value.fix == fix


def test_a_recipe_keeps_the_fixes_of_the_command_line(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "run: x\nstudent: {model: a}\nteacher: {model: b}\nmethod: grpo\n"
        "data: {train: diagrams}\nreward: {checker: maths}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(file)
    assert caught.value.fix == "reward.checker=math"
