"""The start check of the text-only context: without the image a model still writes language."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from conftest import REPO, build_model
from plans import make_setup_from
from tiny_families import BUILDERS, build_family
from training.test_loop import make_plan

import vistill
from vistill.errors import ModelError
from vistill.models.selftest import run_selftest
from vistill.objectives import METHODS, OPD, VGS
from vistill.runs.folder import RunFolder
from vistill.training.build import START_CHECKS, build, run_start_checks
from vistill.training.checks.text_only import (
    TextOnlyReading,
    TokenMeans,
    roles_that_need,
)
from vistill.training.models_of_run import Models
from vistill.types import Reader, View

pytestmark = pytest.mark.filterwarnings("ignore:.*prompts are not shared between siblings")


@pytest.fixture(scope="module")
def trained():
    """The shipped student and teacher."""
    return tuple(vistill.load(f"vistill:{name}", device="cpu") for name in ("student", "teacher"))


def broken(vlm, states):
    """The model with other states where no prompt of a batch has an image."""

    class Broken(type(vlm.family)):
        def backbone(self, model, rows):
            hidden = super().backbone(model, rows)
            return hidden if any(p.has_image for p in rows.prompts) else states(hidden)

    family = object.__new__(Broken)
    family.__dict__ = vlm.family.__dict__
    return dataclasses.replace(vlm, family=family, share_prompts=False)


def noise(hidden):
    """Confident nonsense."""
    generator = torch.Generator().manual_seed(0)
    return 8 * torch.randn(hidden.shape, generator=generator)


BREAKS = {
    "nan": (lambda hidden: hidden * torch.nan, "are not finite"),
    "uniform": (torch.zeros_like, "its entropy on scaffold tokens is 6.38 nats"),
    "noise": (noise, "nats on scaffold tokens"),
}


def setup_of(student, teacher, objective, folder, purpose="train"):
    plan = make_plan(student.tokenizer, teacher, objective=objective)
    models = Models(student, teacher, student.vocabulary_size)
    return make_setup_from(dataclasses.replace(plan, models=models), RunFolder(folder), purpose)


def summary_of(setup):
    """What the check says in `vistill check`."""
    return {line.what: line.summary for line in run_start_checks(setup)}["text-only"]


def test_the_shipped_models_are_valid(trained, tmp_path):
    summary = summary_of(setup_of(*trained, VGS(), tmp_path, "check"))
    student, teacher = summary.splitlines()
    assert student.startswith("student qwen3_vl: valid; scaffold / image-bound tokens ")
    assert teacher.startswith("teacher qwen3_vl: valid; ")
    figures = json.loads((tmp_path / "text_only.json").read_text())["readings"]
    for reading in figures:
        scaffold, bound = reading["scaffold"], reading["bound"]
        assert scaffold["kl"] < 0.05
        assert bound["kl"] > 10 * scaffold["kl"]
        assert abs(scaffold["entropy"] - scaffold["full_entropy"]) < 0.1
        assert bound["entropy"] > bound["full_entropy"]


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_broken_family_is_refused_for_a_method_that_needs_the_view(
    name, role, trained, tmp_path
):
    states, words = BREAKS[name]
    models = dict(zip(("student", "teacher"), trained, strict=True))
    models[role] = broken(models[role], states)
    setup = setup_of(models["student"], models["teacher"], VGS(), tmp_path)
    with pytest.raises(ModelError) as caught:
        build(setup)
    error = caught.value
    if name == "nan":  # the check `views` reads one token and sees it first
        assert error.code == "M106"
        return
    assert error.code == "M116"
    assert role in error.what
    assert words in error.why
    assert error.fix.startswith(f"{role}.model=")
    assert not (tmp_path / "text_only.json").exists()


def test_a_method_that_does_not_read_the_view_gets_a_warning(trained, tmp_path):
    student, teacher = trained[0], broken(trained[1], torch.zeros_like)
    summary = summary_of(setup_of(student, teacher, OPD(), tmp_path / "check", "check"))
    lines = summary.splitlines()
    assert "student qwen3_vl: valid;" in lines[0]
    assert "teacher qwen3_vl: not valid: its entropy" in lines[1]
    assert lines[2].startswith("warning: OPD does not use it")
    assert lines[2].endswith("of the teacher have no meaning")
    assert summary_of(setup_of(student, teacher, OPD(), tmp_path / "train")) == "not read by OPD"


def test_an_untrained_model_cannot_be_judged(tokenizer, teacher, tmp_path):
    setup = setup_of(build_model(tokenizer, 0), teacher, VGS(), tmp_path)
    for line in summary_of(setup).splitlines():
        assert "cannot be judged: the model is untrained, its entropy with the image is" in line
        assert line.endswith("/ -")  # another image changes no token by much


def test_a_run_measures_once_and_consumes_no_random_number(trained, tmp_path, monkeypatch):
    state = torch.get_rng_state()
    first = summary_of(setup_of(*trained, VGS(), tmp_path))
    assert torch.equal(state, torch.get_rng_state())

    def fail(setup, prompts):
        raise AssertionError("measured again")

    monkeypatch.setattr("vistill.training.checks.text_only.measure_text_only", fail)
    assert summary_of(setup_of(*trained, VGS(), tmp_path)) == first
    with pytest.raises(AssertionError, match="measured again"):
        summary_of(setup_of(trained[0], build_model(trained[0].tokenizer, 3), VGS(), tmp_path))


def test_a_prompt_that_cannot_be_encoded_without_image_is_found_before_weights(tmp_path):
    """For a method that needs it; for another one `check` warns."""
    from vistill.config import build_recipe
    from vistill.training.build import make_setup

    template = tmp_path / "student" / "chat_template.jinja"
    shutil.copytree(REPO / "vistill" / "assets" / "student", template.parent)
    needs_image = "{% if messages[-1].content | selectattr('type', 'equalto', 'image') | list"
    refuses = f"{needs_image} | length == 0 %}}{{{{ raise_exception('no image') }}}}{{% endif %}}"
    template.write_text(refuses + template.read_text())
    values = {
        "version": 1,
        "run": str(tmp_path / "run"),
        "student": {"model": str(template.parent)},
        "teacher": {"model": "vistill:teacher"},
        "data": {"train": "diagrams", "diagrams": {"train": 32, "eval": 4}},
    }

    def start(method):
        recipe = build_recipe({**values, "method": method})
        return make_setup(recipe, RunFolder(tmp_path / "run"), "check")

    setup = start("vgs")
    with pytest.raises(ModelError) as caught:
        run_start_checks(setup)
    assert caught.value.code == "M106"
    assert "student cannot read the view text_only" in caught.value.what
    assert "no image" in caught.value.why
    assert setup.loaded_models is None
    before_weights = START_CHECKS[: [c.name for c in START_CHECKS].index("models")]
    lines = {c.what: c.summary for c in run_start_checks(start("opd"), before_weights)}
    warning = lines["text-only prompts"]
    assert warning.startswith("warning: the student cannot encode a prompt without its image")


def test_only_steering_methods_need_the_view():
    need = {name: roles_that_need(method()) for name, method in METHODS.items()}
    assert {name for name, roles in need.items() if roles} == {
        "vgs",
        "vgs_language",
        "grpo_vgs",
    }
    assert all(roles in (set(), {"student", "teacher"}) for roles in need.values())


def reading(scaffold, bound):
    return TextOnlyReading("student", "f", 8.0, TokenMeans(*scaffold), TokenMeans(*bound))


@pytest.mark.parametrize(
    ("scaffold", "bound", "problem", "doubt"),
    [
        ((90, 0.1, 0.2, 0.3), (10, 0.1, 2.0, 2.0), "", ""),
        ((90, 0.1, 3.9, 0.9), (10, 0.1, 3.0, 1.0), "", ""),
        ((90, 0.1, 4.0, 0.9), (10, 0.1, 4.0, 4.0), "entropy on scaffold", ""),
        ((90, 0.1, 0.5, 2.0), (10, 0.1, 0.5, 4.0), "KL(full || text-only)", ""),
        ((90, 0.1, 0.5, 1.9), (10, 0.1, 0.5, 4.0), "", ""),
        ((90, 0.1, 0.5, 9.0), (7, 0.1, 0.5, 4.0), "", "7 image-bound tokens are too few"),
        ((90, 0.1, 4.5, 9.0), (0, 0, 0, 0), "entropy on scaffold", "0 image-bound tokens"),
        ((90, 4.1, 7.0, 5.0), (10, 4.1, 7.0, 5.0), "", "the model is untrained"),
        ((90, 0.1, 0.5, math.nan), (10, 0.1, 0.5, 4.0), "are not finite", ""),
        ((90, math.nan, 0.5, 1.0), (10, 0.1, 0.5, 4.0), "", "with the image are not finite"),
    ],
)
def test_the_verdict(scaffold, bound, problem, doubt):
    result = reading(scaffold, bound)
    assert (problem in result.problem()) if problem else result.problem() == ""
    assert (doubt in result.doubt()) if doubt else result.doubt() == ""
    verdict = "not valid: " if problem else "cannot be judged: " if doubt else "valid;"
    assert result.describe().startswith(f"student f: {verdict}")
