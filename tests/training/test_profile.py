"""The profile counts every operation exactly, and changes nothing."""

import json
import signal
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from doubles import with_family
from torch.utils.flop_counter import FlopCounterMode

from vistill.api import distill
from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.errors import Preempted
from vistill.flops_counter import count, counting
from vistill.objectives import GRPO, OPD, VAOPD
from vistill.report.costs import make_profile, profile_text
from vistill.report.page import write_report
from vistill.report.run_data import read_run
from vistill.rollouts.settings import RolloutSettings
from vistill.training.interrupt import Interrupted
from vistill.training.models_of_run import Models
from vistill.training.settings import TrainSettings
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.types import Finish, Reader, Rollout, RolloutGroup

pytestmark = pytest.mark.usefixtures("without_canary")

LINEAR = ("mm", "addmm", "convolution", "convolution_backward")


def groups_of(lengths):
    g = torch.Generator().manual_seed(0)

    def draw(n):
        return tuple(int(i) for i in torch.randint(20, 300, (n,), generator=g))

    prompts = diagram_prompts("train", len(lengths), 0)
    return [
        RolloutGroup(p, tuple(Rollout(draw(n), k, Finish.LENGTH) for k, n in enumerate(ns)))
        for p, ns in zip(prompts, lengths, strict=True)
    ]


def read_and_backward(models, objective, groups, rewards=None):
    """One step after the rollouts, without the update."""
    passes = objective.passes()
    responses = flatten_responses(groups, 0, 0, models.student.device, rewards)
    inputs = encode_step(models, groups, passes, responses)
    batch = score_without_gradient(models, inputs, passes)
    signals = objective.signals(batch)
    for micro, cut in parts_with_gradient(models, inputs, batch, passes, signals):
        reduce_terms(objective.terms(micro, cut), responses.counts())[0].backward()


def only_linear(vlm):
    """Count no attention, so that the rest can be compared with torch's counter of operations."""
    costs = type(vlm.family).costs

    def without_attention(self, model):
        return replace(costs(self, model), attention_score=0.0, patch_pair=0.0)

    return with_family(vlm, costs=without_attention)


@pytest.mark.more
@pytest.mark.parametrize("objective", [OPD(), VAOPD(), GRPO()], ids=lambda o: type(o).__name__)
def test_counted_operations_equal_those_of_torchs_own_counter(student, teacher, objective):
    student, teacher = only_linear(student), only_linear(teacher)
    models = Models(student, teacher, student.vocabulary_size, copies={Reader.REFERENCE: teacher})
    groups = groups_of([(7, 12), (9, 3)])
    rewards = [1.0, 0.0, 0.0, 1.0] if isinstance(objective, GRPO) else None
    read_and_backward(models, objective, groups, rewards)
    with FlopCounterMode(display=False) as counter, counting() as counted:
        read_and_backward(models, objective, groups, rewards)
    by_name = {
        str(op).split(".")[-1]: flops for op, flops in counter.get_flop_counts()["Global"].items()
    }
    linear = sum(flops for name, flops in by_name.items() if name in LINEAR)
    convolution = (
        2 * student.model.model.visual.patch_embed.proj.weight.numel() * counted["patches"]
    )
    # pixels need no gradient, so torch leaves that product out of the patch embedding's backward
    # pass
    assert linear <= counted["flops"] <= linear + convolution


def test_tokens_patches_and_head_rows_are_counted_as_they_are(student, teacher):
    models = Models(student, teacher, student.vocabulary_size)
    groups = groups_of([(7, 12), (9, 3)])
    with counting() as counted:
        read_and_backward(models, VAOPD(), groups)
    encoded = [student.encode(group.prompt) for group in groups]
    patches = sum(int(e.pixels["image_grid_thw"].prod()) for e in encoded)
    assert counted["patches"] == 3 * patches, (
        "student, teacher, teacher on the pixelated image; not once per sibling"
    )
    assert counted["prompt_tokens"] == 3 * sum(len(e.ids) - 1 for e in encoded)
    assert counted["response_tokens"] == 3 * 31
    assert counted["head_rows"] == 4 * 31, (
        "two sampled log-probabilities, then student and teacher in the loss"
    )


