"""Wrong arguments in Python: what to write instead."""

import pytest

import vistill
from vistill.errors import ConfigError


def refused(action):
    with pytest.raises(ConfigError) as caught:
        action()
    assert caught.value.code == "C002", caught.value.render()
    return caught.value


METHODS = {
    "opd": "vistill.OPD()",
    "va_opd": "vistill.VAOPD()",
    "gkd": 'vistill.METHODS["gkd"]()',
    "va_odp": "vistill.VAOPD()",
    "unknown": "vistill.OPD()",
}


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_as_text_is_answered_with_its_constructor(name, teacher, tmp_path):
    prompts = [vistill.Prompt("p", ("text",))]
    error = refused(lambda: vistill.distill(teacher, teacher, prompts, name, out=tmp_path))
    assert name in error.what
    assert error.fix == METHODS[name]


def test_the_class_of_a_method_is_answered_with_its_constructor(teacher, tmp_path):
    error = refused(lambda: vistill.distill(teacher, teacher, [], vistill.OPD, out=tmp_path))
    assert error.fix == "vistill.OPD()"


def test_a_model_as_text_is_answered_with_the_call_that_loads_it(teacher, tmp_path):
    for models in (("a/model", teacher), (teacher, "a/model")):
        error = refused(lambda pair=models: vistill.distill(*pair, [], vistill.OPD(), out=tmp_path))
        assert error.fix == "vistill.load('a/model')"
    error = refused(lambda: vistill.visual_advantage("a/model", [], []))
    assert error.what.startswith("model is a str")
    assert not list(tmp_path.iterdir())


def test_visual_advantage_needs_one_response_for_each_prompt(teacher):
    prompts = [vistill.Prompt("p", ("text",))]
    error = refused(lambda: vistill.visual_advantage(teacher, prompts, ["a", "b"]))
    assert error.what == "2 responses for 1 prompts"
    assert refused(lambda: vistill.visual_advantage(teacher, prompts, "a")).what.startswith("one")
