"""LoRA adapters: which layers get them, what they compute, and their folder, on every family."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from conftest import build_model, build_untied
from peft import PeftModel, get_peft_model
from tiers import few
from tiny_families import BUILDERS, build_family
from transformers import AutoModelForImageTextToText

from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError, MissingExtraError, ModelError
from vistill.lora_settings import LoraSettings
from vistill.models import adapters
from vistill.models.adapters import (
    add_adapters,
    differing_settings,
    file_names,
    linear_layers,
    merge_adapters,
    save_adapters,
    target_layers,
    weights_in,
)
from vistill.models.decoding import Decoder
from vistill.models.hf_reference import reference_log_probs
from vistill.models.loading import load_vlm
from vistill.models.save import save_vlm
from vistill.models.scoring import EncodedGroup, open_reading, score
from vistill.models.selftest import run_selftest
from vistill.training.student_copies import copy_frozen

PROMPT = diagram_prompts("train", 1, 0)[0]
RESPONSES = ((40, 41, 42, 43), (50, 51))
ALL = ("language", "vision")
#: The projector of this family is one matrix, not a linear layer.
WITHOUT_LAYERS = {("gemma3", "projector")}
#: `get_peft_model` reads an attribute of transformers that has another name now.
OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def with_noise(vlm, seed=3):
    """Adapters that change the model: B is not 0."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, p in adapters.adapter_parameters(vlm.model).items():
            if ".lora_B." in name:
                p.normal_(std=0.2)
    return vlm


def adapted(vlm, targets=ALL, rank=4, **options):
    return add_adapters(vlm, LoraSettings(rank=rank, targets=targets, **options), 7, vlm.source)


def backward(vlm):
    """The gradient of the log-probability of two siblings, as a step reads them."""
    group = EncodedGroup(vlm.encode(PROMPT), RESPONSES)
    ids = torch.tensor([i for r in RESPONSES for i in r])
    vlm.model.train()
    reading = open_reading(vlm, [group], cut=True)
    states = reading.read([(0, 0), (0, 1)])
    head = vlm.head(vlm.vocabulary_size)
    logits = states @ head.weight.T
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    loss = -logits.log_softmax(-1).gather(-1, ids[:, None]).sum()
    loss.backward()
    reading.close()
    vlm.model.eval()
    return loss.item()


@pytest.mark.parametrize("target", ["language", "vision", "tower", "projector"])
@pytest.mark.parametrize("name", few(list(BUILDERS), 0))
@pytest.mark.filterwarnings("ignore:.*prompts are not shared between siblings")
def test_every_adapter_of_a_target_has_a_gradient_and_no_other_weight(name, target):
    vlm = build_family(name)
    if (name, target) in WITHOUT_LAYERS:
        with pytest.raises(ConfigError, match="C111"):
            adapted(vlm, (target,))
        return
    with_noise(adapted(vlm, (target,)))
    parts = vlm.family.parts(vlm.model)
    inside = {
        "projector": weights_in(parts["vision"]) - weights_in(parts["tower"]),
        **{part: weights_in(parts[part]) for part in ("language", "vision", "tower")},
    }[target]
    backward(run_selftest(vlm))
    trained = {n: p for n, p in vlm.model.named_parameters() if p.requires_grad}
    assert trained
    assert trained.keys() == adapters.adapter_parameters(vlm.model).keys()
    assert all(id(p) in inside for p in trained.values())
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    assert all(p.grad is None for n, p in vlm.model.named_parameters() if n not in trained)


@pytest.mark.parametrize("name", few(list(BUILDERS), 0))
@pytest.mark.filterwarnings("ignore:.*prompts are not shared between siblings")
def test_readings_decoding_and_transformers_own_forward_use_the_adapters(name):
    plain = build_family(name)
    vlm = run_selftest(with_noise(adapted(build_family(name))))  # compares all ways to read
    values = [reference_log_probs(v, PROMPT, RESPONSES[0], v.vocabulary_size) for v in (vlm, plain)]
    assert (values[0] - values[1]).abs().max() > 1e-3
    group = EncodedGroup(vlm.encode(PROMPT), RESPONSES[:1])
    with torch.no_grad():
        ids = torch.tensor(RESPONSES[0])
        scored = score(vlm, [group], ids, vlm.vocabulary_size, "log_prob").sampled()
    assert torch.allclose(scored, values[0], atol=2e-5)


