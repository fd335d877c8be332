"""The teacher reads finished groups while others are written, and the update keeps its bits."""

import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import build_model
from doubles import with_family
from plans import prepare_run
from training.test_loop import TRAIN, make_plan

from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError, RolloutError
from vistill.evaluation.settings import EvalSettings
from vistill.objectives import METHODS
from vistill.rollouts.checked_engine import CheckedEngine, generate_responses
from vistill.rollouts.engine import RolloutRequest, Sampling, WrappedEngine
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.loop import run
from vistill.training.micro_batches import BatchSplit
from vistill.training.read_ahead import ReadAhead
from vistill.training.recipe import Recipe, StudentSettings
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import Finish

pytestmark = pytest.mark.usefixtures("without_canary")

STEPS = 3
#: A micro-batch holds one prompt with its responses.
SPLIT = BatchSplit(tokens=1)


class GroupsEngine(WrappedEngine):
    """An engine that passes on its groups in some order, and says when it does."""

    def __init__(self, inner, log, order=reversed, first=None):
        super().__init__(inner)
        self.log, self.order, self.first = log, order, first

    def generate_groups(self, requests, sampling, receive):
        groups = self.generate(requests, sampling)
        pairs = list(zip(requests, groups, strict=True))
        for request, group in self.order(pairs):
            self.log.append("received")
            receive(request, group if self.first is None else self.first(group))
        self.log.append("written")
        return groups


def plan_of(tokenizer, teacher, log, *, overlap, objective=None, engine=None, **changes):
    """A plan whose teacher says when it reads."""
    settings = {
        "train_prompts": TRAIN,
        "eval_prompts": [],
        "evaluation": EvalSettings(every=0),
        "num_steps": STEPS,
        "train": TrainSettings(prompts_per_step=3, lr=3e-3, steps=STEPS, overlap=overlap),
        "save": SaveSettings(every=1),
    }
    plan = make_plan(tokenizer, teacher, objective, **(settings | changes))
    packed = type(teacher.family).packed_states

    def read(self, model, row):
        log.append("read")
        return packed(self, model, row)

    watched = with_family(plan.models.teacher, packed_states=read)
    plan = replace(plan, models=replace(plan.models, teacher=watched))
    make_engine = engine or (lambda vlm: GroupsEngine(HFEngine(vlm), log))
    return replace(plan, engine=make_engine(plan.models.student))


def train(plan, folder, log):
    """Run a plan with small micro-batches; what ends it, and the log of its steps."""
    plan = replace(prepare_run(plan, folder), split=SPLIT)
    log.clear()
    run(plan, folder)
    return weights_hash(plan.models.student), folder.metrics.read_text(), journal_of(folder)


def journal_of(folder):
    return {file.name: file.read_text() for file in sorted(folder.journal.iterdir())}


@pytest.mark.parametrize(
    "method",
    ["va_opd", *(pytest.param(name, marks=pytest.mark.more) for name in ("opd", "vgs", "eopd"))],
)
@pytest.mark.parametrize("order", [reversed, list])
def test_update_and_journal_have_the_same_bits_and_every_part_is_read_once(
    tokenizer, teacher, tmp_path, method, order
):
    ends, reads, early = [], [], []
    for overlap in (False, True):
        log = []

        def engine(vlm, log=log):
            return GroupsEngine(HFEngine(vlm), log, order)

        plan = plan_of(
            tokenizer, teacher, log, overlap=overlap, objective=METHODS[method](), engine=engine
        )
        ends.append(train(plan, RunFolder(tmp_path / str(overlap)), log))
        reads.append(log.count("read"))
        early.append(sum(pair == ("received", "read") for pair in itertools.pairwise(log)))
    assert ends[0] == ends[1]
    assert reads[0] == reads[1]
    assert early[0] == 0
    # the last group completes nothing, and in the reversed order no group before it does
    assert (early[1] > 0) == (order is list)


