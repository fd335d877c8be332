"""Every way to ignore the image stops the run before step 1; a healthy run passes."""

from dataclasses import replace

import pytest
import torch
from conftest import build_model
from doubles import with_family
from PIL import Image
from plans import prepare_run
from tiers import few

from vistill.data.diagrams import diagram_prompts
from vistill.errors import CATALOGUE, ModelError
from vistill.evaluation.settings import EvalSettings
from vistill.models import scoring
from vistill.models.scoring import SharedReading
from vistill.models.tiny import TinySize, build_tiny
from vistill.objectives import METHODS, OPD, SFT, VAOPD
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import Sampling, WrappedEngine, make_requests
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.runs.folder import RunFolder
from vistill.training import step_inputs
from vistill.training.canary import reader
from vistill.training.canary.engine import STEP, TOKENS
from vistill.training.canary.reader import SAMPLES, weak_reader_warnings
from vistill.training.canary.run import run_canary
from vistill.training.context import StepContext
from vistill.training.loop import Plan, run
from vistill.training.models_of_run import Models
from vistill.training.optim import make_optimizer
from vistill.training.response_source import ResponseSource
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import Finish, LoadedImage, Prompt, View

PROMPTS = diagram_prompts("train", 6, 0)


def make_plan(student, teacher, **changes):
    base = {
        "models": Models(student, teacher, student.vocabulary_size),
        "objective": VAOPD(),
        "train_prompts": PROMPTS,
        "eval_prompts": [],
        "train": TrainSettings(prompts_per_step=2, lr=1e-3),
        "rollout": RolloutSettings(
            per_prompt=2, temperature=1.0, top_p=1.0, max_new_tokens=4, all_truncated="go_on"
        ),
        "save": SaveSettings(every=0, keep=1),
        "evaluation": EvalSettings(every=0),
        "seed": 5,
        "num_steps": 2,
        "fingerprint": "test",
    }
    return Plan(**(base | changes))


def step_context(student, teacher, engine=None, objective=None, train=None, rollout=None, seed=0):
    objective, train = objective or VAOPD(), train or TrainSettings()
    return StepContext(
        models=Models(student, teacher, student.vocabulary_size),
        response_source=ResponseSource(engine or SharedEngine(student), objective, 2),
        optimizer=make_optimizer(student.model, train),
        train=train,
        rollout=rollout or RolloutSettings(),
        seed=seed,
        num_steps=4,
    )


@torch.no_grad()
def teachers_tower_zeroed(student, teacher, patch):
    for parameter in teacher.model.model.visual.parameters():
        parameter.zero_()
    return student, teacher


@torch.no_grad()
def students_tower_zeroed(student, teacher, patch):
    for parameter in student.model.model.visual.parameters():
        parameter.zero_()
    return student, teacher


def pixels_dropped(student, teacher, patch):
    return student, with_family(teacher, image_features=lambda self, model, prompts: None)


def images_of_two_rows_swapped(student, teacher, patch):
    image_features = type(teacher.family).image_features

    def swapped(self, model, prompts):
        features = image_features(self, model, prompts)
        if features is not None:
            features.pooler_output = tuple(reversed(features.pooler_output))
        return features

    return student, with_family(teacher, image_features=swapped)


def first_image_cached(student, teacher, patch):
    image_features, cache = type(student.family).image_features, []

    def cached(self, model, prompts):
        features = image_features(self, model, prompts)
        if features is not None:
            cache.append(features.pooler_output[0])
            features.pooler_output = tuple(cache[0] for _ in features.pooler_output)
        return features

    return with_family(student, image_features=cached), teacher


def first_image_cached_in_the_model_itself(student, teacher, patch):
    get_image_features, cache = teacher.model.model.get_image_features, []

    def cached(*args, **options):
        features = get_image_features(*args, **options)
        cache.append(features)
        count, first = len(features.pooler_output), cache[0]
        features.deepstack_features = [(level[0],) * count for level in first.deepstack_features]
        features.pooler_output = (first.pooler_output[0],) * count
        return features

    patch.setattr(teacher.model.model, "get_image_features", cached)
    return student, teacher


def wrong_grid(student, teacher, patch):
    original = type(student.family).encode

    def encode(self, messages, images):
        encoded = original(self, messages, images)
        if not encoded.has_image:
            return encoded
        grids = encoded.pixels["image_grid_thw"].clone()
        grids[:, 1], grids[:, 2] = grids[:, 1] // 2, grids[:, 2] * 2
        return replace(encoded, pixels={**encoded.pixels, "image_grid_thw": grids})

    return with_family(student, encode=encode), teacher


