"""`micro_batch: auto` measures once what fits, stays inside the budget, and says what would fit where nothing does."""

import json
from dataclasses import replace

import pytest
import torch

from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError
from vistill.evaluation.settings import EvalSettings
from vistill.models.scoring import EncodedGroup, open_reading
from vistill.objectives import OPD, SFT, VGS
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training import memory_budget
from vistill.training.loop import Plan
from vistill.training.memory_budget import (
    GIB,
    HeldBytes,
    MemoryMeasurement,
    choose_split,
    held_bytes,
    measure,
)
from vistill.training.micro_batches import AUTO_TOKENS, PART_TOKENS, BatchSplit
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.training.step_inputs import (
    Models,
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.types import Finish, Rollout, RolloutGroup

pytestmark = pytest.mark.usefixtures("without_canary")

PROMPTS = diagram_prompts("train", 6, 0)


def plan_of(student, teacher, objective=None, memory=None, max_new_tokens=120):
    return Plan(
        Models(student, teacher, student.vocabulary_size), objective or OPD(), PROMPTS, (),
        TrainSettings(prompts_per_step=6, steps=1, memory=memory),
        RolloutSettings(per_prompt=4, max_new_tokens=max_new_tokens), SaveSettings(), EvalSettings(), 0, 1, "test",
    )  # fmt: skip


def groups_of(length, siblings=4):
    g = torch.Generator().manual_seed(0)
    draw = lambda: tuple(int(i) for i in torch.randint(20, 300, (length,), generator=g))
    rollouts = lambda: tuple(Rollout(draw(), k, Finish.LENGTH) for k in range(siblings))
    return [RolloutGroup(p, rollouts()) for p in PROMPTS]


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "a row per rollout"])
def test_what_is_measured_on_short_responses_foretells_what_long_ones_hold(
    student, teacher, shared
):
    student = replace(student, share_prompts=shared)
    found = measure(plan_of(student, teacher))
    encoded = max((student.encode(p) for p in PROMPTS), key=lambda e: len(e.ids))
    group = EncodedGroup(encoded, ((40,) * 300,))
    student.model.train()
    prompt, reading = held_bytes(student.model, lambda: open_reading(student, [group], cut=True))
    response, _ = held_bytes(student.model, lambda: reading.read([(0, 0)]))
    assert found.longest == len(encoded.ids)
    assert found.held.prompt(found.longest) >= prompt
    assert response <= found.held.one_response(found.longest, 300) <= 1.5 * response


def most_held(models, reading, batch, objective, signals):
    """The most bytes that are saved for a backward pass at any time of a step, each storage while somebody has it."""
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
        for micro, cut in parts_with_gradient(models, reading, batch, objective.passes(), signals):
            reduce_terms(objective.terms(micro, cut), reading.counts())[0].backward()
            del micro, cut
    return most[0]


@pytest.mark.parametrize(
    "objective", [OPD(), VGS()], ids=["one reading learns", "two readings learn"]
)
@pytest.mark.parametrize("tightness", [1.05, 2.5])
def test_a_step_stays_inside_a_tight_budget(tmp_path, student, teacher, objective, tightness):
    least = measure(plan_of(student, teacher, objective)).held.of(
        measure(plan_of(student, teacher)).longest, 120
    )
    plan = plan_of(student, teacher, objective, memory=tightness * least / GIB)
    split = choose_split(plan, RunFolder(tmp_path))
    groups = groups_of(120)
    responses = flatten_responses(groups, 0, 0, student.device)
    reading = encode_step(plan.models, groups, objective.passes(), responses, split)
    assert len(reading.micro_batches) * len(reading.parts(reading.micro_batches[0])) > 1, (
        "the budget does bind"
    )
    batch = score_without_gradient(plan.models, reading, objective.passes())
    held = most_held(plan.models, reading, batch, objective, objective.signals(batch))
    block = (
        4 * 4 * 120 * student.vocabulary_size
    )  # a rule that goes through autograd keeps a block of logits for a moment
    assert held <= tightness * least + (block if isinstance(objective, VGS) else 0)
    roomy = encode_step(plan.models, groups, objective.passes(), responses)
    assert held < most_held(plan.models, roomy, batch, objective, objective.signals(batch))


