"""The start check of the text-only context: without the image a model still writes language."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPO, build_model
from plans import make_setup_from
from tiny_families import BUILDERS, build_family
from training.test_loop import TRAIN, make_plan

import vistill
from vistill.data.diagrams import diagram_prompts, diagrams
from vistill.errors import ModelError, StorageError
from vistill.models.scoring import EncodedGroup, response_states
from vistill.models.selftest import run_selftest
from vistill.objectives import METHODS, OPD, VGS
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.build import START_CHECKS, build, run_start_checks
from vistill.training.checks.text_only import (
    TextOnlyReading,
    TokenMeans,
    measure_text_only,
    roles_that_need,
)
from vistill.training.models_of_run import Models
from vistill.training.settings import TrainSettings
from vistill.types import View
from vistill.views import apply_view

pytestmark = pytest.mark.filterwarnings("ignore:.*prompts are not shared between siblings")

HELD = diagram_prompts("test", 8, 0)


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
def test_a_broken_family_is_refused_for_a_method_that_needs_the_view(name, role, trained, tmp_path):
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
    student, trained_teacher = summary_of(setup).splitlines()
    assert "cannot be judged: the model is untrained, its entropy with the image is" in student
    assert student.endswith("/ -")  # another image changes no token by much
    # the student wrote the responses, so they say nothing about a trained teacher
    assert "untrained" not in trained_teacher
    assert "on responses of the student, which may be no language, its entropy" in trained_teacher


def test_a_run_measures_once_and_consumes_no_random_number(trained, tmp_path):
    state, file = torch.get_rng_state(), tmp_path / "text_only.json"
    assert "student qwen3_vl: valid" in summary_of(setup_of(*trained, VGS(), tmp_path))
    assert torch.equal(state, torch.get_rng_state())
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "summary": "as stored"}))
    assert summary_of(setup_of(*trained, VGS(), tmp_path)) == "as stored"
    other_rows = setup_of(*trained, VGS(), tmp_path)
    other_rows.provided = dataclasses.replace(other_rows.provided, train_prompts=TRAIN[1:])
    (tmp_path / "rows.json").unlink()
    assert "student qwen3_vl: valid" in summary_of(other_rows)
    file.write_text("{")
    with pytest.raises(StorageError) as caught:
        summary_of(setup_of(*trained, VGS(), tmp_path))
    assert caught.value.code == "S606"


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
        ((90, 0.1, 3.9, 0.4), (10, 0.1, 3.0, 0.4), "", ""),
        ((90, 0.1, 4.0, 0.9), (10, 0.1, 4.0, 4.0), "entropy on scaffold", ""),
        ((90, 0.1, 0.5, 2.0), (10, 0.1, 0.5, 4.0), "KL(full || text-only)", ""),
        ((90, 0.1, 0.5, 1.9), (10, 0.1, 0.5, 4.0), "", "weak"),
        ((90, 0.1, 0.5, 9.0), (7, 0.1, 0.5, 4.0), "", "weak"),
        ((90, 0.1, 0.5, 0.1), (0, 0, 0, 0), "", ""),
        ((90, 0.1, 4.5, 9.0), (0, 0, 0, 0), "entropy on scaffold", ""),
        ((90, 4.1, 7.0, 5.0), (10, 4.1, 7.0, 5.0), "", "the model is untrained"),
        ((90, 0.1, 0.5, math.nan), (10, 0.1, 0.5, 4.0), "are not finite", ""),
        ((90, math.nan, 0.5, 1.0), (10, 0.1, 0.5, 4.0), "", "with the image are not finite"),
    ],
)
def test_the_verdict(scaffold, bound, problem, doubt):
    result = reading(scaffold, bound)
    if problem:
        assert problem in result.problem()
        assert result.verdict().startswith("not valid: ")
    elif doubt == "weak":
        assert result.verdict().startswith("weak: ")
    elif doubt:
        assert doubt in result.doubt()
        assert result.verdict().startswith("cannot be judged: ")
    else:
        assert result.verdict() == "valid"
    assert result.describe().startswith(f"student f: {result.verdict()}; scaffold / image-bound")


def measure(vlm):
    """The reading of a model without a teacher, on rows of its own."""
    setup = SimpleNamespace(
        models=Models(vlm, None, vlm.vocabulary_size), train_prompts=HELD, seed=0,
        poll=lambda: None, objective=OPD(), rollout=RolloutSettings(), train=TrainSettings(),
    )  # fmt: skip
    return measure_text_only(setup, setup.models, HELD)[0]


def train_language(vlm, steps, text_only_share):
    """Supervised steps on solutions, some of them without the image."""
    items, rng = diagrams("train", 512, 7), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=4e-3)
    vlm.model.train()
    for _ in range(steps):
        groups = []
        for index in map(int, rng.integers(len(items), size=8)):
            view = View.TEXT_ONLY if rng.random() < text_only_share else View.FULL
            prompt = vlm.encode(apply_view(items[index].prompt(str(index)), view))
            text = items[index].solution(int(rng.integers(1, 1000)))
            groups.append(EncodedGroup(prompt, (vlm.response_ids(text),)))
        ids = torch.tensor([i for g in groups for r in g.responses for i in r])
        logits = vlm.head(vlm.vocabulary_size).logits(response_states(vlm, groups))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, ids).backward()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
        optimizer.step()
    vlm.model.eval()


@pytest.mark.more
@pytest.mark.parametrize("name", BUILDERS)
def test_untrained_families_are_measured_and_not_judged(name):
    result = measure(run_selftest(build_family(name, 0)))
    assert result.verdict().startswith("cannot be judged: the model is untrained")
    assert result.scaffold.tokens == 8 * 32 or result.bound.tokens
    assert result.scaffold.kl < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5"])
def test_a_family_that_saw_text_alone_is_valid(name):
    """The share of text alone is that of the shipped models."""
    vlm = run_selftest(build_family(name, 0))
    train_language(vlm, 250, 0.12)
    result = measure(vlm)
    assert result.verdict() == "valid"
    assert result.scaffold.entropy < 0.25 * result.uniform
