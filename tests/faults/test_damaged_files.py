"""Edited, cut or unexpected files in a run folder: an error that names the file, no traceback."""

import json
import signal

import pytest
from plans import make_setup_from
from training.test_loop import make_plan

from vistill.errors import NonFiniteError, StorageError
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.storage import append_line, read_json, read_lines, to_json, write_json
from vistill.studies.check import run_state_in_words
from vistill.training.interrupt import Interrupt, exit_on_second_signal
from vistill.training.memory_budget import choose_split
from vistill.training.replay import accepted_changes
from vistill.training.response_source import ResponseSource
from vistill.training.row_lock import restore_rows
from vistill.training.teacher_responses import (
    UNRELATED,
    TeacherWriter,
    write_teacher_responses,
)

DAMAGE = [
    b"",
    b"{",
    b"[1, 2]",
    b"null",
    b"\xff\xfe{}",
    b'{"question": 5}',
    b'{"split": {"tokens": 1}, "question": {}}',
]


@pytest.mark.parametrize("content", DAMAGE)
def test_an_error_names_a_damaged_state_file(tokenizer, teacher, tmp_path, content):
    folder = RunFolder(tmp_path)
    setup = make_setup_from(make_plan(tokenizer, teacher), folder)
    setup.loaded_models = make_plan(tokenizer, teacher).models
    folder.log(folder.metrics, {"step": 1})
    for name in ("memory.json", "rows.json"):
        (tmp_path / name).write_bytes(content)
    for read in (lambda: choose_split(setup, folder), lambda: restore_rows(setup)):
        with pytest.raises(StorageError) as caught:
            read()
        assert caught.value.code == "S606"
        assert str(tmp_path) in caught.value.fix


@pytest.mark.parametrize("content", DAMAGE[:5])
def test_an_error_names_a_damaged_lock_or_result(tmp_path, content):
    for name in ("run.lock.json", "result.json"):
        (tmp_path / name).write_bytes(content)
    for read in (
        lambda: accepted_changes(RunFolder(tmp_path)),
        lambda: resolve_model(str(tmp_path)),
    ):
        with pytest.raises(StorageError) as caught:
            read()
        assert caught.value.code == "S606"


@pytest.mark.parametrize("line", [b"5", b"[]", b"{", b'{"a": "\xff"}', b"\0\0"])
def test_an_error_names_the_number_of_a_line_that_is_not_a_record(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(StorageError, match=r"line 2 of metrics\.jsonl") as caught:
        list(read_lines(tmp_path / "metrics.jsonl"))
    assert caught.value.code == "S605"


def test_a_half_written_last_line_is_ignored(tmp_path):
    (tmp_path / "x.jsonl").write_bytes('{"a": "ü"}\n{"a": "ü'.encode()[:-1])
    assert list(read_lines(tmp_path / "x.jsonl")) == [{"a": "ü"}]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"ids": 5, "finish": ["stop"]},
        {"ids": [[1]], "finish": ["sleep"]},
        {"ids": [[1], [2]], "finish": ["stop"]},
    ],
)
def test_a_damaged_teacher_response_is_refused(tokenizer, teacher, tmp_path, record):
    folder, plan = RunFolder(tmp_path), make_plan(tokenizer, teacher)
    prompts, response_source = plan.train_prompts[:1], ResponseSource(None, plan.objective, 2)  # type: ignore[arg-type]
    settings = {"teacher": teacher.source, "seed": 5, **vars(plan.rollout)}
    stored = {key: value for key, value in settings.items() if key not in UNRELATED}
    write_json(tmp_path / "teacher_responses.settings.json", stored, exact=True)
    append_line(
        tmp_path / "teacher_responses.jsonl",
        {"prompt": prompts[0].id, "content": prompts[0].content, **record},
    )
    writer = TeacherWriter(plan.models, response_source, prompts)
    with pytest.raises(StorageError) as caught:
        write_teacher_responses(folder, [writer], plan.rollout, 5)
    assert caught.value.code == "S606"


def test_a_file_that_is_read_again_refuses_nan(tmp_path):
    assert to_json({"a": float("nan")}) == '{"a": null}'
    with pytest.raises(NonFiniteError, match=r"held\.token\[1\] is nan") as caught:
        write_json(tmp_path / "memory.json", {"held": {"token": [1.0, float("nan")]}}, exact=True)
    assert caught.value.code == "N702"
    assert not list(tmp_path.iterdir())


def test_read_json_checks_the_required_fields(tmp_path):
    (tmp_path / "a.json").write_text('{"n": 1, "d": {"x": 1}}')
    assert read_json(tmp_path / "a.json", n=int, d={"x"})["n"] == 1
    for fields in ({"m": int}, {"n": str}, {"d": {"x", "y"}}, {"n": {"x"}}):
        with pytest.raises(StorageError):
            read_json(tmp_path / "a.json", **fields)


def test_check_counts_the_same_checkpoints_as_a_start(tmp_path):
    from vistill.config import build_recipe

    run = tmp_path / "run"
    recipe = build_recipe(
        {"run": str(run), "method": "opd", "student": {"model": "a"}, "teacher": {"model": "b"}}
    )
    (run / "checkpoint-000007-backup").mkdir(parents=True)
    (run / "checkpoint-best").mkdir()
    (run / "run.lock.json").write_text(
        json.dumps({"format": 2, "recipe": json.loads(to_json(recipe.to_dict()))})
    )
    assert run_state_in_words(recipe)[1].endswith(", new")
    (run / "checkpoint-000004").mkdir()
    assert run_state_in_words(recipe)[1].endswith("resumes after step 4")


@pytest.mark.parametrize("listening", [lambda: Interrupt().listening(), exit_on_second_signal])
def test_a_signal_handler_from_outside_python_does_not_break_the_end_of_a_run(
    listening, monkeypatch
):
    """`signal.signal` returns None for a handler from before Python started."""
    before, install = signal.getsignal(signal.SIGUSR1), signal.signal
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda number, handler: install(number, handler) and None)
        with listening():
            pass
    assert install(signal.SIGUSR1, before) is signal.SIG_DFL
    install(signal.SIGTERM, signal.SIG_DFL)
    install(signal.SIGINT, signal.default_int_handler)