def test_memory_to_spare_gives_the_largest_split(tmp_path, student, teacher):
    assert choose_split(plan_of(student, teacher), RunFolder(tmp_path)) == BatchSplit(
        "auto", AUTO_TOKENS, PART_TOKENS
    )


def test_it_is_measured_once_and_again_where_the_question_changed(
    tmp_path, student, teacher, monkeypatch
):
    folder, calls = RunFolder(tmp_path), []
    monkeypatch.setattr(memory_budget, "measure", lambda plan: calls.append(1) or measure(plan))
    first = choose_split(plan_of(student, teacher, memory=0.002), folder)
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: 0.0)
    assert choose_split(plan_of(student, teacher, memory=0.002), folder) == first
    assert len(calls) == 1
    assert choose_split(plan_of(student, teacher, memory=0.004), folder) != first
    assert len(calls) == 2
    assert json.loads((tmp_path / "memory.json").read_text())["question"]["memory"] == 0.004
    explicit = replace(
        plan_of(student, teacher), train=TrainSettings(prompts_per_step=6, micro_batch=3)
    )
    assert choose_split(explicit, folder) == BatchSplit(3)
    assert len(calls) == 2


def test_an_impossible_budget_says_what_would_fit_and_that_fits(tmp_path, student, teacher):
    needs = measure(plan_of(student, teacher)).held
    longest = measure(plan_of(student, teacher)).longest
    memory = needs.of(longest, 60) / GIB
    with pytest.raises(ConfigError) as caught:
        choose_split(plan_of(student, teacher, memory=memory), RunFolder(tmp_path))
    assert caught.value.code == "C104"
    more, fewer = (word.split("=")[1] for word in caught.value.fix.replace(" or ", " ").split())
    choose_split(plan_of(student, teacher, memory=float(more)), RunFolder(tmp_path / "more"))
    choose_split(
        plan_of(student, teacher, memory=memory, max_new_tokens=int(fewer)),
        RunFolder(tmp_path / "fewer"),
    )
    tight = needs.prompt(longest) / GIB / 2
    with pytest.raises(
        ConfigError
    ) as caught:  # a response of 60 tokens does not fit at all: no picture is small enough
        choose_split(plan_of(student, teacher, memory=tight), RunFolder(tmp_path))
    assert "or" not in caught.value.fix.split()
    choose_split(
        plan_of(student, teacher, memory=float(caught.value.fix.split("=")[1])),
        RunFolder(tmp_path / "tight"),
    )
    with pytest.raises(ConfigError) as caught:
        choose_split(plan_of(student, teacher, memory=tight, max_new_tokens=2), RunFolder(tmp_path))
    image = int(caught.value.fix.split("data.max_image_tokens=")[1])
    assert needs.of(2 * image, 2) <= tight * GIB


def test_written_responses_are_as_long_as_they_are(student, teacher):
    prompts = [replace(p, response="word " * 50) for p in PROMPTS]
    plan = replace(plan_of(student, teacher, SFT()), train_prompts=prompts)
    assert memory_budget.longest_response(plan) == len(student.response_ids("word " * 50))


def test_a_response_that_copies_its_prompts_keys_counts_for_more_where_memory_is_short(tmp_path):
    found = MemoryMeasurement(
        HeldBytes(prompt_token=100.0, response=10.0, response_token=100.0), longest=700
    )
    tight = found.split(3.0 * found.held.of(700, 500), 500, tmp_path)
    assert tight.overhead == 70
    assert tight.parts([30] * 8) == [list(range(8))]
    assert BatchSplit(part_tokens=250, overhead=70).parts([30] * 8) == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    assert found.split(1e12, 500, tmp_path).overhead == 0
