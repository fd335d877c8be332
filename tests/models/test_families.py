"""The contract of a family, tested on every registered family and on a minimal second one."""

import dataclasses
from functools import partial

import pytest
import torch
from conftest import build_model
from PIL import Image
from tiny_llava import LlavaFamily, build_llava

from vistill.api import distill
from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError, ModelError
from vistill.flops_counter import counting
from vistill.models.chat import load_images
from vistill.models.decoding import Decoder
from vistill.models.families.base import Family, base_model
from vistill.models.families.layers import check_signature
from vistill.models.hf_reference import reference_log_probs
from vistill.models.loading import load_vlm, teacher_dtype
from vistill.models.save import save_vlm
from vistill.models.scoring import EncodedGroup, all_responses, open_reading, response_states
from vistill.models.selftest import run_selftest
from vistill.objectives import OPD
from vistill.registry import Shipped, families
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import LoadedImage, Prompt, View
from vistill.views import ViewContext, apply_view

#: Builds a tiny model of each family.
TINY = {"qwen3_vl": partial(build_model, hidden=48), "llava": build_llava}
RESPONSES = ((40, 41, 42, 43, 44, 45, 46), (50, 51, 52), (60,))
#: Largest difference of two ways to read the same tokens, relative to the largest entry.
TOLERANCE = 2e-5


@pytest.fixture(params=list(TINY))
def name(request):
    return request.param


@pytest.fixture
def vlm(name, tokenizer):
    return TINY[name](tokenizer, 1).freeze()


@pytest.fixture
def varied_prompts(prompts):
    """Prompts with one image, another image, no image, two images, and a pixelated image."""
    a, b, c = prompts[:3]
    two = Prompt("two", (a.images[0], "first, second ", b.images[0], "which?"))
    return [a, b, apply_view(c, View.TEXT_ONLY), two, apply_view(c, View.PIXELATED)]


def without_sharing(vlm):
    return dataclasses.replace(vlm, share_prompts=False)


def with_hook(vlm):
    """The same model with a hook on its module, so that every reading must go through it."""
    hooked = dataclasses.replace(vlm, packed=None)
    hooked.packed.register_forward_pre_hook(lambda *_: None)
    return hooked


def make_groups(vlm, prompts):
    return [EncodedGroup(vlm.encode(p), RESPONSES[: 1 + i % 3]) for i, p in enumerate(prompts)]


def decoded_states(vlm, groups):
    """Hidden states of the responses, decoded token after token."""
    decoder = Decoder(
        vlm, [g.prompt for g in groups], [i for i, g in enumerate(groups) for _ in g.responses]
    )
    rows, longest = (
        [r for g in groups for r in g.responses],
        max(len(r) for g in groups for r in g.responses),
    )
    states = []
    for t in range(longest):
        states.append(decoder.states())
        decoder.append(torch.tensor([r[min(t, len(r) - 1)] for r in rows]))
    return torch.cat([torch.stack(states)[: len(r), i] for i, r in enumerate(rows)])


def forward_log_probs(vlm, groups):
    """Log-probabilities of transformers' own forward, one prompt and response per call."""
    pairs = [(g.prompt, r) for g in groups for r in g.responses]
    return torch.cat(
        [reference_log_probs(vlm, p, r, vlm.vocabulary_size)[:, None] for p, r in pairs]
    )


PATHS = {
    "packed": response_states,
    "rows": lambda vlm, groups: response_states(without_sharing(vlm), groups),
    "decoder step": decoded_states,
    "decoder step through the module": lambda vlm, groups: decoded_states(with_hook(vlm), groups),
    "forward of transformers": forward_log_probs,
}


