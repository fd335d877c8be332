"""The contract of `generic` on tiny models of the real classes of thirteen model types."""

import dataclasses
import re

import pytest
import tiny_families
import torch
from PIL import Image
from tiny_families import BUILDERS, PLAIN, SHARING, build_family
from transformers import AutoModelForImageTextToText, AutoProcessor

from vistill.data.decoding import to_rgb
from vistill.errors import ConfigError, DataError, ModelError
from vistill.flops_counter import counting
from vistill.models.chat import chat_messages, load_images
from vistill.models.families.generic import GenericFamily
from vistill.models.families.inputs import has_same_pixels
from vistill.models.families.processor_family import TYPES
from vistill.models.families.qwen3_vl import Qwen3VLFamily
from vistill.models.hf_reference import reference_log_probs
from vistill.models.loading import load_encoder, load_vlm
from vistill.models.save import save_vlm
from vistill.models.scoring import EncodedGroup, all_responses, open_reading, response_states
from vistill.models.selftest import run_selftest
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.engine_proof import prove_engine
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.training.optim import freeze_parts
from vistill.types import LoadedImage, Prompt, View
from vistill.views import apply_view

RESPONSES = ((40, 41, 42, 43, 44, 45, 46), (50, 51, 52), (60,))
#: Largest difference of two ways to read the same tokens, relative to the largest entry.
TOLERANCE = 2e-5
#: In the first tier: a family that shares prompts and one that does not, without the extra.
FIRST = ("llava", "gemma3")
SHARES = {build.__name__ for build in SHARING}


def families(names=BUILDERS):
    """Parameters: the families of the first tier, and the others."""
    return [n if n in FIRST else pytest.param(n, marks=pytest.mark.more) for n in names]


