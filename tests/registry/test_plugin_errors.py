"""Exceptions in the code of plug-ins: coded, with plug-in, function, fix and cause."""

from dataclasses import dataclass

import pytest
from batches import responses

from vistill.batch import ScoredBatch, ScoredPass
from vistill.errors import ConfigError
from vistill.objectives import OPD
from vistill.plugin_calls import UndeclaredPassError, method_call, plugin_call
from vistill.registry import load_plugins, methods, rewards, views

pytestmark = pytest.mark.usefixtures("clean_registry")

PLUGIN = '''
from dataclasses import dataclass

from vistill.batch import Objective
from vistill.objectives.shared import STUDENT, per_response, reverse_kl_to_teacher
from vistill.registry import checkers, methods, rewards, views
from vistill.types import Pass, Reader


@rewards.register("words")
def words(response, prompt, settings, math):
    """No number."""
    return "good"


@rewards.register("zero")
def zero(response, prompt, settings, math):
    """A division by zero."""
    return 1 / 0


@rewards.register("endless")
def endless(response, prompt, settings, math):
    """No finite number."""
    return float("inf")


@rewards.register("whole")
def whole(response, prompt, settings, math):
    """A whole number."""
    return 2


@checkers.register("broken")
def broken(response, answer, choices, take, math):
    """An unknown name."""
    return undefined_name


@checkers.register("truth")
def truth(response, answer, choices, take, math):
    """No verdict."""
    return True


@views.register("missing")
def missing(prompt, context):
    """An attribute that prompts do not have."""
    return prompt.nothing


@methods.register("mine")
@dataclass(frozen=True)
class Mine(Objective):
    """A method that does not declare the pass that it reads."""

    def passes(self):
        return (STUDENT,)

    def signals(self, batch):
        return {"token_weight": per_response(batch.responses)}

    def terms(self, batch, signals):
        return (reverse_kl_to_teacher(batch, signals["token_weight"]),)

    def metrics(self, batch, signals):
        return {"mine/ratio": 1 / 0}
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The plug-in file, loaded from the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    load_plugins(["mine.py"])
    return tmp_path / "mine.py"


def line_of(text):
    return next(i for i, line in enumerate(PLUGIN.splitlines(), 1) if text in line)


def refused(action, *words):
    with pytest.raises(ConfigError) as caught:
        action()
    assert caught.value.code == "C106"
    for word in ("file mine.py", *words):
        assert word in caught.value.render()
    return caught.value


CALLS = {
    "words": ("the reward words", "it returned 'good', which is no", ValueError, None),
    "zero": ("the reward zero", "division by zero", ZeroDivisionError, "1 / 0"),
    "endless": ("the reward endless", "it returned inf, which is no", ValueError, None),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CALLS))
def test_a_reward_that_fails_is_named(name, plugin, teacher):
    from vistill.answers.math_process import MathJudge
    from vistill.data.diagrams import diagram_prompts
    from vistill.training.rewards import Rewards
    from vistill.training.settings import RewardSettings
    from vistill.types import Finish, Rollout, RolloutGroup

    what, why, cause, line = CALLS[name]
    rollout = Rollout(teacher.response_ids("12"), 0, Finish.STOP)
    group = RolloutGroup(diagram_prompts("train", 1, 0)[0], (rollout,))
    settings = RewardSettings(accuracy=0.0, extra={name: 1.0})
    error = refused(lambda: Rewards(settings, teacher, MathJudge()).of([group]), what, why)
    assert isinstance(error.__cause__, cause)
    place = f"mine.py:{line_of(line)}" if line else "mine.py"
    assert f"correct {place}," in error.fix


def test_views_and_checkers_that_fail_are_named(plugin):
    from vistill import judge
    from vistill.types import Prompt
    from vistill.views import apply_view

    place = f"mine.py:{line_of('prompt.nothing')}"
    error = refused(
        lambda: apply_view(Prompt("p", ("text",)), "missing"), "the view missing", place
    )
    assert isinstance(error.__cause__, AttributeError)
    error = refused(lambda: judge("1", "1", checker="broken"), "the checker broken", "NameError")
    assert isinstance(error.__cause__, NameError)
    error = refused(lambda: judge("1", "1", checker="truth"), "it returned True, which is no")


def test_a_pass_that_is_not_declared_is_named_with_the_line_that_adds_it(plugin):
    objective = methods.get("mine")()
    batch = ScoredBatch(responses([2], [0]), {"student.full": ScoredPass()})
    with pytest.raises(UndeclaredPassError):
        batch["teacher.full"]

    def read():
        with method_call(objective, "terms"):
            batch["teacher.full"]

    error = refused(read, "Mine.terms reads teacher.full, which is not among its passes()")
    assert 'add Pass(Reader.TEACHER, "full") to Mine.passes()' in error.fix
    assert "student.full" in error.why
    assert isinstance(error.__cause__, KeyError)


def test_other_exceptions_of_a_method_name_the_function_and_the_line(plugin):
    objective = methods.get("mine")()

    def measure():
        with method_call(objective, "metrics"):
            objective.metrics(ScoredBatch(responses([2], [0]), {}), {})

    error = refused(measure, "Mine.metrics raised ZeroDivisionError")
    assert f"mine.py:{line_of('mine/ratio')}" in error.fix


def test_exceptions_of_vistill_and_of_the_memory_stay_what_they_are(plugin):
    with pytest.raises(ZeroDivisionError), plugin_call(rewards, "accuracy"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), method_call(OPD(), "terms"):
        raise ZeroDivisionError
    with pytest.raises(UndeclaredPassError), method_call(OPD(), "terms"):
        raise UndeclaredPassError("teacher.full", [])
    for error in (MemoryError(), RuntimeError("CUDA out of memory")):
        with pytest.raises(type(error)), plugin_call(rewards, "zero"):
            raise error

    @dataclass(frozen=True)
    class Inherits(OPD):
        """It defines no function, so what fails is vistill's."""

    with pytest.raises(ZeroDivisionError), method_call(Inherits(), "terms"):
        raise ZeroDivisionError
    assert views.get("missing")


@pytest.mark.more
def test_a_run_ends_with_the_message(plugin, tmp_path):
    from registry.test_plugin_runs import recipe_tree

    import vistill
    from vistill.config import build_recipe

    recipe = recipe_tree(tmp_path / "run", rollout={"per_prompt": 2, "max_new_tokens": 5})
    recipe["eval"] = {"every": 2, "limit": 2, "max_new_tokens": 5}
    del recipe["teacher"]
    refused(lambda: vistill.train(build_recipe(recipe)), "Mine.terms reads teacher.full")
