"""`train.freeze` finds parts by module, tied heads too; nothing or everything is refused."""

import itertools
import shlex
from dataclasses import replace

import pytest
import torch
from conftest import build_model, build_untied
from doubles import with_family
from tiers import few
from tiny_llava import build_llava
from training.test_loop import TRAIN, make_plan, run_plan

from vistill.api import distill
from vistill.errors import ConfigError
from vistill.evaluation.settings import EvalSettings
from vistill.models.families.base import PARTS
from vistill.objectives import OPD
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.models_of_run import Models
from vistill.training.optim import freeze_parts
from vistill.training.settings import SaveSettings, TrainSettings

CHOICES = [parts for n in (1, 2, 3, 4) for parts in itertools.combinations(PARTS, n)]


MODELS = {
    "tied": lambda tokenizer: build_model(tokenizer, 0),
    "untied": lambda tokenizer: build_untied(tokenizer, 0),
    "llava": lambda tokenizer: build_llava(tokenizer, 0),
    "llava, tied": lambda tokenizer: build_llava(tokenizer, 0, tied=True),
}


def parts_of(name, tied):
    """The parts of a weight, from its name; a tied head has the name of the input embedding."""
    if name.startswith("lm_head"):
        return {"head"}
    if name.startswith("model.language_model."):
        return {"language", "head"} if tied and "embed_tokens" in name else {"language"}
    is_projector = "merger" in name or "multi_modal_projector" in name
    return {"vision"} if is_projector else {"vision", "tower"}


def pasted(fix):
    """A setting as the shell gives it to the command."""
    (word,) = shlex.split(fix)
    return word


@pytest.mark.parametrize("parts", CHOICES, ids="+".join)
@pytest.mark.parametrize("kind", list(MODELS))
def test_exactly_the_weights_of_the_named_parts_are_frozen(kind, parts, tokenizer):
    vlm = MODELS[kind](tokenizer)
    tied = vlm.model.get_input_embeddings().weight is vlm.model.get_output_embeddings().weight
    assert tied == (kind in {"tied", "llava, tied"})
    names = dict(vlm.model.named_parameters())
    expected = {name for name in names if not parts_of(name, tied) & set(parts)}
    if not expected:
        with pytest.raises(ConfigError, match="nothing is left to train") as caught:
            freeze_parts(vlm, parts)
        assert caught.value.code == "C110"
        assert all(p.requires_grad for p in names.values())
        possible = tuple(
            pasted(caught.value.fix).removeprefix("train.freeze=[").removesuffix("]").split(",")
        )
        freeze_parts(vlm, possible)
        assert any(p.requires_grad for p in names.values())
        return
    freeze_parts(vlm, parts)
    assert {name for name, p in names.items() if p.requires_grad} == expected
    assert len(expected) < len(names)


def test_a_part_without_weights_is_refused(tokenizer):
    vlm = build_model(tokenizer, 0)
    parts = {**vlm.family.parts(vlm.model), "vision": []}
    vlm = with_family(vlm, parts=lambda self, model: parts)
    with pytest.raises(ConfigError, match="no weights in 'vision'") as caught:
        freeze_parts(vlm, ("head", "vision"))
    assert (caught.value.code, pasted(caught.value.fix)) == ("C110", "train.freeze=[head]")


@pytest.mark.usefixtures("without_canary")
@pytest.mark.parametrize("parts", few([(parts,) for parts in CHOICES[:-1]], 0, 3), ids="+".join)
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_run_moves_all_other_parts_and_only_those(
    kind, parts, tokenizer, teacher, prompts, tmp_path
):
    student, tied = MODELS[kind](tokenizer), kind == "tied"
    start = {name: p.detach().clone() for name, p in student.model.named_parameters()}

    def run_distill():
        distill(
            student,
            teacher,
            prompts[:2],
            OPD(),
            tmp_path / "run",
            train=TrainSettings(prompts_per_step=2, steps=1, lr=1e-2, freeze=parts),
            rollout=RolloutSettings(per_prompt=2, max_new_tokens=5, all_truncated="go_on"),
            save=SaveSettings(every=0),
            evaluation=EvalSettings(every=0),
        )

    if {"vision", "language"} <= set(parts) and (tied or "head" in parts):
        with pytest.raises(ConfigError, match="nothing is left"):
            run_distill()
        return
    run_distill()
    frozen = set(parts) | ({"head"} if tied and "language" in parts else set())
    frozen |= {"tower"} if "vision" in parts else set()
    moved = {n for n, p in student.model.named_parameters() if not torch.equal(p, start[n])}
    assert not any(parts_of(name, tied) & set(parts) for name in moved)
    assert {part for name in moved for part in parts_of(name, tied)} >= set(PARTS) - frozen


@pytest.mark.parametrize("micro_batch", few([1, "auto"], 1))
def test_with_a_frozen_decoder_prompts_without_an_image_have_no_gradient_and_stop_no_run(
    tokenizer, teacher, tmp_path, micro_batch
):
    """Their loss reaches no trainable weight; `backward` once raised an error without a code."""

    def text_parts(prompt):
        return tuple(part for part in prompt.parts if isinstance(part, str))

    rows = [replace(p, parts=text_parts(p), boxes=(), content="") for p in TRAIN[:3]]
    student = build_untied(tokenizer, 0)
    settings = TrainSettings(
        prompts_per_step=3, lr=3e-3, steps=2, freeze=("language", "head"), micro_batch=micro_batch
    )
    plan = make_plan(
        tokenizer,
        teacher,
        OPD(),
        models=Models(student, teacher, student.vocabulary_size),
        train_prompts=[*rows, *TRAIN[3:]],
        eval_prompts=[],
        train=settings,
    )
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    run_plan(plan, RunFolder(tmp_path))
    records = RunFolder(tmp_path).read(RunFolder(tmp_path).metrics)
    moved = {n for n, p in student.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("vision" in parts_of(name, tied=False) for name in moved)
    assert all(r["finite"] == 1.0 and r["loss"] > 0 for r in records)