def placeholder_collapsed(student, teacher, patch):
    original = type(student.family).encode

    def encode(self, messages, images):
        encoded = original(self, messages, images)
        first = encoded.ids.index(self.image_id) if encoded.has_image else 0
        keep = [i for i, token in enumerate(encoded.ids) if token != self.image_id or i == first]
        ids = tuple(encoded.ids[i] for i in keep)
        return replace(encoded, ids=ids, positions=encoded.positions[:, keep])

    return with_family(student, encode=encode), teacher


def rows_off_by_one(student, teacher, patch):
    original = SharedReading.read

    def rolled(self, responses):
        return torch.roll(original(self, responses), 1, 0)

    # a planted defect
    patch.setattr(SharedReading, "read", rolled)
    return student, teacher


def positions_off(student, teacher, patch):
    original = scoring.response_positions

    def shifted(prompt, num):
        return original(prompt, num) + len(prompt.ids) - prompt.next_position

    # a planted defect
    patch.setattr(scoring, "response_positions", shifted)
    return student, teacher


def original_read_as_pixelated(student, teacher, patch):
    original = Models.encode

    def encode(self, prompt, view, *reader):
        return original(self, prompt, View.PIXELATED if view is View.FULL else view, *reader)

    # a planted defect
    patch.setattr(Models, "encode", encode)
    return student, teacher


def rows_of_the_prompt_read(student, teacher, patch):
    original = SharedReading.read

    def read(self, responses):
        states = original(self, responses)
        return torch.cat([states[:3], states])

    # a planted defect
    patch.setattr(SharedReading, "read", read)
    return student, teacher


def mask_including_the_prompt(student, teacher, patch):
    original = step_inputs.flatten_responses

    def flatten(groups, *rest):
        longer = [
            replace(
                g,
                rollouts=tuple(
                    replace(r, ids=(*student.encode(g.prompt).ids[-2:], *r.ids)) for r in g.rollouts
                ),
            )
            for g in groups
        ]
        return original(longer, *rest)

    for module in (step_inputs, reader):
        # a planted defect
        patch.setattr(module, "flatten_responses", flatten)
    return student, teacher


MUTATIONS = {
    "the teacher's vision tower zeroed": (teachers_tower_zeroed, "V802"),
    "the student's vision tower zeroed": (students_tower_zeroed, "V802"),
    "pixels dropped": (pixels_dropped, "V803"),
    "images of two rows swapped": (images_of_two_rows_swapped, "V804"),
    "first image cached": (first_image_cached, "V805"),
    "first image cached in the model itself": (first_image_cached_in_the_model_itself, "V805"),
    "wrong grid": (wrong_grid, "V806"),
    "placeholder collapsed": (placeholder_collapsed, "V807"),
    "rows off by one": (rows_off_by_one, "V808"),
    "positions off": (positions_off, "V808"),
    "the original read as pixelated": (original_read_as_pixelated, "V809"),
    "rows of the prompt read": (rows_of_the_prompt_read, "V813"),
    "mask including the prompt": (mask_including_the_prompt, "V813"),
}


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_a_reader_that_ignores_the_image_stops_the_run_before_step_1(
    name, tokenizer, tmp_path, monkeypatch
):
    mutate, code = MUTATIONS[name]
    student, teacher = mutate(
        build_model(tokenizer, 0), build_model(tokenizer, 1, hidden=48).freeze(), monkeypatch
    )
    folder = RunFolder(tmp_path)
    with pytest.raises(ModelError) as caught:
        run(make_plan(student, teacher), folder)
    assert caught.value.code == code, caught.value
    assert not folder.metrics.exists()
    assert len(caught.value.render().splitlines()) <= 12


def caught_code(context, prompts=PROMPTS):
    with pytest.raises(ModelError) as caught:
        run_canary(context, prompts)
    return caught.value.code


@pytest.mark.more
def test_an_engine_with_other_weights_is_caught(tokenizer, student, teacher):
    assert (
        caught_code(step_context(student, teacher, SharedEngine(build_model(tokenizer, 7))))
        == "V810"
    )
    assert (
        caught_code(step_context(student, teacher, HFEngine(build_model(tokenizer, 7)))) == "V810"
    )


