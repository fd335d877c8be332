"""`micro_batch: auto` measures once what fits, stays within the budget, and says what would fit."""

import inspect
import json
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import build_model
from plans import make_setup_from
from tiers import few

from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError
from vistill.evaluation.settings import EvalSettings
from vistill.models.checkpointing import is_checkpointing, set_checkpointing
from vistill.models.scoring import EncodedGroup, open_reading
from vistill.objectives import OPD, SFT, VGS
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training import memory_budget
from vistill.training.build import START_CHECKS
from vistill.training.held_bytes import what_fits
from vistill.training.host_memory import free_host_bytes
from vistill.training.loop import Plan
from vistill.training.memory_budget import (
    GIB,
    HeldBytes,
    MemoryMeasurement,
    choose_split,
    held_bytes,
    measure_memory,
    saved_storages,
)
from vistill.training.micro_batches import AUTO_TOKENS, PART_TOKENS, BatchSplit
from vistill.training.models_of_run import Models
from vistill.training.precision import autocast, share_weight_copies
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.types import Finish, Rollout, RolloutGroup

pytestmark = pytest.mark.usefixtures("without_canary")

PROMPTS = diagram_prompts("train", 6, 0)


def make_plan(student, teacher, objective=None, memory=None, max_new_tokens=120, precision="auto"):
    return Plan(
        models=Models(student, teacher, student.vocabulary_size),
        objective=objective or OPD(),
        train_prompts=PROMPTS,
        eval_prompts=(),
        train=TrainSettings(prompts_per_step=6, steps=1, memory=memory, precision=precision),
        rollout=RolloutSettings(per_prompt=4, max_new_tokens=max_new_tokens),
        save=SaveSettings(),
        evaluation=EvalSettings(),
        seed=0,
        num_steps=1,
        fingerprint="test",
    )


def random_groups(length, siblings=4):
    g = torch.Generator().manual_seed(0)

    def random_rollout(sibling):
        ids = torch.randint(20, 300, (length,), generator=g)
        return Rollout(tuple(int(i) for i in ids), sibling, Finish.LENGTH)

    return [RolloutGroup(p, tuple(map(random_rollout, range(siblings)))) for p in PROMPTS]


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "a row per rollout"])
def test_the_measurement_of_short_responses_predicts_the_memory_of_long_ones(
    student, teacher, shared
):
    student = replace(student, share_prompts=shared)
    measured = measure_memory(make_plan(student, teacher))
    encoded = max((student.encode(p) for p in PROMPTS), key=lambda e: len(e.ids))
    group = EncodedGroup(encoded, ((40,) * 300,))
    student.model.train()
    prompt, reading = held_bytes(student.model, lambda: open_reading(student, [group], cut=True))
    response, _ = held_bytes(student.model, lambda: reading.read([(0, 0)]))
    longest, held = measured.longest, measured.held
    assert longest == len(encoded.ids)
    assert held.prompt(longest) >= prompt
    assert response <= held.one_response(longest, 300) <= 1.5 * response


def most_held(models, inputs, batch, objective, signals, precision=nullcontext):
    """The most bytes that autograd holds at a time, each storage as long as it is used."""
    weights = {p.untyped_storage().data_ptr() for p in models.student.model.parameters()}
    alive, most = {}, [0]

    class Saved:
        def __init__(self, x):
            self.x, storage = x, x.untyped_storage()
            self.key = storage.data_ptr()
            if self.key not in weights:
                entry = alive.setdefault(self.key, [storage.nbytes(), 0])
                entry[1] += 1
            most[0] = max(most[0], sum(size for size, _ in alive.values()))

        def __del__(self):
            if self.key in alive:
                alive[self.key][1] -= 1
                if alive[self.key][1] == 0:
                    del alive[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.x):
        for micro, cut in parts_with_gradient(
            models, inputs, batch, objective.passes(), signals, precision
        ):
            reduce_terms(objective.terms(micro, cut), inputs.counts())[0].backward()
            del micro, cut
    return most[0]


