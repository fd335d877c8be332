"""Prompts are encoded before their step, in threads: the same update, errors in their own step."""

import json
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from doubles import with_family
from PIL import Image
from tiers import few
from training.test_loop import make_plan, run_plan

from vistill.data.loading import load_rows
from vistill.data.settings import DataSettings
from vistill.errors import Preempted
from vistill.evaluation.settings import EvalSettings
from vistill.objectives import METHODS, VAOPD
from vistill.rollouts.engine import WrappedEngine
from vistill.rollouts.hf import HFEngine
from vistill.runs.folder import RunFolder
from vistill.training.ahead import num_workers, uses_of
from vistill.training.checkpoint import weights_hash
from vistill.training.models_of_run import Models
from vistill.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")

STEPS, PER_STEP = 4, 2


@pytest.fixture
def prompts(tmp_path):
    """Rows with a picture file each."""
    lines = []
    for i in range(8):
        Image.new("RGB", (64, 64), (30 * i, 90, 200)).save(tmp_path / f"{i}.png")
        lines.append({"question": f"Question {i}?", "images": f"{i}.png", "answer": str(i)})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_rows(str(file), DataSettings(), None).prompts


def plan_of(tokenizer, teacher, prompts, workers, objective=None, **changes):
    """A plan of some steps that evaluates nothing."""
    settings = {
        "train_prompts": prompts,
        "eval_prompts": [],
        "evaluation": EvalSettings(every=0),
        "num_steps": STEPS,
        "train": TrainSettings(prompts_per_step=PER_STEP, lr=3e-3, steps=STEPS, workers=workers),
        "max_bad_share": 0.5,
    }
    return make_plan(tokenizer, teacher, objective or VAOPD(), **(settings | changes))


def watched(plan, calls):
    """The same plan; its student adds thread, texts and pictures of each encoding."""
    student = plan.models.student
    encode = type(student.family).encode

    def record(self, messages, images):
        content = [(image.size, image.getpixel((1, 1))) for image in images]
        calls.append((threading.current_thread().name, str(messages), str(content)))
        return encode(self, messages, images)

    return replace(plan, models=replace(plan.models, student=with_family(student, encode=record)))


def run_watched(plan, folder):
    """Run a plan; the encodings of its steps, without those of the start checks."""
    calls = []
    plan = watched(plan, calls)
    from plans import prepare_run

    from vistill.training.loop import run

    plan = prepare_run(plan, folder)
    calls.clear()
    run(plan, folder)
    return calls, weights_hash(plan.models.student), folder.metrics.read_text()


@pytest.mark.parametrize(
    "method", ["va_opd", *(pytest.param(name, marks=pytest.mark.more) for name in ("papo", "vgs"))]
)
def test_the_update_is_the_same_bit_for_bit_for_any_number_of_threads(
    tokenizer, teacher, prompts, tmp_path, method
):
    ends = []
    for workers in (0, 1, 3):
        plan = plan_of(tokenizer, teacher, prompts, workers, METHODS[method]())
        run_plan(plan, folder := RunFolder(tmp_path / f"run-{workers}"))
        ends.append((weights_hash(plan.models.student), folder.metrics.read_text()))
    assert ends[0] == ends[1] == ends[2]


def test_a_step_encodes_nothing_itself_and_each_prompt_once_per_view(
    tokenizer, teacher, prompts, tmp_path
):
    plan = plan_of(tokenizer, teacher, prompts, 2)
    views = {view for view, _ in uses_of(plan.objective)}
    calls, *ahead = run_watched(plan, RunFolder(tmp_path / "ahead"))
    assert len(views) == 2
    assert len(calls) == STEPS * PER_STEP * len(views)
    assert {thread.partition("_")[0] for thread, *_ in calls} == {"encode"}
    own, *within = run_watched(
        plan_of(tokenizer, teacher, prompts, 0), RunFolder(tmp_path / "within")
    )
    assert {thread for thread, *_ in own} == {"MainThread"}
    assert sorted(call[1:] for call in calls) == sorted(call[1:] for call in own)
    assert ahead == within