def test_new_adapters_change_no_number_and_follow_from_the_seed(tokenizer):
    plain = build_model(tokenizer, 0)
    state = torch.get_rng_state()
    vlms = [adapted(build_model(tokenizer, 0)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    other = add_adapters(build_model(tokenizer, 0), LoraSettings(rank=4, targets=ALL), 8, "x")
    first, second, third = (file_names(v.model) for v in (*vlms, other))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not all(torch.equal(first[n], third[n]) for n in first)
    values = [
        reference_log_probs(v, PROMPT, RESPONSES[0], v.vocabulary_size) for v in (plain, vlms[0])
    ]
    assert torch.equal(*values)


@OF_PEFT
@pytest.mark.parametrize("build", [build_model, build_untied])
def test_the_gradient_is_that_of_a_plain_peft_model(build, tokenizer):
    """On the same rows, by PEFT's own model and transformers' own forward pass, in float64."""
    vlm = build(tokenizer, 0)
    vlm.model.double()
    with_noise(adapted(vlm))
    config = copy.deepcopy(vlm.model.peft_config["default"])
    config.base_model_name_or_path = None
    plain = get_peft_model(build(tokenizer, 0).model.double(), config)
    of_peft = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    for name, p in adapters.adapter_parameters(vlm.model).items():
        of_peft[f"base_model.model.{name}"].data.copy_(p.data)
    loss = backward(vlm)
    total = 0.0
    for response in RESPONSES:
        prompt = vlm.encode(PROMPT)
        inputs = vlm.family.generation_inputs(
            [type(prompt)(**{**vars(prompt), "ids": (*prompt.ids, *response)})], vlm.pad_id
        )
        logits = plain(**inputs, logits_to_keep=len(response) + 1, use_cache=False).logits
        log_probs = logits[0, :-1, : vlm.vocabulary_size].log_softmax(-1)
        term = -log_probs.gather(-1, torch.tensor(response)[:, None]).sum()
        term.backward()
        total += term.item()
    assert loss == pytest.approx(total, rel=1e-6)
    gradients = {
        n: (p.grad, of_peft[f"base_model.model.{n}"].grad)
        for n, p in adapters.adapter_parameters(vlm.model).items()
    }
    scale = max(float(g.abs().max()) for _, g in gradients.values())
    assert all(float((a - b).abs().max()) <= 1e-6 * scale for a, b in gradients.values())


def test_the_fused_decoder_step_is_not_used_with_adapters(tokenizer):
    """Its weights would be those of the layers below the adapters."""
    vlm = build_model(tokenizer, 0)
    assert vlm.family.decoder_step(vlm.model) is not None
    assert vlm.family.decoder_step(adapted(vlm).model) is None
    decoder = Decoder(with_noise(vlm), [vlm.encode(PROMPT)], [0])
    group = EncodedGroup(vlm.encode(PROMPT), RESPONSES[:1])
    with torch.no_grad():
        expected = open_reading(vlm, [group]).read([(0, 0)])[0]
    assert torch.allclose(decoder.states()[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", few(list(BUILDERS), 0))
def test_merged_weights_read_like_adapters(name):
    vlm = with_noise(adapted(build_family(name)))
    before = reference_log_probs(vlm, PROMPT, RESPONSES[0], vlm.vocabulary_size)
    merge_adapters(vlm.model)
    names = {n for n, _ in build_family(name).model.named_parameters()}
    assert {n for n, _ in vlm.model.named_parameters()} == names
    after = reference_log_probs(vlm, PROMPT, RESPONSES[0], vlm.vocabulary_size)
    assert torch.allclose(before, after, atol=1e-4)


def test_a_copy_shares_every_weight_but_the_adapters(tokenizer):
    vlm = adapted(build_model(tokenizer, 0))
    model, twin = vlm.model, copy_frozen(vlm).model
    own = adapters.adapter_parameters(model).keys()
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert (a is b) == (name not in own)
        assert torch.equal(a, b)


@OF_PEFT
@pytest.mark.parametrize("build", few([build_model, build_untied], 0))
def test_a_folder_of_adapters_is_loaded_by_peft_and_by_vistill(build, tokenizer, tmp_path):
    plain = build(tokenizer, 0)
    save_vlm(plain, tmp_path / "base")
    vlm = load_vlm(tmp_path / "base")
    with_noise(adapted(vlm))
    save_vlm(vlm, tmp_path / "student")
    expected = reference_log_probs(vlm, PROMPT, RESPONSES[0], vlm.vocabulary_size)
    files = {file.name for file in (tmp_path / "student").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json"} <= files
    assert "model.safetensors" not in files
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    wrapped = PeftModel.from_pretrained(base, tmp_path / "student")
    of_peft = wrapped.base_model.model
    ours = load_vlm(tmp_path / "student")
    assert ours.source == str(tmp_path / "student")
    for model in (of_peft, ours.model):
        values = reference_log_probs(
            type(vlm)(model, vlm.tokenizer, vlm.family, "x"),
            PROMPT,
            RESPONSES[0],
            vlm.vocabulary_size,
        )
        assert torch.equal(values, expected)
    save_vlm(ours, tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "student" / name
        ).read_bytes()


def test_adapters_on_a_half_precision_base_are_float32(tokenizer):
    vlm = build_model(tokenizer, 0)
    vlm.model.to(torch.bfloat16)
    adapted(vlm)
    dtypes = {p.dtype for p in adapters.adapter_parameters(vlm.model).values()}
    assert dtypes == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        backward(with_noise(vlm))
    run_selftest(vlm)  # outside autocast, as a rollout decodes


def test_a_target_without_layers_is_refused_with_targets_that_have_some(tokenizer):
    vlm = build_model(tokenizer, 0)
    parts = vlm.family.parts(vlm.model)
    parts = {**parts, "vision": parts["tower"]}
    vlm.family.parts = lambda model: parts
    with pytest.raises(ConfigError, match="no linear layer in 'projector'") as caught:
        target_layers(vlm, ("projector", "language"))
    assert (caught.value.code, caught.value.fix) == ("C111", "'student.lora.targets=[language]'")
    with pytest.raises(ConfigError, match="C111") as caught:
        target_layers(vlm, ("projector",))
    assert caught.value.fix == "'student.lora.targets=[language]'"
    with pytest.raises(ConfigError, match="targets cannot be"):
        LoraSettings(targets=())


def test_the_layers_of_a_target_are_the_same_before_and_after(tokenizer):
    vlm = build_model(tokenizer, 0)
    names = target_layers(vlm, ALL)
    adapted(vlm, ("tower",))
    assert target_layers(vlm, ALL) == names
    assert set(linear_layers(vlm.model)) == set(names)
    assert differing_settings(vlm, LoraSettings(rank=4, targets=("tower",))) == {}
    other = LoraSettings(rank=8, alpha=3, targets=("vision",))
    assert differing_settings(vlm, other) == {"rank": "4", "alpha": "32.0", "targets": "[tower]"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"base_model_name_or_path": None}, "the base None"),
        ({"r": 2}, "has the shape"),
        ({"target_modules": ["nothing"]}, "nothing"),
    ],
)
def test_a_folder_whose_adapters_do_not_fit_is_refused(change, why, tokenizer, tmp_path):
    save_vlm(build_model(tokenizer, 0), tmp_path / "base")
    vlm = adapted(load_vlm(tmp_path / "base"))
    save_vlm(vlm, tmp_path / "student")
    file = tmp_path / "student" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=why) as caught:
        load_vlm(tmp_path / "student")
    assert caught.value.code == "M107"


def test_a_missing_base_is_named(tokenizer, tmp_path):
    save_vlm(build_model(tokenizer, 0), tmp_path / "base")
    save_adapters(adapted(load_vlm(tmp_path / "base")).model, tmp_path / "student")
    save_vlm(adapted(load_vlm(tmp_path / "base")), tmp_path / "student")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="base") as caught:
        load_vlm(tmp_path / "student")
    assert caught.value.code == "M103"


def test_without_peft_the_extra_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="vistill\\[lora\\]") as caught:
        adapted(build_model(tokenizer, 0))
    assert caught.value.code == "E301"


@pytest.mark.more
def test_peft_is_not_imported_without_adapters():
    program = (
        "import sys, vistill, vistill.training.loop, vistill.api\n"
        "vistill.load('vistill:student')\n"
        "assert 'peft' not in sys.modules, 'peft was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_backward_pass_of_adapters_costs_less_than_that_of_all_weights(tokenizer):
    vlm = build_model(tokenizer, 0)
    full = vlm.family.costs(vlm.model)
    assert (full.text_backward, full.vision_backward) == (2.0, 2.0)
    costs = vlm.family.costs(adapted(vlm, ("language",), rank=1).model)
    assert 1.0 < costs.text_backward < 1.2
    assert costs.vision_backward == 0.0
    assert costs.token > full.token
