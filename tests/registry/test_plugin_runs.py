"""Runs with plug-ins: trained, resumed, replayed and judged like those of built-in methods."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

import vistill
from vistill.cli.main import entry
from vistill.config import build_recipe
from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError, ModelError
from vistill.registry import forget_plugins, load_plugins
from vistill.types import LoadedImage, Prompt
from vistill.views import ViewContext, apply_view

PLUGIN = '''
from dataclasses import dataclass, replace

from PIL import ImageOps

from vistill.batch import LossTerm, Need, Objective, Requirements
from vistill.answers import Verdict
from vistill.evaluation.runner import evaluate
from vistill.objectives.shared import STUDENT, TEACHER, per_response, reverse_kl_to_teacher
from vistill.ranges import check_ranges, ranged
from vistill.registry import checkers, engines, methods, rewards, tasks, thoughts, views
from vistill.rollouts.hf import HFEngine
from vistill.types import LoadedImage, Pass, Reader
from vistill.views.thoughts import ThoughtSource


@views.register("flipped")
def flipped(prompt, context):
    """Every image upside down."""
    images = [
        LoadedImage(ImageOps.flip(ref.load().convert("RGB")), ref.name) for ref in prompt.images
    ]
    return prompt.with_images(images)


@views.register("wide")
def wide(prompt, context):
    """Every image twice as wide."""
    pictures = [ref.load() for ref in prompt.images]
    return prompt.with_images([LoadedImage(p.resize((2 * p.width, p.height))) for p in pictures])


@views.register("another")
def another(prompt, context):
    """Another prompt: an error."""
    return replace(prompt, id="another")


@engines.register("mine")
def engine(vlm, settings, poll):
    """transformers, under another name."""
    return HFEngine(vlm, poll)


@engines.register("nothing")
def nothing(vlm, settings, poll):
    """No engine."""
    return object()


@checkers.register("has_gold")
def has_gold(response, answer, choices, take, math):
    """Right where the answer occurs."""
    return Verdict(answer, answer in response)


@rewards.register("shortness")
def shortness(response, prompt, settings, math):
    """1 for an empty response, less for a longer one."""
    return 1 / (1 + len(response))


@tasks.register("counted")
def counted(models, prompts, settings, poll, diagrams, engine):
    """The usual evaluation, with one more figure."""
    result = evaluate(models, prompts, settings, poll, diagrams, engine)
    return replace(result, summary={**result.summary, "mine/rows": float(len(prompts))})


@thoughts.register("mirror")
class Mirror(ThoughtSource):
    """The images mirrored."""

    def has_thoughts(self, prompt):
        return bool(prompt.images)

    def make_thoughts(self, prompt):
        return [LoadedImage(ImageOps.mirror(ref.load().convert("RGB"))) for ref in prompt.images]


@methods.register("mine")
@dataclass(frozen=True)
class Mine(Objective):
    """Reverse KL, and how far the teacher's log-probability falls when the image is turned."""

    view: str = "flipped"
    """What the teacher sees the second time."""
    weight: float = ranged(1.0, 0)
    """Weight of the loss."""

    def __post_init__(self):
        check_ranges(self)

    def passes(self):
        told = Pass(Reader.TEACHER, "full", keep="both")
        return (STUDENT, told, Pass(Reader.TEACHER, self.view, keep="log_prob"))

    def signals(self, batch):
        fall = batch["teacher.full"].sampled() - batch[f"teacher.{self.view}"].sampled()
        return {"fall": fall, "token_weight": self.weight * per_response(batch.responses)}

    def terms(self, batch, signals):
        return (reverse_kl_to_teacher(batch, signals["token_weight"]),)

    def metrics(self, batch, signals):
        return {"mine/fall": float(signals["fall"].mean())}

    def warnings(self, metrics):
        return {"always": "a sentence of mine"}

    def remember(self, batch, signals):
        return {"tokens": batch.memory.get("tokens", 0.0) + batch.responses.num_tokens}
