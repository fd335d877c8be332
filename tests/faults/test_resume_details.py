"""Details of resuming: moved rows, responses of another history, signals at unusual moments."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from bad_rows import write_data_files
from doubles import before_each_update, system_with_free_memory
from faults.test_bad_rows import SpoilingEngine, plan_on, rows_with_own_images, spoil_image
from plans import prepare_run, replay_plan
from training.test_loop import make_plan, run_plan

from vistill.data.keys import rows_of_step
from vistill.data.loading import load_train_and_eval
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError, Preempted, RolloutError, StorageError
from vistill.objectives import METHODS, OPD
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.scripted import ScriptedEngine
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import newest_checkpoint, weights_hash
from vistill.training.loop import run
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.views import ViewContext

pytestmark = pytest.mark.usefixtures("without_canary")


def read_lines(file):
    return file.read_text().splitlines()


def write_lines(file, lines):
    file.write_text("".join(line + "\n" for line in lines))


@pytest.mark.more
@pytest.mark.parametrize("change", ["same", "reordered", "more"])
def test_views_with_partners_resume_exactly_after_any_change_of_the_file(
    tokenizer, teacher, tmp_path, change
):
    ends = []
    for name in ("uninterrupted", "stopped"):
        file = rows_with_own_images(tmp_path / f"data-{name}")
        lines = [
            json.dumps({**json.loads(line), "boxes": [4, 4, 40, 40]}) for line in read_lines(file)
        ]
        write_lines(file, lines)
        more = [
            json.dumps({**json.loads(line), "question": f"New {i}?"})
            for i, line in enumerate(lines)
        ]
        folder, columns = RunFolder(tmp_path / name), Columns(boxes="boxes")
        objective = METHODS["visual_opsd"](gate=False, thoughts="mismatched")

        def make(file=file, columns=columns, objective=objective, **changes):
            plan, _ = plan_on(
                file, tokenizer, teacher, columns=columns, objective=objective, **changes
            )
            return replace(plan, models=replace(plan.models, view=ViewContext(thought="crop")))

        if name == "stopped":
            run_plan(make(stop_after=3), folder)
            mixed = [x for pair in zip(lines, more, strict=True) for x in pair]
            write_lines(file, {"same": lines, "reordered": lines[::-1], "more": mixed}[change])
        plan = make()
        run_plan(plan, folder)
        ends.append((weights_hash(plan.models.student), folder.metrics.read_text()))
    assert ends[0] == ends[1]


@pytest.mark.more
def test_held_out_rows_of_a_started_run_stay_held_out_if_rows_move_or_are_added(
    tokenizer, teacher, tmp_path
):
    file, folder = write_data_files(tmp_path / "data", 40, 0)[0], RunFolder(tmp_path / "run")

    def make(**changes):
        train, held_out = load_train_and_eval(DataSettings(train=str(file), holdout=8))
        more = {"train_prompts": train.prompts, "eval_prompts": held_out.prompts, "stop_after": 2}
        return plan_on(file, tokenizer, teacher, **(more | changes))[0]

    first = make()
    run_plan(first, folder)
    lines = read_lines(file)
    extra = [
        json.dumps({**json.loads(line), "question": f"New {i}?"}) for i, line in enumerate(lines)
    ]
    write_lines(file, [*extra, *lines[::-1]])
    again = prepare_run(make(), folder)
    assert [p.id for p in again.train_prompts] == [p.id for p in first.train_prompts]
    assert [p.id for p in again.eval_prompts] == [p.id for p in first.eval_prompts]
    write_lines(
        file, [line for line in lines if json.loads(line)["question"] != first.eval_prompts[0].text]
    )
    with pytest.raises(DataError) as caught:
        prepare_run(make(), folder)
    assert caught.value.code == "D307"
    assert "{" not in caught.value.fix


@pytest.mark.more
def test_a_run_of_a_version_without_a_list_of_its_rows_is_refused(tokenizer, teacher, tmp_path):
    file, folder = rows_with_own_images(tmp_path / "data"), RunFolder(tmp_path / "run")
    run_plan(plan_on(file, tokenizer, teacher, stop_after=2)[0], folder)
    (folder.path / "rows.json").unlink()
    with pytest.raises(StorageError) as caught:
        prepare_run(plan_on(file, tokenizer, teacher)[0], folder)
    assert caught.value.code == "S604"


@pytest.mark.more
def test_a_replaced_row_is_logged_if_a_signal_ends_the_same_step(tokenizer, teacher, tmp_path):
    file, folder = rows_with_own_images(tmp_path / "data"), RunFolder(tmp_path / "run")
    save = SaveSettings(every=50)
    plan, _ = plan_on(file, tokenizer, teacher, save=save)
    victim = plan.train_prompts[rows_of_step(2, 2, 8, plan.seed)[0]]

    class Engine(HFEngine):
        calls = 0

        def generate(self, requests, sampling):
            Engine.calls += 1
            if Engine.calls == 2:
                spoil_image(victim)
            written = super().generate(requests, sampling)
            if Engine.calls == 3:
                signal.raise_signal(signal.SIGTERM)
            return written

    with pytest.raises(Preempted):
        run_plan(replace(plan, engine=Engine(plan.models.student)), folder)
    assert [r["id"] for r in folder.read(folder.replaced)] == [victim.id]
    run_plan(plan_on(file, tokenizer, teacher, save=save)[0], folder)
    assert (
        victim.id
        in json.loads((newest_checkpoint(folder) / "state.json").read_text())["replaced_rows"]
    )
    assert [r["id"] for r in folder.read(folder.replaced)] == [victim.id]


@pytest.mark.more
def test_responses_of_another_history_are_not_reused(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)

    def make(lr, every, stop):
        train = TrainSettings(prompts_per_step=2, lr=lr)
        save = SaveSettings(every=every, keep=1)
        more = {
            "fingerprint": str(lr),
            "eval_prompts": [],
            "save": save,
            "stop_after": stop,
            "train": train,
        }
        return make_plan(tokenizer, teacher, **more)

    run(make(3e-3, 4, 7), folder)
    run(make(3e-2, 2, 6), folder)
    plan, steps = make(3e-3, 2, 7), []

    class Engine(HFEngine):
        def generate(self, requests, sampling):
            steps.append(sampling.step)
            return super().generate(requests, sampling)

    run(replace(plan, engine=Engine(plan.models.student)), folder)
    assert steps == [6]


@pytest.mark.more
@pytest.mark.parametrize("damage", [b"\0" * 40, b'"fingerprint'])
def test_a_damaged_journal_entry_is_written_again(tokenizer, teacher, tmp_path, damage):
    folder = RunFolder(tmp_path)
    run_plan(make_plan(tokenizer, teacher, stop_after=5), folder)
    file = folder.journal / "000005.json"
    content = bytearray(file.read_bytes())
    content[20 : 20 + len(damage)] = damage
    file.write_bytes(bytes(content))
    plan = make_plan(tokenizer, teacher)
    run_plan(plan, folder)
    assert "its entry cannot be read" in folder.events.read_text()
    assert [r["step"] for r in folder.read(folder.metrics)] == list(range(1, plan.num_steps + 1))


@pytest.mark.more
def test_a_replay_splits_like_the_run_if_more_memory_is_free(
    tokenizer, teacher, tmp_path, monkeypatch
):
    folder = RunFolder(tmp_path / "run")

    def make():
        return make_plan(tokenizer, teacher, save=SaveSettings(every=4, keep=5), eval_prompts=[])

    system_with_free_memory(monkeypatch, 8e6)
    run_plan(make(), folder)
    system_with_free_memory(monkeypatch, 8e10)
    assert replay_plan(make(), folder, 7).same


@pytest.mark.more
@pytest.mark.parametrize("restored", [True, False])
def test_a_replay_replaces_the_rows_that_the_run_replaced(tokenizer, teacher, tmp_path, restored):
    file, folder = rows_with_own_images(tmp_path / "data"), RunFolder(tmp_path / "run")

    def make():
        return plan_on(file, tokenizer, teacher, steps=9, save=SaveSettings(every=3, keep=9))[0]

    plan = make()
    victim = plan.train_prompts[rows_of_step(4, 2, 8, plan.seed)[0]]
    image = victim.images[0].path.read_bytes()
    run_plan(replace(plan, engine=SpoilingEngine(plan.models.student, 4, victim)), folder)
    if restored:
        victim.images[0].path.write_bytes(image)
    assert replay_plan(make(), folder, 6).same


@pytest.mark.more
def test_truncated_steps_that_are_not_consecutive_do_not_stop_a_run(tokenizer, teacher, tmp_path):
    plan = make_plan(tokenizer, teacher, eval_prompts=[])
    stop, calls = plan.models.student.stop_ids[0], []

    class Engine(ScriptedEngine):
        def generate(self, requests, sampling):
            calls.append(1)
            return super().generate(requests, sampling)

    engine = Engine(
        lambda key, sibling: (20, 21 + sibling, *(() if len(calls) % 2 else (stop,))), stop
    )
    plan = replace(
        plan, engine=engine, rollout=replace(plan.rollout, all_truncated="stop"), num_steps=6
    )
    assert run(plan, RunFolder(tmp_path)).step == 6


@pytest.mark.parametrize("where", ["signals", "optimizer"])
def test_out_of_memory_where_nothing_can_be_halved_has_its_code(
    tokenizer, teacher, tmp_path, where
):
    def fail(*_):
        raise MemoryError("no more")

    class OutOfMemory(OPD):
        def signals(self, batch):
            return fail()

    plan = make_plan(tokenizer, teacher, OutOfMemory() if where == "signals" else OPD())
    with (
        before_each_update(fail) if where == "optimizer" else nullcontext(),
        pytest.raises(RolloutError) as caught,
    ):
        run(plan, RunFolder(tmp_path))
    assert caught.value.code == "R501"


def test_a_signal_at_the_end_of_the_start_checks_stops_the_run(tokenizer, teacher, tmp_path):
    written = []

    class SignallingFolder(RunFolder):
        """Send the signal right after the last check, which writes the memory per prompt."""

        def write(self, name, text):
            super().write(name, text)
            written.append(name)
            if name == "memory.json":
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted):
        prepare_run(make_plan(tokenizer, teacher), SignallingFolder(tmp_path))
    assert written[-1] == "memory.json"


def wait_for_handler(pid):
    """Until the process handles SIGTERM: before its first own statement nothing can."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
        if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.05)
    pytest.fail("no handler of SIGTERM within 120 s")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 1.5, 3.0, 4.0])
def test_a_signal_at_any_moment_ends_the_command_with_exit_code_and_message(tmp_path, seconds):
    command = [
        sys.executable,
        "-m",
        "vistill",
        "train",
        "demo.yaml",
        f"run={tmp_path / 'run'}",
        "train.steps=200",
    ]
    child = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    wait_for_handler(child.pid)
    time.sleep(seconds)
    child.send_signal(signal.SIGTERM)
    try:
        _, stderr = child.communicate(timeout=240)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 75, stderr[-2000:]
    assert "run the same command again" in stderr