@pytest.mark.more
def test_a_group_that_the_engine_returns_otherwise_in_the_end_is_read_again(
    tokenizer, teacher, tmp_path
):
    def other(group):
        return tuple(replace(r, ids=(*reversed(r.ids[:-1]), r.ids[-1])) for r in group)

    ends = []
    for overlap in (False, True):
        log = []

        def engine(vlm, log=log):
            return GroupsEngine(HFEngine(vlm), log, list, other)

        plan = plan_of(tokenizer, teacher, log, overlap=overlap, engine=engine)
        ends.append(train(plan, RunFolder(tmp_path / str(overlap)), log))
    assert ends[0] == ends[1]


@pytest.mark.more
def test_a_stopped_run_resumes_to_the_same_bits_with_and_without_overlap(
    tokenizer, teacher, tmp_path
):
    whole = train(plan_of(tokenizer, teacher, [], overlap=False), RunFolder(tmp_path / "whole"), [])
    folder = RunFolder(tmp_path / "stopped")
    train(plan_of(tokenizer, teacher, [], overlap=True, stop_after=1), folder, [])
    resumed = train(plan_of(tokenizer, teacher, [], overlap=True), folder, [])
    assert resumed[:2] == whole[:2]


def test_memory_that_runs_out_while_the_teacher_reads_early_is_left_to_the_scoring_phase(
    tokenizer, teacher, tmp_path
):
    ends = []
    for overlap in (False, True):
        log = []

        def engine(vlm, log=log):
            return GroupsEngine(HFEngine(vlm), log, list)

        plan = plan_of(tokenizer, teacher, log, overlap=overlap, engine=engine)
        read = type(plan.models.teacher.family).packed_states

        def fail_early(self, model, row, log=log, read=read):
            if log and log[-1] == "received":
                log.append("failed")
                raise torch.OutOfMemoryError("a test")
            return read(self, model, row)

        failing = with_family(plan.models.teacher, packed_states=fail_early)
        plan = replace(plan, models=replace(plan.models, teacher=failing))
        ends.append(train(plan, RunFolder(tmp_path / str(overlap)), log))
        assert ("failed" in log) == overlap
    assert ends[0] == ends[1]


@pytest.mark.parametrize("begins", [False, True], ids=["restart", "begin"])
def test_what_the_thread_has_not_read_yet_is_cancelled_when_responses_are_dropped(begins):
    reading = ReadAhead(torch.device("cpu"), nullcontext, enabled=True)
    with ThreadPoolExecutor(1) as reading.pool:
        started, go_on, read = threading.Event(), threading.Event(), []

        def score(number, *_):
            read.append(number)
            started.set()
            go_on.wait(60)

        reading.score = score
        for number in range(4):
            reading.read["teacher", (number,)] = (), reading.submit(number, [], None)
        started.wait(60)
        if begins:
            reading.begin(SimpleNamespace(teacher=None), [], [], SPLIT, 0)
        else:
            reading.restart()
        go_on.set()
    assert read == [0]
    assert reading.read == {}


def test_what_was_read_is_not_held_after_scoring():
    reading = ReadAhead(torch.device("cpu"), nullcontext, enabled=True)
    reading.step = SimpleNamespace(ids={"a": (1,)})
    reading.read["teacher", (0,)] = (), Future()
    reading.forget()
    assert (reading.read, reading.step) == ({}, None)


def likely_to_stop(tokenizer):
    """A student whose responses end after some tokens."""
    vlm = build_model(tokenizer, 0)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 40
    return vlm