def test_an_engine_that_missed_one_update_is_caught(tokenizer, student, teacher):
    """With weights that differ by 5e-3 most tokens still agree, but their noisy scores do not."""
    stale = build_model(tokenizer, 0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(
                5e-3
                * torch.sign(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                )
            )
    assert caught_code(step_context(student, teacher, SharedEngine(stale))) == "V810"


@pytest.mark.parametrize("view", [View.PIXELATED, View.TEXT_ONLY])
def test_an_engine_that_reads_another_view_is_caught(view, student, teacher):
    from vistill.views import apply_view

    class OtherView(SharedEngine):
        def generate(self, requests, sampling):
            shown = {p.id: self.vlm.encode(apply_view(p, view)) for p in PROMPTS}
            return super().generate([replace(r, prompt=shown[r.key]) for r in requests], sampling)

    assert caught_code(step_context(student, teacher, OtherView(student))) == "V811"


@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_an_engine_with_noise_by_counter_is_checked_by_that_noise(student, teacher, top_p):
    class OtherNoise(SharedEngine):
        def generate(self, requests, sampling):
            return super().generate(requests, replace(sampling, noise="generator"))

    rollout = RolloutSettings(noise="counter", top_p=top_p, temperature=1.0)
    assert run_canary(step_context(student, teacher, rollout=rollout), PROMPTS)
    other = step_context(student, teacher, OtherNoise(student), rollout=rollout)
    assert caught_code(other) == "V810"


class UnkeyedEngine(WrappedEngine):
    """An engine with other noise, like one in another process, that reports log-probabilities."""

    follows_keyed_noise = False

    def generate(self, requests, sampling):
        return super().generate(requests, replace(sampling, seed=sampling.seed + 99))


def unkeyed(vlm, view=View.FULL):
    """An engine with other noise, with these weights and this view."""
    from vistill.views import apply_view

    class Shown(SharedEngine):
        def generate(self, requests, sampling):
            shown = {p.id: self.vlm.encode(apply_view(p, view)) for p in PROMPTS}
            return super().generate([replace(r, prompt=shown[r.key]) for r in requests], sampling)

    return UnkeyedEngine(Shown(vlm))


@pytest.mark.more
def test_an_unkeyed_engine_passes_if_its_log_probabilities_are_the_students(student, teacher):
    assert run_canary(step_context(student, teacher, unkeyed(student)), PROMPTS)
    assert run_canary(
        step_context(student, teacher, unkeyed(student), train=TrainSettings(precision="bf16")),
        PROMPTS,
    )


@pytest.mark.more
def test_an_unkeyed_engine_with_stale_weights_is_caught(tokenizer, student, teacher):
    assert caught_code(step_context(student, teacher, unkeyed(build_model(tokenizer, 7)))) == "V810"
    stale = build_model(tokenizer, 0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(
                5e-3
                * torch.sign(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                )
            )
    assert caught_code(step_context(student, teacher, unkeyed(stale))) == "V810"


@pytest.mark.parametrize("view", [View.PIXELATED, View.TEXT_ONLY])
def test_an_unkeyed_engine_that_reads_another_view_is_caught(view, student, teacher):
    assert caught_code(step_context(student, teacher, unkeyed(student, view))) == "V811"


def test_the_canary_checks_what_an_engine_promises(student, teacher):
    """Keyed noise that is promised must be followed; a scripted engine promises nothing."""
    stop = student.stop_ids[0]
    broken = unkeyed(student)
    broken.follows_keyed_noise = True
    assert caught_code(step_context(student, teacher, broken)) == "V810"
    assert run_canary(
        step_context(student, teacher, ScriptedEngine(lambda key, sibling: (20, stop), stop)),
        PROMPTS,
    )
    wrong_log_probs = ScriptedEngine(
        lambda key, sibling: (20, stop), stop, lambda request, ids: (-0.1,) * len(ids)
    )
    assert caught_code(step_context(student, teacher, wrong_log_probs)) == "V810"


@pytest.mark.more
def test_a_student_that_writes_the_image_marker_at_once_is_healthy(student, teacher):
    """What follows a reopened turn is not compared: it follows other tokens, with other noise."""
    with torch.no_grad():
        student.model.get_output_embeddings().weight[student.stop_ids[0]] *= 4
    requests = make_requests(PROMPTS, [student.encode(p) for p in PROMPTS], (0,))[:SAMPLES]
    attempts = (
        (seed, rollout)
        for seed in range(100)
        for (rollout,) in SharedEngine(student).generate(
            requests, Sampling(seed, STEP, 1.5, 1.0, TOKENS)
        )
    )
    seed, response = next(
        (seed, r) for seed, r in attempts if r.finish is Finish.STOP and 1 < len(r.ids) < TOKENS - 1
    )
    marker = student.decode(response.ids[:1])
    rollout = RolloutSettings(
        temperature=1.5, top_p=1.0, image_skips=1, image_marker=marker, reopen="\n"
    )
    engine, sampling = make_engine(student, rollout), Sampling(seed, STEP, 1.5, 1.0, TOKENS)
    assert engine.generate(requests, sampling) != engine.inner.inner.generate(requests, sampling)
    assert run_canary(step_context(student, teacher, engine, rollout=rollout, seed=seed), PROMPTS)


def test_a_head_that_is_not_cut_to_the_vocabulary_is_caught(tokenizer, teacher):
    padded = build_tiny(TinySize(layers=1), tokenizer, 0)
    padded.model.resize_token_embeddings(len(tokenizer) + 16)
    context = step_context(padded, None, objective=METHODS["grpo"]())
    uncut = replace(context, models=replace(context.models, vocabulary=len(tokenizer) + 16))
    run_canary(context, PROMPTS)
    assert caught_code(uncut) == "V812"


def test_a_tokenizer_of_equal_size_with_other_words_is_caught(student, tokenizer, tmp_path):
    """A start check compares vocabularies by content, before the canary: M101."""
    from vistill.models.tiny import train_tokenizer

    other = build_tiny(
        TinySize(layers=1), train_tokenizer(["quite other words are here"] * 60, len(tokenizer)), 1
    )
    other.tokenizer.add_tokens([f"<x{i}>" for i in range(len(tokenizer) - len(other.tokenizer))])
    assert len(other.tokenizer) == len(tokenizer)
    with pytest.raises(ModelError) as caught:
        prepare_run(make_plan(student, other.freeze()), RunFolder(tmp_path))
    assert caught.value.code == "M101"


def test_a_teacher_with_another_end_token_is_caught(tokenizer, student):
    teacher = build_model(tokenizer, 1, hidden=48).freeze()
    teacher.model.generation_config.eos_token_id = 17
    assert caught_code(step_context(student, teacher)) == "V814"


def test_a_student_with_dropout_is_caught(student, teacher):
    layer = student.model.model.language_model.layers[0].mlp
    layer.register_forward_hook(lambda module, args, out: out * 1.5 if module.training else out)
    assert caught_code(step_context(student, teacher)) == "V815"


def test_views_that_differ_in_tokens_are_caught(student, teacher):
    class OneTokenMore(Models):
        def encode(self, prompt, view, *reader):
            encoded = super().encode(prompt, view, *reader)
            return replace(encoded, ids=(*encoded.ids, 9)) if view is View.PIXELATED else encoded

    context = step_context(student, teacher)
    context.models = OneTokenMore(student, teacher, student.vocabulary_size)
    assert caught_code(context) == "V816"


def test_every_code_of_the_canary_is_in_the_catalogue_and_tried_here():
    tried = {code for _, code in MUTATIONS.values()} | {
        "V810",
        "V811",
        "V812",
        "V814",
        "V815",
        "V816",
    }
    assert tried == {code for code in CATALOGUE if code.startswith("V8") and code != "V801"}


def healthy_start(number, tokenizer):
    """One of many sizes, seeds, engines, samplings, precisions, methods and images."""
    student = build_tiny(TinySize(layers=1 + number % 3, heads=1 + number % 2), tokenizer, number)
    teacher = None if number % 7 == 6 else build_model(tokenizer, 1000 + number, hidden=48).freeze()
    objective = (VAOPD(), OPD(), METHODS["vgs"](), METHODS["gkd"]())[number % 4]
    if teacher is None:
        objective = SFT() if number % 2 else METHODS["grpo"]()
    engine = (SharedEngine, HFEngine)[number % 2](student)
    rollout = RolloutSettings(
        temperature=(1.0, 0.7, 0.0, 1.3)[number % 4], top_p=(1.0, 0.9, 0.5)[number % 3]
    )
    train = TrainSettings(precision="bf16" if number % 5 == 4 else "auto")
    context = step_context(student, teacher, engine, objective, train, rollout, seed=number)
    return context, diagram_prompts("train", 1 + number % 5, number)


@pytest.mark.parametrize("number", few(range(12), 0, 2, 5))
def test_a_healthy_start_passes(number, tokenizer):
    facts = run_canary(*healthy_start(number, tokenizer))
    assert facts["canary/student_image_effect"] > 0
    assert not weak_reader_warnings(facts)


@pytest.mark.slow
def test_a_hundred_healthy_starts_pass(tokenizer):
    for number in range(12, 112):
        assert run_canary(*healthy_start(number, tokenizer))["canary/student_image_effect"] > 0, (
            number
        )


def test_without_images_there_is_nothing_to_check(student, teacher):
    assert run_canary(step_context(student, teacher), [Prompt("a", ("What is 1 + 1?",))]) == {}


def test_blank_and_odd_images_pass(student, teacher):
    """An image that looks the same pixelated; a wide one; a tiny one; two in a prompt."""
    blank, tiny = Image.new("RGB", (40, 40), (9, 9, 9)), Image.new("L", (9, 30), 200)
    noisy = Image.effect_noise((200, 64), 90).convert("RGB")
    prompts = [
        Prompt("blank", (LoadedImage(blank), "What?")),
        Prompt("two", (LoadedImage(noisy), "and", LoadedImage(tiny), "which?")),
        Prompt("wide", (LoadedImage(noisy), "What?")),
    ]
    assert run_canary(step_context(student, teacher), prompts)
    assert run_canary(step_context(student, teacher), prompts[:1])


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")
@pytest.mark.parametrize("how", few(["separate rows", "offloaded", "flex"], 0, 1))
def test_other_ways_to_read_pass_too(how, tokenizer, student):
    teacher = build_model(tokenizer, 1, hidden=48).freeze()
    teacher = teacher.offloaded() if how == "offloaded" else teacher
    if how == "separate rows":
        student, teacher = (replace(vlm, share_prompts=False) for vlm in (student, teacher))
    engine = HFEngine(student) if how == "separate rows" else SharedEngine(student)
    if how == "flex":
        teacher = replace(teacher, attention="flex")
    facts = run_canary(step_context(student, teacher, engine), PROMPTS)
    assert set(facts) == {"canary/student_image_effect", "canary/teacher_image_effect"}


def test_a_rounded_head_is_no_wrong_reading(tokenizer, student):
    """In bf16 it is some thousandths of a nat from transformers' head."""
    teacher = build_model(tokenizer, 1, hidden=48).freeze()
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight.mul_(20)
    student, teacher = (replace(vlm, head_precision="bf16") for vlm in (student, teacher))
    assert run_canary(step_context(student, teacher), PROMPTS)


@pytest.mark.more
def test_a_weak_effect_of_the_image_is_a_warning_and_evaluations_log_it(
    tokenizer, teacher, tmp_path
):
    student = build_model(tokenizer, 0)
    with (
        torch.no_grad()
    ):  # the part that differs between images is a ten-thousandth of what they share
        for merger in (
            student.model.model.visual.merger,
            *student.model.model.visual.deepstack_merger_list,
        ):
            merger.linear_fc2.weight.mul_(1e-3)
            merger.linear_fc2.bias.normal_(0, 1, generator=torch.Generator().manual_seed(3))
    folder = RunFolder(tmp_path)
    plan = make_plan(
        student,
        teacher,
        eval_prompts=diagram_prompts("val", 2, 0),
        train=TrainSettings(prompts_per_step=2, lr=1e-9),
        evaluation=EvalSettings(every=2, limit=2, max_new_tokens=4, blind=False),
    )
    run(prepare_run(plan, folder), folder)
    assert "canary: the student hardly uses its image" in folder.events.read_text()
    for record in folder.read(folder.evaluations):
        assert (
            0 < record["canary/student_image_effect"] < 1e-3 < record["canary/teacher_image_effect"]
        )


def test_the_canary_changes_nothing_in_a_run(student, teacher, prompts):
    context = step_context(student, teacher)
    before = {name: x.clone() for name, x in student.model.state_dict().items()}
    state = torch.get_rng_state()
    was_training = student.model.training
    run_canary(context, prompts)
    assert all(torch.equal(x, before[name]) for name, x in student.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in student.model.parameters())
    assert student.model.training == was_training