def test_without_a_counter_nothing_is_counted_and_counters_nest():
    count(flops=1.0)
    with counting() as outer:
        count(flops=1.0)
        with counting() as inner:
            count(flops=2.0)
        count(flops=4.0)
    assert (outer, inner) == ({"flops": 7.0}, {"flops": 2.0})


def run_distill(tmp_path, name, student, teacher, method=None, **options):
    return distill(
        student,
        teacher,
        diagram_prompts("train", 4, 0),
        method or VAOPD(),
        tmp_path / name,
        train=TrainSettings(prompts_per_step=2, steps=3),
        rollout=RolloutSettings(
            per_prompt=2, max_new_tokens=6, temperature=1.0, top_p=1.0, all_truncated="go_on"
        ),
        **options,
    )


def flops_by_step(folder):
    """Operations of each phase, by step."""
    lines = [json.loads(line) for line in folder.timing.read_text().splitlines()]
    return {
        line["step"]: {phase: counts.get("flops") for phase, counts in line["work"].items()}
        for line in lines
    }


class StoppedAfterReading(VAOPD):
    """VA-OPD; the process gets a signal when the responses of a step are written and read."""

    left: ClassVar[list[int]] = []
    """Steps until the signal."""

    def signals(self, batch):
        if self.left and self.left.pop() == 1:
            raise Interrupted(signal.SIGTERM)
        return super().signals(batch)


def test_a_stopped_step_that_is_repeated_from_the_journal_counts_what_its_responses_cost(
    tmp_path, tokenizer, teacher
):
    from conftest import build_model

    def run(name):
        student = build_model(tokenizer, 0)
        return run_distill(tmp_path, name, student, teacher, StoppedAfterReading(), profile=True)

    whole = run("whole")
    StoppedAfterReading.left[:] = [1, 2]
    with pytest.raises(Preempted):
        run("stopped")
    stopped = run("stopped")
    assert StoppedAfterReading.left == []
    assert flops_by_step(stopped.folder) == flops_by_step(whole.folder)
    assert flops_by_step(whole.folder)[2]["rollout"] > 0


@pytest.mark.more
def test_a_profiled_run_gives_the_same_bits_and_shows_its_profile(tmp_path, tokenizer, teacher):
    from conftest import build_model

    plain = run_distill(tmp_path, "plain", build_model(tokenizer, 0), teacher)
    profiled = run_distill(tmp_path, "profiled", build_model(tokenizer, 0), teacher, profile=True)
    assert plain.folder.metrics.read_bytes() == profiled.folder.metrics.read_bytes()
    assert profile_text(plain.path) == ""
    table = make_profile(read_run(profiled.path))
    assert table is not None
    assert {p.name for p in table.phases} == {"rollout", "encode", "score", "learn", "step"}
    whole = table.phases[-1]
    assert table.steps == (2, 3), "the first step warms up"
    assert whole.work["flops"] == pytest.approx(
        sum(p.work.get("flops", 0) for p in table.phases[:-1])
    )
    assert 0 < whole.floor < whole.seconds
    assert "at the measured" in profile_text(profiled.path)
    page = write_report([profiled.path], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Profile: profiled" in page
    assert "head rows" in page
    work = [json.loads(line)["work"] for line in profiled.folder.timing.read_text().splitlines()]
    assert all(w["learn"]["peak_mib"] > 0 for w in work)
    stored = profiled.path / "profile.json"
    facts = json.loads(stored.read_text())
    assert facts["outside_seconds"] == table.outside_seconds != {}
    facts["beside"] = facts.pop("outside_seconds")  # the key that earlier versions wrote
    stored.write_text(json.dumps(facts))
    assert make_profile(read_run(profiled.path)) == table