@pytest.mark.parametrize(
    "objective", few([OPD(), VGS()], 1), ids=["one pass with gradient", "two passes with gradient"]
)
@pytest.mark.parametrize("tightness", few([1.05, 2.5], 0))
def test_a_step_stays_within_a_tight_budget(tmp_path, student, teacher, objective, tightness):
    longest = measure_memory(make_plan(student, teacher)).longest
    least = measure_memory(make_plan(student, teacher, objective)).held.least(longest, 120)
    plan = make_plan(student, teacher, objective, memory=tightness * least / GIB)
    split = choose_split(plan, RunFolder(tmp_path))
    groups = random_groups(120)
    responses = flatten_responses(groups, 0, 0, student.device)
    inputs = encode_step(plan.models, groups, objective.passes(), responses, split)
    assert len(inputs.micro_batches) * len(inputs.parts(inputs.micro_batches[0])) > 1, (
        "the budget does bind"
    )
    batch = score_without_gradient(plan.models, inputs, objective.passes())
    held = most_held(plan.models, inputs, batch, objective, objective.signals(batch))
    # a rule that uses autograd holds a block of logits for a moment
    block = 4 * 4 * 120 * student.vocabulary_size
    assert held <= tightness * least + (block if isinstance(objective, VGS) else 0)
    roomy = encode_step(plan.models, groups, objective.passes(), responses)
    assert held < most_held(plan.models, roomy, batch, objective, objective.signals(batch))


def test_a_storage_that_is_freed_during_the_work_is_counted_too():
    weights = torch.nn.Linear(8, 8, bias=False)

    def work():
        for rows in range(1, 65):  # nothing of a round is kept, so its addresses are free again
            weights(torch.ones(rows, 8))

    # the input of each round, 32 bytes per row
    assert held_bytes(weights, work)[0] == 32 * sum(range(1, 65))


def linear_bytes(student):
    """Bytes of bf16 copies of all weights that multiply tokens or patches, without the head."""
    parts = [*student.model.model.language_model.layers, student.model.model.visual]
    return sum(m.weight.numel() * 2 for part in parts for m in part.modules() if is_linear(m))


def is_linear(module):
    return isinstance(module, torch.nn.Linear | torch.nn.Conv3d)


