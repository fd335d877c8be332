"""A misspelt key in a recipe file: the printed `sed` changes this key and nothing else."""

import re
import shutil
import subprocess

import pytest
import yaml

from vistill.config import load_recipe, load_stages
from vistill.errors import ConfigError
from vistill.schema.file_repairs import delete_command, rename_command
from vistill.strict_yaml import parse_text

START = """\
run: runs/x
student: {model: a}
teacher: {model: b}
method: va_opd
"""


def repair(tmp_path, text, path, new=""):
    """The tree of a file after the command ran, and the command."""
    file = tmp_path / "it's ä.yaml"
    file.write_bytes(text.encode())
    plain = file.read_text(encoding="utf-8-sig")
    command = rename_command(plain, file, path, new) if new else delete_command(plain, file, path)
    if command:
        assert shutil.which("sed")
        subprocess.run(["bash", "-c", command], check=True)
        assert (tmp_path / "it's ä.yaml.bak").read_bytes() == text.encode()
    return parse_text(file.read_text(encoding="utf-8-sig"), file), command


@pytest.mark.parametrize("text", [
    "a: {lrr: 1, x: 2}",
    "a:\n  lrr: 1\n  x: 2\n",
    "a:\r\n  lrr: 1\r\n  x: 2\r\n",
    "\ufeffa: {lrr: 1, x: 2}",
    'a: {"lrr": 1, x: 2}',
    "a:\n  'lrr' : 1 # lrr: 3\n  x: 2",
    "# lrr: 1\nlr: {lrr: 9}\na: {xlrr: 3, lrr: 1, x: 2}",
])  # fmt: skip
def test_a_key_is_renamed_where_it_stands(tmp_path, text):
    before = parse_text(text.lstrip("\ufeff"), tmp_path / "r.yaml")
    tree, command = repair(tmp_path, text, ("a", "lrr"), "lr")
    assert command.startswith("sed -i.bak ")
    before["a"]["lr"] = before["a"].pop("lrr")
    assert tree == before


@pytest.mark.parametrize(("text", "left"), [
    ("z: {a: 1, b: [2, 3]}\nx: 1", {"x": 1}),
    ("z:\n  a: 1\n  b:\n    - 2\n    - 3\n\n# end\nx: 1", {"x": 1}),
    ("x: 1\nz: |\n  a\n  b\ny: 2", {"x": 1, "y": 2}),
    ("x: 1\nz: 'a\n  b'\ny: 2", {"x": 1, "y": 2}),
    ("x: {y: 1, z: {a: 1}, b: 2}", {"x": {"y": 1, "b": 2}}),
    ("x: {y: 1, z: 3}", {"x": {"y": 1}}),
    ("x: {z: 3, y: 1}", {"x": {"y": 1}}),
    ("x: {z: 3}\ny: 2", {"y": 2}),
    ("x:\n  z: 3\ny: 2", {"y": 2}),
])  # fmt: skip
def test_a_key_is_deleted_with_its_value(tmp_path, text, left):
    path = ("x", "z") if "x: {" in text or "x:\n" in text else ("z",)
    tree, command = repair(tmp_path, text, path)
    assert command
    assert tree == left


