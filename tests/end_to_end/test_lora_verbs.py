"""A run with adapters from a recipe, through train, resume, eval, replay, export and chat."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiers import few
from transformers import AutoModelForImageTextToText

import vistill
from vistill.cli.main import entry
from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError
from vistill.export import export_model
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import adapter_parameters
from vistill.models.hf_reference import reference_log_probs
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.chosen_student import resolve_model
from vistill.training.adapted_student import loading_options
from vistill.training.checks.models import require_full_precision
from vistill.training.load_model import default_dtype
from vistill.training.recipe import Recipe, StudentSettings
from vistill.training.settings import SaveSettings, TrainSettings

PROMPT = diagram_prompts("train", 1, 0)[0]
RESPONSE = (40, 41, 42, 43)
RECIPE = """\
run: run
student: {model: 'vistill:student', train: lora, lora: {rank: 4, targets: [language, projector]}}
teacher: {model: 'vistill:teacher'}
method: va_opd
data: {train: diagrams, diagrams: {train: 8, eval: 4}, text_only: plain}
rollout: {per_prompt: 2, max_new_tokens: 6, all_truncated: go_on}
train: {prompts_per_step: 2, steps: 4, lr: 1.0e-3}
eval: {every: 2, limit: 4, samples: 1, max_new_tokens: 6, blind: false}
save: {every: 1, keep: 2}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


def train(*words):
    return vistill.train("r.yaml", list(words), progress=lambda record: None)


def lines(run):
    """What a run must repeat: all logged values but durations."""
    return [(Path(run) / f"{name}.jsonl").read_text() for name in ("metrics", "evaluations")]


def values(vlm):
    return reference_log_probs(vlm, PROMPT, RESPONSE, vlm.vocabulary_size)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in peft
@pytest.mark.more
def test_a_run_with_adapters_works_with_every_verb(place):
    train()
    student = vistill.load("run")
    newest = Path("run/checkpoint-000004")
    # continued from the checkpoint before, as after a power cut in step 4
    shutil.copytree("run", "cut", symlinks=True)
    shutil.rmtree("cut/checkpoint-000004")
    shutil.rmtree("run", ignore_errors=False)
    Path("cut").rename("run")
    Path("run/result.json").unlink()
    before = lines("run")
    train()
    assert lines("run") == before
    assert newest.is_dir()
    assert torch.equal(values(vistill.load("run")), values(student))
    # evaluated, replayed
    evaluated = json.loads(Path("run/evaluations.jsonl").read_text().splitlines()[-1])
    recipe = vistill.load_recipe("r.yaml", ["student.model=run", "run=eval", "eval.limit=4"])
    again = vistill.evaluate(recipe).evaluations[-1]
    assert again["accuracy"] == evaluated["accuracy"]
    assert vistill.replay("run", 4)[0].same
    (written,) = vistill.generate("run", [PROMPT], rollout=RolloutSettings(max_new_tokens=4))
    assert written
    with pytest.raises(SystemExit) as stop:
        entry(["chat", "run", "--ask", "What is shown?", "--max-new-tokens", "2"])
    assert stop.value.code == 0
    vistill.Run("run").report()
    # exported: a plain folder without peft
    exported = export_model("run")
    assert "merged" in str(exported)
    folder = Path("run-export")
    assert not (folder / "adapter_config.json").exists()
    merged = vistill.load(folder)
    assert not adapter_parameters(merged.model)
    assert torch.allclose(values(merged), values(student), atol=1e-4)
    # PEFT reads the folder of the run
    source = resolve_model("vistill:student")
    base = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(base, "run/student").base_model.model
    own = type(student)(wrapped, student.tokenizer, student.family, "peft")
    assert torch.equal(values(own), values(student))