@pytest.fixture(scope="module")
def models():
    """One frozen model of each family, built on first use."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = build_family(name, 1).freeze()
        return built[name]

    return get


@pytest.fixture
def varied(prompts):
    """Prompts with one image, another one, none, two, a pixelated one, and a wide one."""
    a, b, c = prompts[:3]
    wide = Image.linear_gradient("L").resize((100, 40)).convert("RGB")
    return [
        a,
        b,
        apply_view(c, View.TEXT_ONLY),
        Prompt("two", (a.images[0], "first, second ", b.images[0], "which?")),
        apply_view(c, View.PIXELATED),
        Prompt("wide", (LoadedImage(wide), "what is this?")),
    ]


def make_groups(vlm, prompts):
    return [EncodedGroup(vlm.encode(p), RESPONSES[: 1 + i % 3]) for i, p in enumerate(prompts)]


def one_row_per_rollout(vlm):
    return dataclasses.replace(vlm, share_prompts=False)


def relative_difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


def test_every_family_is_listed_once():
    assert set(PLAIN) | SHARES <= set(BUILDERS)
    assert len(BUILDERS) == 14


@pytest.mark.parametrize("name", families())
def test_an_encoding_is_what_the_saved_processor_makes(name, models, varied, tmp_path):
    vlm = models(name)
    vlm.family.save_processor(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    # AutoProcessor takes torchvision where it is installed; its pixels differ by rounding
    processor.image_processor = type(vlm.family.processor.image_processor).from_pretrained(tmp_path)
    for prompt in varied:
        images = [to_rgb(image) for image in load_images(prompt)]
        if not images and name.startswith("paligemma"):  # its processor refuses text alone
            continue
        text = processor.apply_chat_template(
            chat_messages(prompt), tokenize=False, add_generation_prompt=True
        )
        options = {"images": [images]} if images else {}
        expected = processor(text=[text], add_special_tokens=False, return_tensors="pt", **options)
        encoded = vlm.encode(prompt)
        assert list(encoded.ids) == expected.pop("input_ids")[0].tolist()
        expected.pop("attention_mask")
        expected.pop("labels", None)
        types = {key: expected.pop(key)[0].tolist() for key in list(expected) if TYPES in key}
        assert {key: list(x) for key, x in encoded.token_types.items()} == types
        assert encoded.pixels.keys() == expected.keys()
        assert all(torch.equal(encoded.pixels[key], expected[key]) for key in expected)
        assert vlm.lengths(prompt) == (len(encoded.ids), encoded.num_image_tokens)
        assert vlm.family.encoding_problem(encoded, load_images(prompt)) is None
        assert encoded.next_position > int(encoded.positions[:, -1].max())


@pytest.mark.parametrize("name", families())
def test_states_are_those_of_a_plain_forward_on_the_processors_inputs(name, models, varied):
    vlm = models(name)
    groups, vocabulary = make_groups(vlm, varied), vlm.vocabulary_size
    ids = torch.tensor([i for g in groups for r in g.responses for i in r])
    with torch.no_grad():
        states = response_states(one_row_per_rollout(vlm), groups)
        ours = torch.log_softmax(vlm.head(vocabulary).logits(states), -1).gather(-1, ids[:, None])
        reference = torch.cat(
            [
                reference_log_probs(vlm, prompt, response, vocabulary)
                for prompt, group in zip(varied, groups, strict=True)
                for response in group.responses
            ]
        )
    assert float((ours[:, 0] - reference).abs().max()) < 2e-5


@pytest.mark.parametrize("name", families(sorted(SHARES)))
def test_shared_prompts_give_the_states_and_gradients_of_separate_rows(name, varied):
    gradients, states = [], []
    for cut in (True, False):
        vlm = build_family(name, 3)
        assert vlm.shares_prompts
        vlm = vlm if cut else one_row_per_rollout(vlm)
        groups = make_groups(vlm, varied)
        with torch.no_grad():
            states.append(response_states(vlm, groups))
        reading = open_reading(vlm, groups, cut=cut)
        for place in all_responses(groups):
            reading.read([place]).square().sum().backward()
        reading.close()
        gradients.append({n: p.grad for n, p in vlm.model.named_parameters() if p.grad is not None})
    assert relative_difference(*states) < TOLERANCE
    assert gradients[0].keys() == gradients[1].keys()
    a, b = (torch.cat([g.flatten() for g in x.values()]) for x in gradients)
    assert float((a - b).norm()) < 1e-5 * float(b.norm())
    assert any("vis" in n and bool(g.any()) for n, g in gradients[0].items())


@pytest.mark.parametrize("name", families(sorted(set(BUILDERS) - SHARES)))
def test_the_guard_refuses_to_share_what_is_not_plain_causal_attention(name, models):
    vlm = models(name)
    assert vlm.family.sharing_problem(vlm.model) is not None
    with pytest.warns(UserWarning, match="prompts are not shared between siblings"):
        assert not run_selftest(vlm).shares_prompts


def with_own_adapter(vlm):
    """Qwen3-VL with the adapter of its own."""
    processor = vlm.family.processor
    vlm.tokenizer.chat_template = processor.chat_template
    family = Qwen3VLFamily(vlm.model.config, vlm.tokenizer, processor.image_processor)
    return dataclasses.replace(vlm, family=family)


@pytest.mark.more
def test_generic_reads_qwen3_vl_as_its_own_adapter_does(varied):
    """States, loss and gradient; the adapter shares prompts, `generic` does not."""
    gradients, losses = [], []
    for own in (True, False):
        vlm = build_family("qwen3_vl", 5)
        vlm = with_own_adapter(vlm) if own else one_row_per_rollout(vlm)
        groups = make_groups(vlm, varied)
        ids = torch.tensor([i for g in groups for r in g.responses for i in r])
        logits = vlm.head(vlm.vocabulary_size).logits(response_states(vlm, groups))
        loss = torch.nn.functional.cross_entropy(logits, ids)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({n: p.grad for n, p in vlm.model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    a, b = (torch.cat([g.flatten() for g in x.values()]) for x in gradients)
    assert float((a - b).norm()) < 1e-5 * float(b.norm())


@pytest.mark.more
def test_generic_encodes_qwen3_vl_as_its_own_adapter_does(varied):
    vlm = build_family("qwen3_vl", 5)
    own = with_own_adapter(vlm)
    for prompt in varied:
        a, b = own.encode(prompt), vlm.encode(prompt)
        assert a.ids == b.ids
        assert torch.equal(a.positions, b.positions)
        assert a.next_position == b.next_position
        assert has_same_pixels(a, b)


def test_the_guard_refuses_a_window_that_is_longer_than_the_self_test(models):
    vlm = models("llava")
    config = vlm.model.config.text_config
    config.sliding_window = 4096
    try:
        assert "window" in vlm.family.sharing_problem(vlm.model)
    finally:
        del config.sliding_window


@pytest.mark.parametrize("name", families())
def test_engines_give_every_sibling_its_images_in_every_batch(name, models, varied):
    vlm = models(name)
    requests = [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in varied]
    sampling = Sampling(0, 0, 1.0, 1.0, 8)
    together = HFEngine(vlm).generate(requests, sampling)
    assert together == [HFEngine(vlm).generate([r], sampling)[0] for r in requests]
    if vlm.shares_prompts:
        assert SharedEngine(vlm).generate(requests, sampling) == together
    prove_engine(vlm, make_engine(vlm, RolloutSettings()))


def of_vision(name):
    """Whether a weight belongs to the tower or to what stands between it and the decoder."""
    return any(part in name for part in ("vis", "project", "connector", "newline"))


@pytest.mark.parametrize("name", families())
def test_every_part_can_be_frozen_and_no_weight_belongs_to_none(name):
    vlm = build_family(name)
    parts = vlm.family.parts(vlm.model)
    ids = {
        part: {
            id(p)
            for m in modules
            for p in ([m] if isinstance(m, torch.nn.Parameter) else m.parameters())
        }
        for part, modules in parts.items()
    }
    assert set.union(*ids.values()) == {id(p) for p in vlm.model.parameters()}
    assert all(ids.values())
    freeze_parts(vlm, ("language",))
    frozen = {n for n, p in vlm.model.named_parameters() if not p.requires_grad}
    assert any("layers" in name for name in frozen)
    assert not any(of_vision(name) for name in frozen)
    vlm = build_family(name)
    freeze_parts(vlm, ("vision",))
    trained = {n for n, p in vlm.model.named_parameters() if p.requires_grad}
    assert not any(
        "project" in n or "connector" in n or "newline" in n or "vis" in n for n in trained
    )


@pytest.mark.parametrize("name", families())
def test_a_projector_is_trained_alone_where_tower_and_decoder_are_frozen(name):
    vlm = build_family(name)
    freeze_parts(vlm, ("tower", "language", "head"))
    trained = {n for n, p in vlm.model.named_parameters() if p.requires_grad}
    words = ("projector", "connector", "newline", "merger", "downsample")
    assert trained
    assert all(any(word in n for word in words) for n in trained)


@pytest.mark.parametrize("name", families())
def test_a_saved_folder_loads_here_and_in_plain_transformers(name, models, varied, tmp_path):
    vlm = models(name)
    save_vlm(vlm, tmp_path)
    loaded = load_vlm(tmp_path)
    assert type(loaded.family) is type(vlm.family)
    assert loaded.family.describe() == f"generic ({vlm.model.config.model_type})"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    ours, theirs = vlm.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() == loaded.model.state_dict().keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    a, b = vlm.encode(varied[0]), loaded.encode(varied[0])
    assert a.ids == b.ids
    assert all(torch.equal(a.pixels[key], b.pixels[key]) for key in a.pixels)
    text = processor.apply_chat_template(
        chat_messages(varied[0]), tokenize=False, add_generation_prompt=True
    )
    output = processor(
        text=[text], images=[load_images(varied[0])], add_special_tokens=False, return_tensors="pt"
    )
    assert tuple(output["input_ids"][0].tolist()) == a.ids
    assert output.keys() - {"labels"} == {"input_ids", "attention_mask", *a.pixels, *a.token_types}
    assert set(loaded.stop_ids) == set(vlm.stop_ids)


@pytest.mark.parametrize("name", families())
def test_a_reading_is_counted_with_its_patches(name, models, varied):
    vlm = models(name)
    groups = make_groups(vlm, varied[:1])
    with torch.no_grad(), counting() as totals:
        response_states(vlm, groups)
    assert totals["patches"] >= 0.5 * groups[0].prompt.num_image_tokens  # newlines are no patches
    assert totals["flops"] > 0


@pytest.mark.parametrize("name", families())
def test_a_limit_of_image_tokens_is_met_or_refused(name):
    family = build_family(name).family
    fixed = {"llava", "gemma3", "paligemma", "paligemma2", "llava_onevision"}
    if name in fixed:
        with pytest.raises(ConfigError) as caught:
            family.limit_image_tokens(3)
        *possible, last = caught.value.fix.split("   or   ")
        assert (caught.value.code, last) == ("C101", "data.max_image_tokens=null")
        for fix in possible:
            build_family(name).family.limit_image_tokens(int(fix.rpartition("=")[2]))
        if name != "llava_onevision":  # every image has the same tokens: a larger limit is met
            family.limit_image_tokens(1024)
        return
    with pytest.raises(ConfigError) as caught:
        build_family(name).family.limit_image_tokens(0)
    proposed = re.match(r"data\.max_image_tokens=(\d+)   or   ", caught.value.fix)
    assert proposed is not None
    build_family(name).family.limit_image_tokens(int(proposed[1]))
    family.limit_image_tokens(6)
    sizes = ((640, 480), (100, 700), (900, 900))
    assert all(0 < family.image_tokens(Image.new("RGB", size)) <= 6 for size in sizes)


@pytest.mark.parametrize("name", families())
def test_special_tokens_are_never_written_and_end_tokens_may_be(name, models):
    vlm = models(name)
    banned = set(vlm.family.banned_ids()) - set(vlm.stop_ids)
    words = vlm.tokenizer.convert_ids_to_tokens(sorted(banned))
    assert vlm.family.image_id in banned
    assert {"<image>", "[IMG_BREAK]", "<row_1_col_1>"} <= set(words)
    assert "<loc0001>" not in words


@pytest.mark.parametrize("token", ["<image>", "[IMG_BREAK]", "<row_1_col_1>", "<|im_end|>"])
def test_a_special_token_of_any_family_in_a_text_is_an_error(models, token):
    content = [{"type": "text", "text": f"an {token} of"}]
    with pytest.raises(DataError) as caught:
        models("llava").family.encode([{"role": "user", "content": content}], [])
    assert caught.value.code == "D103"
    assert token in caught.value.what


def test_a_template_that_drops_images_is_an_error(models, prompts, monkeypatch):
    vlm = models("llava")
    monkeypatch.setattr(vlm.family.processor, "chat_template", tiny_families.template(""))
    with pytest.raises(DataError, match="0 image placeholders, but 1 images") as caught:
        vlm.encode(prompts[0])
    assert caught.value.code == "D103"


def test_a_keyword_that_the_model_would_ignore_is_an_error(models, monkeypatch):
    vlm = models("gemma3")

    def forward(input_ids=None, attention_mask=None, mm_encoder_outputs=None, **kwargs):
        """Accept token types and ignore them."""

    monkeypatch.setattr(vlm.model.model, "forward", forward)
    with pytest.raises(ModelError, match="has no argument 'token_type_ids'") as caught:
        vlm.family.check_arguments(vlm.model)
    assert caught.value.code == "M110"


# The proofs at load: each fails for a real family that is read in a way that looks right.


class WithConfiguredSoftcap(GenericFamily):
    """Gemma 3 without its own rule: it applies a softcap that the model ignores."""


class WithoutTypes(GenericFamily):
    """Drops the token types, in every reading."""

    def encode(self, messages, images):
        return dataclasses.replace(super().encode(messages, images), token_types={})

    def check_arguments(self, model):
        """Accept."""


class WithoutMask(GenericFamily):
    """Reads padding as text: rows are padded on the left, and no mask says so."""

    def backbone(self, model, rows):
        width = rows.ids.shape[1]
        shifts = [width - int(length) for length in rows.mask.sum(1)]
        ids = torch.stack([r.roll(s) for r, s in zip(rows.ids, shifts, strict=True)])
        moved = dataclasses.replace(rows, ids=ids, mask=torch.ones_like(rows.mask))
        states = super().backbone(model, moved)
        return torch.stack([x.roll(-s, 0) for x, s in zip(states, shifts, strict=True)])


class WithPromptTypes(GenericFamily):
    """PaliGemma with the type of a prompt for the response."""

    response_type = 0


def with_family(vlm, kind):
    family = kind(vlm.model.config, vlm.tokenizer, vlm.family.processor)
    return dataclasses.replace(vlm, family=family)


def failed_proof(vlm):
    with pytest.raises(ModelError) as caught:
        run_selftest(vlm)
    assert f"family {vlm.family.describe()}" in caught.value.what
    return caught.value


def test_m111_a_head_that_is_not_the_forwards():
    vlm = build_family("gemma3", 1).freeze()
    vlm.model.config.text_config.final_logit_softcapping = 1.0
    with pytest.warns(UserWarning, match="not shared"):
        run_selftest(vlm)
    error = failed_proof(with_family(vlm, WithConfiguredSoftcap))
    assert error.code == "M111"
    assert "(relative)" in error.what


def test_m112_a_response_that_sees_its_future(models):
    assert failed_proof(with_family(models("paligemma"), WithPromptTypes)).code == "M112"


def test_m113_a_row_that_changes_next_to_another_one(models):
    assert failed_proof(with_family(models("llava"), WithoutMask)).code == "M113"


def test_m114_an_adapter_that_drops_an_input_everywhere(models):
    error = failed_proof(with_family(models("gemma3"), WithoutTypes))
    assert error.code == "M114"
    assert "nats" in error.what


def test_m114_a_configuration_that_contradicts_its_weights(models):
    vlm = models("llava")

    class Broken(GenericFamily):
        def backbone(self, model, rows):
            raise RuntimeError("Image features and image tokens do not match")

    error = failed_proof(with_family(vlm, Broken))
    assert error.code == "M114"
    assert "Image features and image tokens do not match" in error.why


class RepeatedByGenerate(GenericFamily):
    """Lets transformers repeat prompts for siblings, as for other families."""

    def generation_arguments(self, model, prompts, siblings, pad_id):
        inputs = self.generation_inputs(prompts, pad_id)
        return {name: x.to(model.device) for name, x in inputs.items()}, siblings


@pytest.mark.more
def test_m115_glm_repeats_the_images_of_siblings_in_another_order(models):
    vlm = with_family(models("glm4v"), RepeatedByGenerate)
    with pytest.raises(ModelError) as caught:
        prove_engine(vlm, HFEngine(vlm))
    assert caught.value.code == "M115"
    prove_engine(models("glm4v"), HFEngine(models("glm4v")))


def test_m115_an_engine_that_swaps_siblings(models):
    vlm = models("llava")

    class Swapped(HFEngine):
        def generate(self, requests, sampling):
            groups = super().generate(requests, sampling)
            return [
                tuple(dataclasses.replace(r, sibling=s) for s, r in enumerate(reversed(group)))
                for group in groups
            ]

    with pytest.raises(ModelError) as caught:
        prove_engine(vlm, Swapped(vlm))
    assert caught.value.code == "M115"


@pytest.mark.parametrize("name", families())
def test_another_image_changes_the_states_in_every_reading(name, models, prompts):
    vlm = models(name)
    groups = make_groups(vlm, prompts[:2])
    first, second = (g.prompt for g in groups)
    for model in (vlm, one_row_per_rollout(vlm)):
        with torch.no_grad():
            before = response_states(model, [EncodedGroup(first, RESPONSES[:1])])
            swapped = dataclasses.replace(first, pixels=second.pixels)
            after = response_states(model, [EncodedGroup(swapped, RESPONSES[:1])])
        assert ((before - after).abs().amax(-1) > 1e-6).all()


def test_a_folder_without_processor_files_is_refused_before_weights(models, tmp_path):
    save_vlm(models("llava"), tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ModelError) as caught:
        load_encoder(tmp_path)
    assert caught.value.code == "M108"


def test_a_model_without_a_chat_template_is_refused(models, tmp_path):
    save_vlm(models("llava"), tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template") as caught:
        load_encoder(tmp_path)
    assert caught.value.code == "M108"


def test_the_vocabularies_of_the_tiny_families_are_equal(models):
    from vistill.models.pairs import vocabulary_hash

    assert len({vocabulary_hash(models(n).tokenizer) for n in ("llava", "idefics3", "gemma3")}) == 1
    assert tiny_families.vocabulary() != tiny_families.vocabulary("paligemma")