def test_copies_of_weights_in_bf16_count_once_and_not_for_each_response(student, teacher):
    exact, half = (
        measure_memory(make_plan(student, teacher, precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert exact.held.weights == 0
    # responses of one prompt share their mask, which counts as a copy
    mask = memory_budget.LONG * (half.longest - 1 + memory_budget.LONG) * 2
    assert half.held.weights == pytest.approx(linear_bytes(student) + mask, rel=0.01)
    # a response copies the keys of its prompt and nothing else
    assert half.held.response < exact.held.response
    assert half.held.prompt_token < exact.held.prompt_token
    assert half.held.response_token < exact.held.response_token


@pytest.mark.parametrize("frozen", few(["vision", "language"], 0))
def test_copies_of_frozen_weights_are_not_counted_for_each_response(student, teacher, frozen):
    for module in student.family.parts(student.model)[frozen]:
        module.requires_grad_(False)
    exact, half = (
        measure_memory(make_plan(student, teacher, precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert half.held.weights > 0
    assert half.held.response < exact.held.response


def test_a_step_in_bf16_stays_within_a_tight_budget(tmp_path, student, teacher):
    measured = measure_memory(make_plan(student, teacher, precision="bf16"))
    least = measured.held.least(measured.longest, 120)
    plan = make_plan(student, teacher, memory=1.05 * least / GIB, precision="bf16")
    split = choose_split(plan, RunFolder(tmp_path))
    groups, objective = random_groups(120), plan.objective
    responses = flatten_responses(groups, 0, 0, student.device)
    inputs = encode_step(plan.models, groups, objective.passes(), responses, split)
    batch = score_without_gradient(plan.models, inputs, objective.passes())
    precision = partial(autocast, plan.train, student.device)
    arguments = plan.models, inputs, batch, objective, objective.signals(batch), precision
    apart = most_held(*arguments)
    with share_weight_copies(plan.train, student.device):
        held = most_held(*arguments)
    assert held <= 1.05 * least
    # without sharing, prompts and responses hold copies of their own
    assert held < apart - 0.25 * measured.held.weights


def test_shared_copies_of_weights_change_no_bit_of_the_gradient(student, teacher):
    plan = make_plan(student, teacher, VGS(), precision="bf16")
    groups, objective = random_groups(20, siblings=2), plan.objective
    responses = flatten_responses(groups, 0, 0, student.device)
    split = BatchSplit(2, part_tokens=40)
    inputs = encode_step(plan.models, groups, objective.passes(), responses, split)
    batch = score_without_gradient(plan.models, inputs, objective.passes())
    precision = partial(autocast, plan.train, student.device)
    gradients = []
    for share in (nullcontext, partial(share_weight_copies, plan.train, student.device)):
        student.model.zero_grad()
        with share():
            most_held(plan.models, inputs, batch, objective, objective.signals(batch), precision)
        gradients.append([p.grad for p in student.model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("precision", few(["fp32", "bf16"], 1))
def test_with_gradient_checkpointing_less_is_held_and_a_step_stays_within_the_budget(
    tmp_path, student, teacher, precision
):
    plain = measure_memory(make_plan(student, teacher, precision=precision)).held
    assert plain.recomputed == 0
    set_checkpointing(student, True)
    measured = measure_memory(make_plan(student, teacher, precision=precision))
    held, longest = measured.held, measured.longest
    assert held.prompt_token < 0.6 * plain.prompt_token
    assert held.recomputed > 0
    assert held.least(longest, 120) < plain.least(longest, 120)
    assert held.weights == pytest.approx(plain.weights, rel=0.15)  # without the mask
    least = held.least(longest, 120)
    plan = make_plan(student, teacher, memory=1.05 * least / GIB, precision=precision)
    split = choose_split(plan, RunFolder(tmp_path))
    groups, objective = random_groups(120), plan.objective
    responses = flatten_responses(groups, 0, 0, student.device)
    inputs = encode_step(plan.models, groups, objective.passes(), responses, split)
    batch = score_without_gradient(plan.models, inputs, objective.passes())
    student.model.train()
    context = partial(autocast, plan.train, student.device)
    with share_weight_copies(plan.train, student.device):
        most = most_held(plan.models, inputs, batch, objective, objective.signals(batch), context)
    assert most <= 1.05 * least


def test_parts_that_will_be_frozen_are_frozen_when_memory_is_measured(tokenizer, teacher, tmp_path):
    """A tied head once counted as trained, and so did what `train.freeze` names."""
    counted = {}
    for parts in ((), ("vision",), ("head",)):
        plan = make_plan(build_model(tokenizer, 0), teacher)
        train = replace(plan.train, freeze=parts)
        setup = make_setup_from(replace(plan, train=train), RunFolder(tmp_path / str(len(counted))))
        for one in START_CHECKS[: [x.name for x in START_CHECKS].index("models") + 1]:
            one.run(setup)
        student = setup.models.student
        trained = sum(p.nbytes for p in student.model.parameters() if p.requires_grad)
        counted[parts] = (trained, memory_budget.measure_memory(setup).held.prompt_token)
    head = student.model.get_output_embeddings().weight
    assert counted[()][0] - counted["head",][0] == head.nbytes
    assert counted["vision",][1] < counted[()][1]


def test_much_memory_gives_the_largest_split(tmp_path, student, teacher):
    assert choose_split(make_plan(student, teacher), RunFolder(tmp_path)) == BatchSplit(
        "auto", AUTO_TOKENS, PART_TOKENS
    )


def test_the_split_is_measured_once_and_again_for_other_settings(tmp_path, student, teacher):
    folder, file = RunFolder(tmp_path), tmp_path / "memory.json"
    first = choose_split(make_plan(student, teacher, memory=0.002), folder)
    # no measurement gives this number: a split with it comes from the file
    record = json.loads(file.read_text())
    record["split"]["part_tokens"] = 7
    file.write_text(json.dumps(record))
    stored_split = replace(first, part_tokens=7)
    assert choose_split(make_plan(student, teacher, memory=0.002), folder) == stored_split
    assert choose_split(make_plan(student, teacher, memory=0.004), folder) not in (
        first,
        stored_split,
    )
    assert json.loads(file.read_text())["question"]["memory"] == 0.004
    stored = file.read_bytes()
    explicit = replace(
        make_plan(student, teacher), train=TrainSettings(prompts_per_step=6, micro_batch=3)
    )
    assert choose_split(explicit, folder) == BatchSplit(3)
    assert file.read_bytes() == stored


def test_the_fixes_for_an_impossible_budget_work(tmp_path, student, teacher):
    held = measure_memory(make_plan(student, teacher)).held
    longest = measure_memory(make_plan(student, teacher)).longest
    memory = held.least(longest, 60) / GIB
    with pytest.raises(ConfigError) as caught:
        choose_split(make_plan(student, teacher, memory=memory), RunFolder(tmp_path))
    assert caught.value.code == "C104"
    again, more, fewer = caught.value.fix.replace(" or ", " ").split()
    more, fewer = more.split("=")[1], fewer.split("=")[1]
    assert again == "train.gradient_checkpointing=true"
    plan = make_plan(student, teacher, memory=memory)
    set_checkpointing(student, True)
    choose_split(plan, RunFolder(tmp_path / "again"))
    set_checkpointing(student, False)
    choose_split(make_plan(student, teacher, memory=float(more)), RunFolder(tmp_path / "more"))
    choose_split(
        make_plan(student, teacher, memory=memory, max_new_tokens=int(fewer)),
        RunFolder(tmp_path / "fewer"),
    )
    tight = held.prompt(longest) / GIB / 2
    # a response of 120 tokens does not fit at all: no image is small enough
    with pytest.raises(ConfigError) as caught:
        choose_split(make_plan(student, teacher, memory=tight), RunFolder(tmp_path))
    assert "or" not in caught.value.fix.split()
    choose_split(
        make_plan(student, teacher, memory=float(caught.value.fix.split("=")[1])),
        RunFolder(tmp_path / "tight"),
    )
    with pytest.raises(ConfigError) as caught:
        choose_split(
            make_plan(student, teacher, memory=tight, max_new_tokens=2), RunFolder(tmp_path)
        )
    image = int(caught.value.fix.split("data.max_image_tokens=")[1])
    assert held.least(2 * image, 2) <= tight * GIB


def test_gradient_checkpointing_is_named_only_where_the_run_would_fit_with_it(
    tmp_path, student, teacher, monkeypatch
):
    held = measure_memory(make_plan(student, teacher)).held
    longest = measure_memory(make_plan(student, teacher)).longest

    def fix_at(memory):
        with pytest.raises(ConfigError) as caught:
            choose_split(make_plan(student, teacher, memory=memory), RunFolder(tmp_path))
        assert not is_checkpointing(student.model), "the measurement leaves the student as it was"
        return caught.value.fix

    enough = held.least(longest, 60) / GIB
    set_checkpointing(student, True)
    again = measure_memory(make_plan(student, teacher))
    set_checkpointing(student, False)
    least = again.held.least(longest, 120) / GIB
    assert least < enough, "the test needs a budget that holds one but not the other"
    assert fix_at(enough).startswith("train.gradient_checkpointing=true   or train.memory=")
    assert fix_at(1.01 * least).startswith("train.gradient_checkpointing=true   or train.memory=")
    assert fix_at(0.99 * least).startswith("train.memory=")
    # No family of the tests has such layers.
    monkeypatch.setattr(student.model, "supports_gradient_checkpointing", False)
    assert fix_at(enough).startswith("train.memory="), "a student whose layers cannot (C112)"


def test_a_prompt_that_fits_below_the_limit_is_not_refused(tmp_path, student, teacher):
    """The budget is a share of the free memory; C104 is for what does not fit into all of it."""
    measured = measure_memory(make_plan(student, teacher))
    least = measured.held.least_without_margin(measured.longest, 120)
    split = measured.choose_split(0.9 * least, 120, tmp_path, limit=1.01 * least)
    assert split.micro_batches([500, 500]) == [[0], [1]]
    assert split.parts([120, 120]) == [[0], [1]]
    for limit in (0.99 * least, None):
        with pytest.raises(ConfigError, match="C104"):
            measured.choose_split(0.9 * least, 120, tmp_path, limit)


def test_the_length_of_responses_in_the_data_is_measured(student, teacher):
    prompts = [replace(p, response="word " * 50) for p in PROMPTS]
    plan = replace(make_plan(student, teacher, SFT()), train_prompts=prompts)
    assert memory_budget.longest_response(plan) == len(student.response_ids("word " * 50))


def test_where_memory_is_short_a_response_counts_its_copy_of_the_prompts_keys(tmp_path):
    measured = MemoryMeasurement(
        HeldBytes(prompt_token=100.0, response=10.0, response_token=100.0), longest=700
    )
    tight = measured.choose_split(3.0 * measured.held.least(700, 500), 500, tmp_path)
    assert tight.overhead == 70
    assert tight.parts([30] * 8) == [list(range(8))]
    assert BatchSplit(part_tokens=250, overhead=70).parts([30] * 8) == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    assert measured.choose_split(1e12, 500, tmp_path).overhead == 0


def test_parts_and_micro_batches_are_filled_up_to_their_budget():
    assert BatchSplit(part_tokens=60).parts([30, 30, 1]) == [[0, 1], [2]]
    assert BatchSplit(part_tokens=59).parts([30, 30, 1]) == [[0], [1, 2]]
    assert BatchSplit(tokens=10).micro_batches([20, 5, 5, 1]) == [[0], [1, 2], [3]]
    assert BatchSplit(micro_batch=3).micro_batches([1] * 7) == [[0, 1, 2], [3, 4, 5], [6]]


def test_free_memory_of_a_cpu_is_that_of_its_container(tmp_path):
    (tmp_path / "meminfo").write_text("MemAvailable: 100 kB\n")
    for name, text in (("max", "50000"), ("current", "40000"), ("stat", "inactive_file 5000")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    of_host = partial(free_host_bytes, tmp_path / "meminfo", tmp_path)
    assert memory_budget.free_bytes(torch.device("cpu"), of_host) == 15000
    defaults = inspect.signature(memory_budget.free_bytes).parameters
    assert defaults["of_host"].default is free_host_bytes


def test_what_was_measured_is_freed_with_its_result():
    """A saved output that refers to its own node stayed in memory for the whole run."""
    layer = torch.nn.Linear(8, 8)

    def work():
        states = torch.softmax(layer(torch.ones(1, 8)), -1)
        outputs.append(weakref.ref(states))
        return states

    outputs = []
    result = saved_storages(layer, work)
    assert outputs[0]() is not None
    del result
    assert outputs[0]() is None


def test_a_note_never_offers_a_length_of_nothing():
    assert what_fits(7, 0) == "with this prompt, responses of up to 7 tokens fit"
    assert what_fits(0, 9) == "with such a response, prompts of up to 9 tokens fit"
    assert "no prompt fits" in what_fits(-3, 0)