@pytest.mark.more
def test_a_stopped_run_resumes_to_the_same_bits(tokenizer, teacher, prompts, tmp_path):
    ends = []
    for stops in ((), (1, 3)):
        folder = RunFolder(tmp_path / f"stops-{len(stops)}")
        for stop in (*stops, None):
            plan = plan_of(tokenizer, teacher, prompts, 2, stop_after=stop)
            run_plan(plan, folder)
        ends.append((weights_hash(plan.models.student), folder.metrics.read_text()))
    assert ends[0] == ends[1]


class SpoilingEngine(WrappedEngine):
    """An engine that spoils the picture of a row, when the next step is encoded already."""

    def __init__(self, vlm, path, call, spoil):
        super().__init__(HFEngine(vlm))
        self.path, self.left, self.spoil = path, call, spoil

    def generate(self, requests, sampling):
        self.left -= 1
        if self.left == 0:
            for thread in threading.enumerate():  # wait until the threads have nothing to do
                if thread.name.startswith("encode"):
                    thread.join(0.2)
            self.spoil(self.path)
        return super().generate(requests, sampling)


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def redraw(path):
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)


@pytest.mark.parametrize("spoil", few([cut, redraw, lambda path: path.unlink()], 1))
def test_a_picture_that_goes_bad_is_found_by_its_own_step_with_its_own_code(
    tokenizer, teacher, prompts, tmp_path, spoil
):
    from vistill.data.keys import rows_of_step

    victim = prompts[rows_of_step(2, PER_STEP, len(prompts), 5)[0]].images[0].path
    content, ends = victim.read_bytes(), []
    for workers in (0, 2):
        victim.write_bytes(content)
        folder = RunFolder(tmp_path / f"run-{workers}")
        plan = plan_of(tokenizer, teacher, prompts, workers)
        engine = SpoilingEngine(plan.models.student, victim, 2, spoil)
        run_plan(replace(plan, engine=engine), folder)
        (record,) = folder.read(folder.replaced)
        ends.append((record["step"], record["code"], weights_hash(plan.models.student)))
    assert ends[0] == ends[1]
    assert ends[0][0] == 3
    assert ends[0][1] in ("D201", "D202", "D208")


class SignallingEngine(WrappedEngine):
    """An engine during whose second call a signal arrives."""

    def __init__(self, vlm, poll):
        super().__init__(HFEngine(vlm, poll))
        self.calls = 0

    def generate(self, requests, sampling):
        self.calls += 1
        if self.calls == 2:
            signal.raise_signal(signal.SIGINT)
        return super().generate(requests, sampling)


def test_ctrl_c_ends_the_threads_and_the_run_continues_to_the_same_bits(
    tokenizer, teacher, prompts, tmp_path
):
    plan = plan_of(tokenizer, teacher, prompts, 2)
    run_plan(plan, whole := RunFolder(tmp_path / "whole"))
    stopped, folder = plan_of(tokenizer, teacher, prompts, 2), RunFolder(tmp_path / "stopped")
    engine = SignallingEngine(stopped.models.student, lambda: None)
    with pytest.raises(Preempted) as caught:
        run_plan(replace(stopped, engine=engine), folder)
    assert caught.value.exit_code == 130
    assert not [t for t in threading.enumerate() if t.name.startswith("encode")]
    resumed = plan_of(tokenizer, teacher, prompts, 2)
    run_plan(resumed, folder)
    assert weights_hash(resumed.models.student) == weights_hash(plan.models.student)
    assert folder.metrics.read_text() == whole.metrics.read_text()


def test_a_family_that_does_not_allow_threads_encodes_within_the_step(
    tokenizer, teacher, prompts, tmp_path
):
    plan = plan_of(tokenizer, teacher, prompts, 2)
    student = with_family(plan.models.student, encodes_in_threads=False)
    plan = replace(plan, models=Models(student, teacher, student.vocabulary_size))
    calls, *_ = run_watched(plan, RunFolder(tmp_path / "run"))
    assert {thread for thread, *_ in calls} == {"MainThread"}


def test_auto_leaves_a_core_to_the_run(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for cores, expected in ((1, (0, 0)), (2, (1, 1)), (4, (1, 3)), (64, (1, 8))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=cores: range(n), raising=False)
        assert (num_workers("auto", cpu), num_workers("auto", cuda)) == expected
    assert num_workers(5, cpu) == 5