@pytest.mark.more
def test_a_folder_of_adapters_is_trained_further_merged_and_read_as_a_teacher(place):
    train("train.steps=1")
    start = load_file("run/student/adapter_model.safetensors")
    train("student.model=run", "run=more", "train.steps=1")
    further = load_file("more/student/adapter_model.safetensors")
    assert start.keys() == further.keys()
    assert any(not torch.equal(start[name], further[name]) for name in start)
    config = json.loads(Path("more/student/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "vistill:student"
    with pytest.raises(ConfigError, match="differs from the adapters") as caught:
        train("student.model=run", "run=other", "student.lora.rank=2")
    assert (caught.value.code, caught.value.fix) == ("C101", "student.lora.rank=4")
    train("student.model=run", "run=whole", "student.train=full", "train.steps=1")
    assert Path("whole/student/model.safetensors").is_file()
    train("teacher.model=run", "run=taught", "train.steps=1")


@pytest.mark.parametrize("precision", few(["int8", "nf4"], 0, marks=pytest.mark.slow))
def test_adapters_on_quantised_weights_learn_from_a_quantised_teacher(place, precision):
    words = [f"teacher.precision={precision}", f"student.precision={precision}", "train.steps=2"]
    run = train(*words, "eval.every=0", "save.keep_best=none")
    assert all(record["finite"] == 1.0 for record in run.metrics)
    shutil.rmtree("run/checkpoint-000002")
    Path("run/result.json").unlink()
    before = Path("run/metrics.jsonl").read_text()
    train(*words, "eval.every=0", "save.keep_best=none")
    assert Path("run/metrics.jsonl").read_text() == before


def test_a_student_with_adapters_is_distilled_from_python(place):
    prompts = diagram_prompts("train", 4, 0)
    student = vistill.load("vistill:student", lora=LoraSettings(rank=2))
    weights = {n: p.detach().clone() for n, p in student.model.named_parameters()}

    def distill(student, out):
        return vistill.distill(
            student,
            None,
            [with_response(p) for p in prompts],
            vistill.SFT(),
            out,
            train=TrainSettings(prompts_per_step=2, steps=2, lr=1e-2),
            rollout=RolloutSettings(max_new_tokens=6),
            save=SaveSettings(every=1),
            progress=lambda record: None,
        )

    run = distill(student, "mine")
    moved = {n for n, p in student.model.named_parameters() if not torch.equal(p, weights[n])}
    assert moved
    assert moved <= adapter_parameters(student.model).keys()
    recipe = json.loads(Path("mine/recipe.json").read_text())["student"]
    assert recipe["train"] == "lora"
    assert (recipe["lora"]["rank"], recipe["lora"]["targets"]) == (2, ["language"])
    assert torch.equal(values(vistill.load(run.path)), values(student))
    assert vistill.replay("mine", 2)[0].same
    with torch.no_grad():
        student.model.get_input_embeddings().weight.add_(0.1)
    with pytest.raises(ConfigError, match="cannot be loaded again") as caught:
        distill(student, "other")
    assert caught.value.code == "C101"


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_load_keeps_frozen_weights_under_lora_in_the_precision_that_a_recipe_gives_them(device):
    settings = StudentSettings("vistill:student", train="lora")
    options = loading_options(Recipe("run", settings, "opd"), device)
    assert options == {"dtype": default_dtype(device, frozen=False, lora=True), "quantization": ""}
    assert (options["dtype"] is torch.bfloat16) == (device == "cuda")
    assert default_dtype(device, frozen=False, lora=False) is torch.float32


def test_load_adds_float32_adapters_to_weights_of_half_precision():
    student = vistill.load("vistill:student", lora=LoraSettings(rank=2), dtype=torch.bfloat16)
    adapters = adapter_parameters(student.model)
    assert {p.dtype for p in adapters.values()} == {torch.float32}
    frozen = {p.dtype for n, p in student.model.named_parameters() if n not in adapters}
    assert frozen == {torch.bfloat16}
    require_full_precision(student)


def with_response(prompt):
    return replace(prompt, response=f"The answer is {prompt.answer}.")


def test_check_prints_what_quantising_the_teacher_changes(place, capsys):
    with pytest.raises(SystemExit) as stop:
        entry(["check", "r.yaml", "teacher.precision=int8"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "LoRA on 25 layers: 17,280 of" in text
    assert "teacher in int8: KL(before || after)" in text
    assert "nats per token, at most" in text
    assert "; visual advantage " in text