'''


def recipe_tree(run, **changes):
    return {
        "run": str(run),
        "student": {"model": "vistill:student"},
        "teacher": {"model": "vistill:teacher"},
        "method": "mine",
        "data": {"train": "diagrams", "diagrams": {"train": 6, "eval": 2}},
        "rollout": {
            "per_prompt": 2, "max_new_tokens": 5, "all_truncated": "go_on", "engine": "mine",
        },
        "train": {"prompts_per_step": 2, "steps": 2, "lr": 1e-4},
        "save": {"every": 1, "keep": 9},
        "eval": {
            "every": 2, "limit": 2, "max_new_tokens": 5, "blind": False, "greedy": False,
            "reading": False, "checker": "has_gold", "task": "counted",
        },
    } | changes  # fmt: skip


@pytest.fixture
def plugin(tmp_path, clean_registry):
    """The plug-in file, loaded."""
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    load_plugins([file])
    return file


def refused(code, action, kind=ConfigError):
    with pytest.raises(kind) as caught:
        action()
    assert caught.value.code == code, caught.value.render()
    return caught.value


def test_a_run_of_a_plug_in_is_logged_drawn_locked_resumed_replayed_and_judged(tmp_path, plugin):
    recipe = build_recipe(recipe_tree(tmp_path / "run"))
    run = vistill.train(recipe)
    assert [set(r) >= {"mine/fall", "memory/tokens"} for r in run.metrics] == [False, True]
    assert run.metrics[0]["mine/fall"] != 0
    assert run.evaluations[-1]["mine/rows"] == 2
    assert run.folder.events.read_text().count("a sentence of mine") == 1
    page = (run.path / "report.html").read_text()
    assert "mine/fall" in page
    assert "(run: fall)" in page
    lock = json.loads(run.folder.lock_file.read_text())
    assert set(lock["code"]) == {"methods.mine", "views.flipped", "engines.mine"}
    assert lock["code"]["methods.mine"]["from"] == f"file {plugin}"

    forget_plugins()  # another process, which was not given the file
    error = refused("C102", lambda: build_recipe(recipe_tree(tmp_path / "run")))
    assert error.fix == f"plugins=[{json.dumps(str(plugin))}]"
    assert "plugins=" in refused("C102", lambda: vistill.replay(run.path)).fix
    replayed, _ = vistill.replay(run.path, plugins=[plugin])
    assert replayed.same

    plugin.write_text(PLUGIN + "# changed\n")
    load_plugins([plugin])
    error = refused("C201", lambda: vistill.train(recipe))
    assert "--accept methods.mine,views.flipped,engines.mine" in error.fix
    assert refused("C201", lambda: vistill.replay(run.path)).fix.startswith("put file ")
    vistill.train(recipe, accept=["methods.mine", "views.flipped", "engines.mine"])
    lock = json.loads(run.folder.lock_file.read_text())
    assert lock["accepted"] == ["methods.mine", "views.flipped", "engines.mine"]
    vistill.train(recipe)


@pytest.mark.more
def test_a_run_of_a_plug_in_continues_to_the_bits_of_one_that_was_not_stopped(tmp_path, plugin):
    whole = vistill.train(build_recipe(recipe_tree(tmp_path / "whole")))
    run = vistill.train(build_recipe(recipe_tree(tmp_path / "cut")))
    (run.path / "result.json").unlink()
    shutil.rmtree(run.path / "checkpoint-000002")
    forget_plugins()
    again = vistill.train(tmp_path / "cut" / "recipe.json", plugins=[plugin])
    assert again.folder.metrics.read_text() == whole.folder.metrics.read_text()
    hashes = [
        json.loads((r.path / "result.json").read_text())["weights_sha256"] for r in (whole, again)
    ]
    assert hashes[0] == hashes[1]
    assert "resumed from checkpoint-000001" in again.folder.events.read_text()


def class_of(file, coefficient, monkeypatch):
    """`Mine` of a script, as its module has it after an edit and a new start."""
    file.write_text(
        "import vistill\n\nclass Mine(vistill.OPD):\n    def terms(self, batch, signals):\n"
        "        terms = super().terms(batch, signals)\n"
        f"        return tuple(term.scaled({coefficient}) for term in terms)\n"
    )
    spec = importlib.util.spec_from_file_location("script_of_mine", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "script_of_mine", module)
    spec.loader.exec_module(module)
    return module.Mine


@pytest.mark.more
def test_a_class_handed_to_distill_is_noticed_when_it_changed(
    tokenizer, teacher, tmp_path, monkeypatch
):
    from training.test_build import distill_run

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file, run = tmp_path / "script.py", tmp_path / "run"
    distill_run(tokenizer, teacher, run, class_of(file, 1.0, monkeypatch)())
    distill_run(tokenizer, teacher, run, class_of(file, 1.0, monkeypatch)())
    changed = class_of(file, 2.0, monkeypatch)
    error = refused("C201", lambda: distill_run(tokenizer, teacher, run, changed()))
    assert "methods.script_of_mine:Mine" in error.why
    distill_run(tokenizer, teacher, run, changed(), accept=["methods.script_of_mine:Mine"])


def test_what_is_no_method_is_refused_by_distill(tokenizer, teacher, tmp_path):
    from training.test_build import distill_run

    class Like:
        passes = signals = terms = lambda self, *rest: ()

    error = refused("C106", lambda: distill_run(tokenizer, teacher, tmp_path, Like()))
    assert "no subclass of vistill.batch.Objective" in error.why


VIEWS = {
    "wide": ("V816", ModelError, "pixels instead of"),
    "another": ("C106", ConfigError, "by its id"),
    "nowhere": ("C105", ConfigError, "views: full"),
}


@pytest.mark.parametrize("view", list(VIEWS))
def test_a_view_of_a_plug_in_is_checked_before_the_first_step(view, tmp_path, plugin):
    from vistill.studies.check import run_all_checks

    code, kind, word = VIEWS[view]
    recipe = build_recipe(recipe_tree(tmp_path / "run", mine={"view": view}))
    error = refused(code, lambda: run_all_checks(recipe), kind)
    assert word in error.why


def test_an_engine_that_is_none_is_refused(tmp_path, plugin, teacher):
    from vistill.rollouts.build import make_engine
    from vistill.rollouts.settings import RolloutSettings

    assert (
        "object"
        in refused("C106", lambda: make_engine(teacher, RolloutSettings(engine="nothing"))).what
    )


def test_a_reward_of_a_plug_in_is_added_with_its_weight(plugin, teacher):
    from vistill.answers.math_process import MathJudge
    from vistill.training.rewards import Rewards
    from vistill.training.settings import RewardSettings
    from vistill.types import Finish, Rollout, RolloutGroup

    ids = teacher.response_ids("The answer is 12.")
    group = RolloutGroup(diagram_prompts("train", 1, 0)[0], (Rollout(ids, 0, Finish.STOP),))
    plain, more = (
        RewardSettings(accuracy=0.0),
        RewardSettings(accuracy=0.0, extra={"shortness": 0.5}),
    )
    values = [Rewards(settings, teacher, MathJudge()).of([group])[0] for settings in (plain, more)]
    text = teacher.decode(ids)
    assert values == [0.0, 0.5 / (1 + len(text))]


def test_a_thought_source_of_a_plug_in_reaches_the_privileged_view(plugin):
    from vistill.views import has_thoughts
    from vistill.views.settings import ViewSettings

    assert ViewSettings(thought="mirror").thought == "mirror"
    prompt = diagram_prompts("train", 1, 0)[0]
    shown = apply_view(prompt, "privileged", ViewContext(thought="mirror"))
    assert len(shown.images) == 2 * len(prompt.images)
    assert has_thoughts(prompt, "mirror")
    assert not has_thoughts(Prompt("t", ("no image",)), "mirror")


def test_a_view_keeps_what_it_does_not_change(plugin):
    prompt = Prompt("p", (LoadedImage(diagram_prompts("train", 1, 0)[0].images[0].load()), "What?"))
    assert apply_view(prompt, "flipped").text == "What?"
    twice = apply_view(apply_view(prompt, "flipped"), "flipped")
    assert twice.images[0].load().tobytes() == prompt.images[0].load().convert("RGB").tobytes()


def verb(capsys, *words):
    """What a verb prints, its error where it fails, and its exit code."""
    with pytest.raises(SystemExit) as stop:
        entry([str(word) for word in words])
    shown = capsys.readouterr()
    return stop.value.code, shown.out, shown.err


@pytest.mark.parametrize(
    "words",
    [["init", "mine"], ["explain", "mine"], ["list", "methods"], ["check", "--fast", "r.yaml"]],
)
def test_verbs_take_the_file(words, tmp_path, monkeypatch, capsys, clean_registry):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN)
    Path("r.yaml").write_text(json.dumps(recipe_tree("run")))
    code, out, _ = verb(capsys, *words)
    assert "mine" not in out
    assert code == (0 if words[0] == "list" else 2)
    code, out, err = verb(capsys, *words, "--plugin", "mine.py")
    assert code == 0, err
    assert "mine" in out
    if words[0] == "init":
        assert "vistill check mine.yaml --plugin mine.py" in out
        assert "  weight: 1.0" in Path("mine.yaml").read_text()


def test_without_the_file_the_error_has_the_line_to_paste(
    tmp_path, monkeypatch, capsys, clean_registry
):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(json.dumps(recipe_tree("run")))
    Path("run").mkdir()
    facts = {"from": "file my plugins/mine.py", "sha256": "0"}
    Path("run/run.lock.json").write_text(json.dumps({"code": {"methods.mine": facts}}))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vistill", "train", "r.yaml"])
    _, _, err = verb(capsys, "train", "r.yaml")
    assert "fix   vistill train r.yaml --plugin 'my plugins/mine.py'" in err
    assert "give only one that you know" in err


GROUPS = {
    "rewards": ("rewards.shortness", {"reward": {"extra": {"shortness": 0.5}}}),
    "engines": ("engines.mine", {"rollout": {"engine": "mine"}}),
    "checkers": ("checkers.occurs", {"reward": {"checker": "occurs"}}),
    "thoughts": ("thoughts.mirror", {"views": {"thought": "mirror"}}),
    "tasks": ("tasks.counted", {"eval": {"task": "counted", "final_limit": 2}}),
}


@pytest.mark.parametrize("kind", list(GROUPS))
@pytest.mark.parametrize("words", [["train", "r.yaml"], ["eval", "run"]])
def test_without_the_file_other_kinds_have_the_line_to_paste_too(
    kind, words, tmp_path, monkeypatch, capsys, clean_registry
):
    monkeypatch.chdir(tmp_path)
    key, group = GROUPS[kind]
    plain = {"method": "grpo", "rollout": {}, "eval": {"final_limit": 2}}
    Path("run").mkdir()
    for file in ("r.yaml", "run/recipe.json"):
        Path(file).write_text(json.dumps(recipe_tree("run") | plain | group))
    facts = {"from": "file my.py", "sha256": "0"}
    lock = {"code": {} if kind == "tasks" else {key: facts}}
    lock["command"] = "vistill train r.yaml --plugin my.py"
    Path("run/run.lock.json").write_text(json.dumps(lock))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vistill", *words])
    _, _, err = verb(capsys, *words)
    assert f"fix   vistill {' '.join(words)} --plugin my.py\n" in err
    assert "give only one that you know" in err


def test_a_view_whose_file_is_missing_has_the_line_to_paste(tmp_path, monkeypatch, plugin):
    from vistill.runs.folder import RunFolder
    from vistill.training.build import make_setup

    recipe = build_recipe(recipe_tree(tmp_path / "run", mine={"view": "from_another_file"}))
    (tmp_path / "run").mkdir()
    code = {"views.from_another_file": {"from": "file other.py", "sha256": "0"}}
    (tmp_path / "run" / "run.lock.json").write_text(json.dumps({"code": code}))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vistill", "train", "r.yaml"])
    error = refused("C105", lambda: make_setup(recipe, RunFolder(tmp_path / "run")))
    assert error.fix == "vistill train r.yaml --plugin other.py"


def test_a_misspelt_reward_has_the_nearest_name_in_its_fix(plugin):
    reward = {"extra": {"shortnes": 0.5}}
    error = refused("C105", lambda: build_recipe(recipe_tree("run", reward=reward)))
    assert 'did you mean "shortness"?' in error.why
    assert error.fix == "reward.extra.shortness=0.5   in place of reward.extra.shortnes"


@pytest.mark.slow
def test_the_example_package_is_installed_trained_killed_and_resumed_to_the_same_bits(tmp_path):
    """Into a virtual environment that sees the packages of this one; pip installs the example."""
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    site = next(place.glob("lib/python*/site-packages"))
    others = [path for path in sys.path if "site-packages" in path]
    (site / "others.pth").write_text("\n".join([str(REPO), *others]) + "\n")
    python, environment = (
        place / "bin" / "python",
        os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )
    example = shutil.copytree(REPO / "examples" / "plugin", tmp_path / "example")
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        example,
    ]
    subprocess.run(pip, check=True, env=environment)

    def run_verb(*words, **more):
        command = [python, "-m", "vistill", *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            env=environment | more,
        )

    listed = run_verb("list", "methods").stdout.splitlines()
    assert listed[-1].startswith("gap_opd")
    assert "package vistill-gap-opd 0.1.0" in listed[-1]
    assert "where student and teacher disagree" in run_verb("explain", "gap_opd").stdout
    settings = [
        example / "recipe.yaml",
        "rollout.max_new_tokens=8",
        "eval.max_new_tokens=8",
        "eval.limit=2",
        "save.background=false",  # checkpoint 4 is whole when step 5 ends
    ]
    whole = run_verb("train", *settings, "run=whole")
    assert whole.returncode == 0, whole.stderr
    killed = run_verb("train", *settings, "run=cut", VISTILL_FAULT="learn.after_update:kill@5")
    assert killed.returncode == -signal.SIGKILL
    resumed = run_verb("train", *settings, "run=cut")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from checkpoint-000004" in (tmp_path / "cut" / "events.log").read_text()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    hashes = [
        json.loads((tmp_path / name / "result.json").read_text())["weights_sha256"]
        for name in ("whole", "cut")
    ]
    assert hashes[0] == hashes[1]
    tests = [python, "-m", "pytest", "-q", "-n0", "-c", os.devnull, Path(example, "tests")]
    tested = subprocess.run(tests, check=False, env=environment, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout

    subprocess.run(
        [python, "-m", "pip", "uninstall", "--quiet", "--yes", "vistill-gap-opd"], check=True
    )
    gone = run_verb("train", *settings, "run=cut")
    assert gone.returncode == 2
    assert "fix   pip install vistill-gap-opd==0.1.0" in gone.stderr