@pytest.mark.parametrize("text", [
    "a: {lrr: 1, lr: 2}",
    "a: {lrr\n  : 1}",
    "a:\n  lrr: 1\u2028  # b\n",
])  # fmt: skip
def test_what_would_become_another_recipe_is_not_proposed(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    command = rename_command(text, tmp_path / "r.yaml", ("a", "lrr"), "lr")
    assert command == "" or "lr\n" not in text


def test_a_stage_keeps_its_name_when_its_only_key_goes(tmp_path):
    text = "stages:\n  one:\n    zebra: 1\n  two: {method: opd}\n"
    tree, _ = repair(tmp_path, text, ("stages", "one", "zebra"))
    assert [*tree["stages"]] == ["one", "two"]


def test_one_fix_after_the_other_gives_a_sound_recipe(tmp_path):
    """Every kind of unknown key in one file, with stages; each fix is pasted as it is printed."""
    file = tmp_path / "r.yaml"
    file.write_text(
        START + "data: {train: diagrams, imges: x}\nper_prompt: 3\ntrian:\n  lr: 2e-5\n"
        "train:\n  learning_rate: 1e-4\n  steps: 1\nwandb: {project: a}\nvgs: {merged: false}\n"
        "stages:\n  one:\n    method: opd\n    train: {lrr: 3e-5}\n    max_grad_norm: 2\n"
        "  two: {method: vgs, rollout: {temprature: 0.9}}\n"
    )
    words = []
    for _ in range(12):
        try:
            stages = load_stages(file, words)
            break
        except ConfigError as error:
            fix = error.fix
        command, _, setting = fix.partition("   and then   ")
        command = command.partition("   ")[0]
        assert command.startswith("sed "), fix
        subprocess.run(["bash", "-c", command], check=True)
        words += setting.split()
    one, two = stages.values()
    assert (one.train.lr, one.train.clip_norm, one.train.steps) == (3e-5, 2, 1)
    assert (two.rollout.temperature, two.rollout.per_prompt) == (0.9, 3)
    assert two.train.lr == 2e-5  # of the misspelt group, on the command line
    assert yaml.safe_load(file.read_text())["train"] == {"lr": "1e-4", "steps": 1}


def test_the_place_of_a_key_of_a_stage_is_its_line_in_the_stage(tmp_path):
    file = tmp_path / "r.yaml"
    stages = "train: {lr: 1e-4}\nstages:\n  one:\n    train:\n      lr: fast\n"
    file.write_text(START + "data: {train: diagrams}\n" + stages)
    with pytest.raises(ConfigError) as caught:
        load_stages(file)
    assert caught.value.where == "r.yaml:10, stage one"
    assert re.fullmatch(r"stages\.one\.train\.lr=\S+", caught.value.fix)


def test_a_mapping_of_overrides_gets_python(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(START + "data: {train: diagrams}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, {"train.lrr": 1e-5})
    assert caught.value.fix.startswith("vistill.train(RECIPE, {'train.lr': 1e-05})   in place of")


def test_a_wrong_key_in_a_stage_of_a_toml_file_is_renamed(tmp_path):
    """The place of a stage's key was searched as YAML: a raw KeyError."""
    file = tmp_path / "r.toml"
    head = 'run = "runs/x"\nmethod = "opd"\n[student]\nmodel = "a"\n[teacher]\nmodel = "b"\n'
    file.write_text(f"{head}[data]\ntrain = 'diagrams'\n[stages.one.train]\nstep = 1\n")
    with pytest.raises(ConfigError) as caught:
        load_stages(file)
    assert (caught.value.code, caught.value.fix[:4]) == ("C001", "sed ")
    subprocess.run(["bash", "-c", caught.value.fix.partition("   ")[0]], check=True)
    assert load_stages(file)["one"].train.steps == 1
    with pytest.raises(ConfigError) as caught:
        load_stages(file, ["stages.one.train.lrr=1"])
    assert caught.value.fix.startswith("stages.one.train.lr=1")


@pytest.mark.parametrize(("name", "better"), [
    ("daten-2", "daten_2"), ("2nd", "set_2nd"), ("größe", "gr_e"), ("日本", "other"),
])  # fmt: skip
def test_a_bad_name_of_a_data_set_is_renamed_in_its_file(tmp_path, name, better):
    file = tmp_path / "r.yaml"
    file.write_text(START + f"data:\n  sets:\n    {name}: {{train: diagrams}}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(file)
    assert (caught.value.code, caught.value.where) == ("C002", "r.yaml:7")
    subprocess.run(["bash", "-c", caught.value.fix], check=True)
    assert list(load_recipe(file).data.sets) == [better]


@pytest.mark.parametrize(("setting", "fix"), [
    ("train.lr=1e-5x", "train.lr=1e-5"),
    ("train.lr=abc", "train.lr=1e-06"),
    ("train.lr=-3", "train.lr=1e-06"),
    ("train.schedule.warmup=5%", "train.schedule.warmup=0.05"),
    ("train.schedule.warmup=700%", "train.schedule.warmup=0.05"),
    ("train.steps=100 steps", "train.steps=100"),
    ("train.steps=None", "train.steps=null"),
    ("train.deterministic=Yes", "train.deterministic=true"),
    ("train.schedule.kind=cosin", "train.schedule.kind=cosine"),
    ("train.freeze=vison", "'train.freeze=[vision]'"),
    ("train.freeze=[vison,haed]", "'train.freeze=[vision,head]'"),
    ("train.freeze=[vison,zebra]", "'train.freeze=[]'"),
])  # fmt: skip
def test_the_value_that_was_meant_is_proposed(tmp_path, setting, fix):
    file = tmp_path / "r.yaml"
    file.write_text(START + "data: {train: diagrams}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, [setting])
    assert caught.value.fix == fix