def relative_difference(a, b):
    """Largest difference relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def test_every_family_has_a_tiny_model_here():
    # `generic` is tested on every model type in test_generic.py
    assert {*TINY, "generic"} == {*families.builtin, LlavaFamily.name}
    assert all(
        issubclass(kind, Family) and kind.name == name for name, kind in Shipped(families).items()
    )


def test_a_family_must_define_only_four_things():
    defined = {n for n in vars(LlavaFamily) if not n.startswith("__") and n != "_abc_impl"}
    assert defined == {"name", "processor_type", "image_tokens", "image_grid"}


def test_an_encoding_has_the_image_tokens_that_its_images_need(vlm, varied_prompts):
    family = vlm.family
    for prompt in varied_prompts:
        encoded, images = vlm.encode(prompt), load_images(prompt)
        assert (
            encoded.num_image_tokens
            == encoded.ids.count(family.image_id)
            == sum(map(family.image_tokens, images))
        )
        assert encoded.positions.shape[1] == len(encoded.ids)
        assert encoded.next_position > int(encoded.positions[:, -1].max())
        assert encoded.has_image == bool(images) == bool(encoded.pixels)
        assert family.encoding_problem(encoded, images) is None
        if images:
            at = encoded.ids.index(family.image_id)
            shorter = dataclasses.replace(encoded, ids=encoded.ids[:at] + encoded.ids[at + 1 :])
            assert "image tokens" in family.encoding_problem(shorter, images)
            without_pixels = dataclasses.replace(encoded, pixels={})
            assert "missing" in family.encoding_problem(without_pixels, images)
    assert family.image_id in family.banned_ids()
    assert family.image_grid()["patch"] > 0


@pytest.mark.parametrize("size", [(64, 64), (200, 40), (40, 200), (33, 35)])
def test_the_number_of_image_tokens_follows_from_the_size_alone(vlm, size):
    image = Image.new("RGB", size, (200, 10, 10))
    encoded = vlm.encode(Prompt("x", (LoadedImage(image), "?")))
    assert encoded.num_image_tokens == vlm.family.image_tokens(image)
    assert len(vlm.family.image_states(vlm.model, [encoded])[0]) == encoded.num_image_tokens


@pytest.mark.parametrize("path", list(PATHS))
def test_another_image_changes_the_states(vlm, varied_prompts, path):
    with torch.no_grad():
        one, other = (
            varied_prompts[0],
            apply_view(varied_prompts[0], View.SWAPPED, ViewContext(partner=varied_prompts[1])),
        )
        groups = [make_groups(vlm, [p])[0] for p in (one, other)]
        assert groups[0].prompt.ids == groups[1].prompt.ids
        states = [PATHS[path](vlm, [g]) for g in groups]
        assert ((states[0] - states[1]).abs().amax(-1) > 1e-6).all()
        text_only = vlm.encode(apply_view(one, View.TEXT_ONLY))
        without_image = PATHS[path](vlm, [EncodedGroup(text_only, RESPONSES[:1])])
        assert ((states[0] - without_image).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("path", list(PATHS))
def test_swapped_pixels_change_only_the_states_of_their_prompts(vlm, varied_prompts, path):
    with torch.no_grad():
        groups = make_groups(vlm, varied_prompts)
        first, second = groups[0].prompt, groups[1].prompt
        swapped = [
            dataclasses.replace(groups[0], prompt=dataclasses.replace(first, pixels=second.pixels)),
            dataclasses.replace(groups[1], prompt=dataclasses.replace(second, pixels=first.pixels)),
            *groups[2:],
        ]
        before, after = PATHS[path](vlm, groups), PATHS[path](vlm, swapped)
        counts = [sum(map(len, g.responses)) for g in groups]
        for index, (a, b) in enumerate(zip(before.split(counts), after.split(counts), strict=True)):
            if index < 2:
                assert ((a - b).abs().amax(-1) > 1e-6).all()
            else:
                assert torch.equal(a, b)
        alone = torch.cat([PATHS[path](vlm, [g]) for g in swapped])
        assert relative_difference(after, alone) < TOLERANCE


def test_two_images_of_a_prompt_keep_their_order(vlm, prompts):
    a, b = prompts[0].images[0], prompts[1].images[0]
    with torch.no_grad():
        states = [
            response_states(
                vlm, make_groups(vlm, [Prompt("two", (x, "first, second ", y, "which?"))])
            )
            for x, y in ((a, b), (b, a), (a, a))
        ]
    assert all(
        relative_difference(states[i], states[j]) > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2))
    )


def test_all_paths_give_the_same_states(vlm, varied_prompts):
    groups = make_groups(vlm, varied_prompts)
    with torch.no_grad():
        reference = response_states(without_sharing(vlm), groups)
        for path in ("packed", "decoder step", "decoder step through the module"):
            assert relative_difference(PATHS[path](vlm, groups), reference) < TOLERANCE, path
    assert run_selftest(vlm).shares_prompts


def test_the_head_on_the_states_gives_the_log_probabilities_of_the_models_own_forward(
    vlm, varied_prompts
):
    groups, vocabulary = make_groups(vlm, varied_prompts), vlm.vocabulary_size
    ids = torch.tensor([i for g in groups for r in g.responses for i in r])
    with torch.no_grad():
        logits = vlm.head(vocabulary).logits(response_states(vlm, groups))
        ours = torch.log_softmax(logits, -1).gather(-1, ids[:, None])
        assert float((ours - forward_log_probs(vlm, groups)).abs().max()) < 2e-5


def test_a_row_does_not_depend_on_later_tokens(vlm, varied_prompts):
    prompt = vlm.encode(varied_prompts[0])
    changed = (*RESPONSES[0][:4], 99, 98, 97)
    for read in (response_states, lambda v, g: response_states(without_sharing(v), g)):
        with torch.no_grad():
            a, b = (read(vlm, [EncodedGroup(prompt, (r,))]) for r in (RESPONSES[0], changed))
        assert torch.equal(a[:5], b[:5])
        assert relative_difference(a[5:], b[5:]) > 1e-3


def test_states_do_not_depend_on_the_rest_of_the_batch(vlm, varied_prompts):
    groups = make_groups(vlm, varied_prompts)
    for read in (response_states, lambda v, g: response_states(without_sharing(v), g)):
        with torch.no_grad():
            together = read(vlm, groups)
            reverse = read(vlm, groups[::-1]).split(
                [sum(map(len, g.responses)) for g in groups[::-1]]
            )
            alone = torch.cat([read(vlm, [g]) for g in groups])
        assert relative_difference(together, alone) < TOLERANCE
        assert relative_difference(together, torch.cat(reverse[::-1])) < TOLERANCE


def test_backward_part_by_part_gives_the_gradient_of_separate_rows(name, tokenizer, varied_prompts):
    gradients = []
    for cut in (True, False):
        vlm = TINY[name](tokenizer, 3)
        vlm = vlm if cut else without_sharing(vlm)
        groups = make_groups(vlm, varied_prompts)
        reading = open_reading(vlm, groups, cut=cut)
        for place in all_responses(groups):
            reading.read([place]).square().sum().backward()
        reading.close()
        gradients.append({n: p.grad for n, p in vlm.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    a, b = (torch.cat([g.flatten() for g in x.values()]) for x in gradients)
    assert float((a - b).norm()) < 1e-5 * float(b.norm())
    vision = {id(p) for m in vlm.family.parts(vlm.model)["vision"] for p in m.parameters()}
    assert any(
        id(p) in vision and p.grad is not None and bool(p.grad.any())
        for p in vlm.model.parameters()
    )


def test_both_engines_generate_the_same_with_two_images_and_two_siblings(vlm, varied_prompts):
    requests = [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in varied_prompts]
    sampling = Sampling(0, 0, 1.0, 1.0, 12)
    assert SharedEngine(vlm).generate(requests, sampling) == HFEngine(vlm).generate(
        requests, sampling
    )


def test_every_weight_belongs_to_a_part(vlm):
    parts = vlm.family.parts(vlm.model)
    ids = {
        part: {id(p) for m in modules for p in m.parameters()} for part, modules in parts.items()
    }
    assert set.union(*ids.values()) == {id(p) for p in vlm.model.parameters()}
    assert all(ids.values())
    assert not ids["vision"] & (ids["language"] | ids["head"])


def test_a_reading_is_counted(vlm, varied_prompts):
    groups = make_groups(vlm, varied_prompts[:1])
    with torch.no_grad(), counting() as totals:
        response_states(vlm, groups)
    assert totals["patches"] >= groups[0].prompt.num_image_tokens
    assert totals["flops"] > 0


def test_an_argument_that_a_function_would_ignore_is_an_error(vlm, monkeypatch):
    family, model = vlm.family, vlm.model
    family.check_arguments(model)

    def forward(input_ids=None, **kwargs):
        """Accept any keyword."""

    for owner, attribute in (
        (model, "forward"),
        (base_model(model), "get_image_features"),
        (family.decoder(model), "forward"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, forward)
            with pytest.raises(ModelError) as caught:
                family.check_arguments(model)
        assert caught.value.code == "M110"


def test_a_model_that_would_ignore_its_images_is_not_loaded(tiny_folder, monkeypatch):
    # a model class of an older transformers, which cannot be loaded from a folder
    monkeypatch.setattr(
        "vistill.models.families.base.base_model",
        lambda model: type(
            "Old", (), {"get_image_features": staticmethod(lambda pixels, **kwargs: None)}
        ),
    )
    with pytest.raises(ModelError, match="has no argument 'pixel_values'"):
        load_vlm(tiny_folder)


def test_check_signature_names_the_missing_argument():
    def forward(self, input_ids, **kwargs):
        return input_ids

    check_signature(forward, ["input_ids"])
    with pytest.raises(ModelError, match="has no argument 'mm_encoder_outputs'"):
        check_signature(forward, ["input_ids", "mm_encoder_outputs"])


def test_a_saved_folder_loads_by_its_family_with_the_same_weights(
    name, tokenizer, tmp_path, clean_registry
):
    families.register("llava")(LlavaFamily)
    vlm = TINY[name](tokenizer, 2)
    save_vlm(vlm, tmp_path / "saved")
    loaded = load_vlm(tmp_path / "saved")
    assert type(loaded.family) is families.get(name)
    ours, theirs = vlm.model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    prompt = diagram_prompts("train", 1, 0)[0]
    a, b = vlm.encode(prompt), loaded.encode(prompt)
    assert a.ids == b.ids
    assert all(torch.equal(a.pixels[key], b.pixels[key]) for key in a.pixels)


def test_a_limit_of_image_tokens_is_met_or_refused(name, vlm):
    if name == "llava":
        with pytest.raises(ConfigError) as caught:
            vlm.family.limit_image_tokens(4)
        assert (caught.value.code, caught.value.fix) == ("C101", "data.max_image_tokens=null")
        vlm.family.limit_image_tokens(1024)  # every image has 16
        return
    before = vlm.family.image_grid()
    vlm.family.limit_image_tokens(4)
    encoded = vlm.encode(Prompt("x", (LoadedImage(Image.new("RGB", (640, 480))), "?")))
    assert 0 < encoded.num_image_tokens <= 4
    assert vlm.family.image_grid() != before


@pytest.mark.more
def test_two_steps_of_opd_by_distill(name, tokenizer, prompts, tmp_path):
    """The canary runs too. It reads, decodes and checks the images of both families."""
    student, teacher = TINY[name](tokenizer, 0), run_selftest(TINY[name](tokenizer, 1)).freeze()
    start = {n: p.detach().clone() for n, p in student.model.named_parameters()}
    run = distill(
        student,
        teacher,
        prompts[:4],
        OPD(),
        tmp_path / "run",
        train=TrainSettings(prompts_per_step=2, steps=2, lr=1e-3),
        rollout=RolloutSettings(per_prompt=2, max_new_tokens=6, all_truncated="go_on"),
        save=SaveSettings(every=2, keep=1),
    )
    assert [m["step"] for m in run.metrics] == [1, 2]
    assert all(m["finite"] for m in run.metrics)
    changed = {n for n, p in student.model.named_parameters() if not torch.equal(p, start[n])}
    assert any("vision" in n or "visual" in n for n in changed)
    assert any("language_model" in n for n in changed)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "auto", "float32"),
        ("cpu", "bf16", "float32"),
        ("cuda", "auto", "bfloat16"),
        ("cuda:1", "bf16", "bfloat16"),
        ("cuda", "fp32", "float32"),
    ],
)
def test_a_teacher_is_in_half_precision_only_on_an_accelerator(device, precision, expected):
    assert teacher_dtype(device, precision) is getattr(torch, expected)
    assert teacher_dtype(torch.device(device), precision) is getattr(torch, expected)
