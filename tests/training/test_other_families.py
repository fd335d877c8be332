"""Runs with models of `generic`: methods, resume, and teachers of another family."""

import dataclasses
import json

import pytest
import torch
from tiny_families import BUILDERS, build_family
from transformers import AutoModelForImageTextToText, AutoProcessor

import vistill
from vistill.api import distill
from vistill.data.diagrams import DiagramSettings, diagram_prompts
from vistill.errors import ModelError
from vistill.models.pairs import check_pair, same_family
from vistill.models.selftest import run_selftest
from vistill.objectives import OPD, SFT, VAOPD, VGS, VisualOPSD
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.settings import RolloutSettings
from vistill.training.models_of_run import Models
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import Reader, View

pytestmark = pytest.mark.filterwarnings("ignore:.*prompts are not shared between siblings")

ROWS = [
    dataclasses.replace(p, response=f"The answer is {p.answer}.")
    for p in diagram_prompts("train", 4, 0, DiagramSettings(thoughts=True))
]
METHODS = {
    "sft": SFT(),
    "opd": OPD(),
    "va_opd": VAOPD(),
    "vgs": VGS(),
    "visual_opsd": VisualOPSD(gate=False),
}
#: In the first tier.
FIRST = {("llava", "va_opd")}


def run_two_steps(student, teacher, method, out, **options):
    train = TrainSettings(prompts_per_step=2, steps=2, lr=1e-3)
    settings = {
        "train": train,
        "rollout": RolloutSettings(per_prompt=2, max_new_tokens=6, all_truncated="go_on"),
        "save": SaveSettings(every=2, keep=1),
        **options,
    }
    return distill(student, teacher, ROWS, METHODS[method], out, **settings)


def tier(name, method):
    if (name, method) in FIRST:
        return []
    return [pytest.mark.more if method == "va_opd" else pytest.mark.slow]


PAIRS = [pytest.param(n, m, marks=tier(n, m), id=f"{n}-{m}") for n in BUILDERS for m in METHODS]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_two_steps_of_a_method(name, method, tmp_path):
    """The canary and its proof of the engine run too."""
    student, teacher = build_family(name, 0), run_selftest(build_family(name, 1))
    start = {n: p.detach().clone() for n, p in student.model.named_parameters()}
    teacher = None if method in ("sft", "visual_opsd") else teacher
    run = run_two_steps(student, teacher, method, tmp_path / "run")
    assert [m["step"] for m in run.metrics] == [1, 2]
    assert all(m["finite"] for m in run.metrics)
    changed = {n for n, p in student.model.named_parameters() if not torch.equal(p, start[n])}
    assert any("vis" in n for n in changed)
    assert any("layers" in n and "vis" not in n for n in changed)


def evaluations(run):
    return (run / "evaluations.jsonl").read_text().splitlines()


@pytest.mark.more
def test_a_run_of_two_families_starts_where_the_tokenizer_is_the_same(tmp_path):
    student, teacher = build_family("idefics3", 0), build_family("llava", 1)
    assert not same_family(student, teacher)
    assert check_pair(student, teacher) == student.vocabulary_size
    held = diagram_prompts("test", 4, 0)
    run = run_two_steps(student, teacher, "va_opd", tmp_path / "run", eval_prompts=held)
    assert all(m["finite"] for m in run.metrics)
    assert any("va/mean" in e for e in (json.loads(line) for line in evaluations(tmp_path / "run")))
    saved = tmp_path / "run" / "student"
    AutoModelForImageTextToText.from_pretrained(saved)
    AutoProcessor.from_pretrained(saved)
    lock = json.loads((tmp_path / "run" / "run.lock.json").read_text())
    assert [lock["models"][role]["family"] for role in ("student", "teacher")] == [
        "generic (idefics3)",
        "generic (llava)",
    ]


def test_each_model_of_two_families_reads_its_own_encoding_and_writes_no_image_tokens():
    student, teacher = build_family("idefics3", 0), build_family("llava", 1)
    models = Models(student, teacher, student.vocabulary_size, teacher_encodes=True)
    prompt, view = ROWS[0], View.FULL
    assert models.encode(prompt, view).ids == student.encode(prompt).ids
    assert models.encode(prompt, view, Reader.TEACHER).ids == teacher.encode(prompt).ids
    assert student.encode(prompt).ids != teacher.encode(prompt).ids
    alone = dataclasses.replace(models, teacher_encodes=False)
    assert alone.encode(prompt, view, Reader.TEACHER).ids == student.encode(prompt).ids
    banned = dataclasses.replace(student, also_banned=(77, teacher.family.image_id))
    assert {77, teacher.family.image_id} <= set(banned_ids(banned))


def test_tokenizers_with_equal_words_and_other_merges_are_refused():
    student, teacher = build_family("llava", 0), build_family("gemma3", 1)
    backend = json.loads(teacher.tokenizer.backend_tokenizer.to_str())
    backend["model"]["merges"] = backend["model"]["merges"][::-1]
    tokenizer = type(teacher.tokenizer.backend_tokenizer).from_str(json.dumps(backend))
    teacher.tokenizer._tokenizer = tokenizer
    with pytest.raises(ModelError, match="split the same text") as caught:
        check_pair(student, teacher)
    assert caught.value.code == "M101"


def test_models_of_one_family_with_other_image_tokens_are_refused():
    student, teacher = build_family("gemma3", 0), build_family("gemma3", 1)
    assert check_pair(student, teacher) == student.vocabulary_size
    teacher.family.processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    with pytest.raises(ModelError) as caught:
        check_pair(student, teacher)
    assert caught.value.code == "M102"


@pytest.mark.more
def test_a_killed_run_of_generic_continues_with_the_same_numbers(tmp_path):
    """The run stops after its first checkpoint; a second call continues."""
    options = {"save": SaveSettings(every=1, keep=2)}

    def start(out, steps):
        train = TrainSettings(prompts_per_step=2, steps=2, lr=1e-3)
        seen = []

        def stop(record):
            seen.append(record)
            if len(seen) == steps:
                raise KeyboardInterrupt

        progress = {} if steps == 2 else {"progress": stop}
        return run_two_steps(
            build_family("llava", 0), build_family("llava", 1), "va_opd", out,
            train=train, **options, **progress,
        )  # fmt: skip

    whole = start(tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "cut", 1)
    again = start(tmp_path / "cut", 2)
    keys = ("loss", "grad_norm", "response_tokens")
    assert [m.get(k) for m in whole.metrics for k in keys] == [
        m.get(k) for m in again.metrics for k in keys
    ]


def test_a_saved_model_loads_with_vistill_load(tmp_path):
    from vistill.models.save import save_vlm

    save_vlm(build_family("llava", 2), tmp_path)
    vlm = vistill.load(str(tmp_path), device="cpu")
    assert vlm.family.describe() == "generic (llava)"
    assert vlm.shares_prompts