@pytest.mark.parametrize("rows_per_call", [256, 4])
def test_the_shared_engine_passes_on_groups_that_are_finished_before_others(
    tokenizer, rows_per_call
):
    vlm = likely_to_stop(tokenizer)
    requests = [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in diagram_prompts("train", 6, 1)]
    sampling = Sampling(0, 0, 1.0, 1.0, 40, rows_per_call, log_probs=True)
    engine = CheckedEngine(SharedEngine(vlm), vlm)
    received, polled = {}, []
    engine.inner.poll = lambda: polled.append(len(received))
    groups = engine.generate_groups(
        requests, sampling, lambda request, group: received.setdefault(request.key, group)
    )
    assert 0 < max(polled) < len(requests)  # some were received while others were written
    assert groups == engine.generate(requests, sampling)
    for request, group in zip(requests, groups, strict=True):
        if request.key in received:
            assert received[request.key] == group
            assert [r.log_probs for r in received[request.key]] == [r.log_probs for r in group]


def test_a_group_that_is_cut_off_is_passed_on_before_the_next_call(tokenizer):
    vlm = build_model(tokenizer, 0)
    requests = [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in diagram_prompts("train", 6, 1)]
    engine, received, polled = CheckedEngine(SharedEngine(vlm), vlm), [], []
    engine.inner.poll = lambda: polled.append(len(received))
    sampling = Sampling(0, 0, 1.0, 1.0, 2, 4)  # two requests per call
    groups = engine.generate_groups(requests, sampling, lambda *pair: received.append(pair))
    assert any(r.finish is Finish.LENGTH for group in groups[:2] for r in group)
    assert {0, 2, 4} <= {*polled}
    first = list(zip(requests, groups, strict=True))[:4]
    assert sorted(received[:4], key=lambda pair: requests.index(pair[0])) == first
    assert len({request.key for request, _ in received}) == len(received)


def test_a_group_is_checked_before_it_is_passed_on(tokenizer):
    vlm = likely_to_stop(tokenizer)
    requests = [RolloutRequest(p.id, vlm.encode(p), (0,)) for p in diagram_prompts("train", 2, 1)]

    def spoil(group):
        return tuple(replace(r, sibling=7) for r in group)

    engine = CheckedEngine(GroupsEngine(SharedEngine(vlm), [], list, spoil), vlm)
    received = []
    with pytest.raises(RolloutError) as caught:
        generate_responses(
            engine, requests, Sampling(0, 0, 1.0, 1.0, 5), lambda *pair: received.append(pair)
        )
    assert caught.value.code == "R404"
    assert received == []


def test_an_engine_without_this_offer_writes_as_before(tokenizer):
    vlm = likely_to_stop(tokenizer)
    requests = [RolloutRequest(p.id, vlm.encode(p), (0,)) for p in diagram_prompts("train", 2, 1)]
    engine, received = CheckedEngine(HFEngine(vlm), vlm), []
    sampling = Sampling(0, 0, 1.0, 1.0, 5)
    groups = generate_responses(engine, requests, sampling, lambda *pair: received.append(pair))
    engine.wake()
    assert groups == engine.generate(requests, sampling)
    assert received == []


def test_settings_that_change_the_kernels_of_all_threads_are_refused_next_to_it():
    with pytest.raises(ConfigError, match=r"C101(?s:.*)head_precision"):
        TrainSettings(overlap=True, head_precision="tf32")

    def recipe(overlap, cuda_graph):
        train, rollout = TrainSettings(overlap=overlap), RolloutSettings(cuda_graph=cuda_graph)
        student = StudentSettings("vistill:student")
        return Recipe("runs/a", student, "opd", train=train, rollout=rollout)

    with pytest.raises(ConfigError, match=r"C101(?s:.*)cuda_graph"):
        recipe(overlap=True, cuda_graph=True)
    for alone in ((True, False), (False, True)):
        recipe(*alone)


def test_a_profile_reads_after_the_rollouts_and_says_so(tokenizer, teacher, tmp_path):
    log = []

    def engine(vlm):
        return GroupsEngine(HFEngine(vlm), log, list)

    plan = plan_of(tokenizer, teacher, log, overlap=True, engine=engine, num_steps=1, profile=True)
    folder = RunFolder(tmp_path / "run")
    train(plan, folder, log)
    assert "received" not in log
    assert "read" in log
    assert "profile=true: the teacher reads after the rollouts" in folder.events.read_text()
