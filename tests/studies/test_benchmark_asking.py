"""What an evaluation stores while one call of the engine still writes."""

import time
from types import SimpleNamespace

import pytest
import torch

from vistill.answers.math_process import shared_judge
from vistill.errors import RolloutError
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.protocols import PROTOCOLS
from vistill.evaluation.benchmarks.sample_log import open_log, read_samples
from vistill.studies.benchmark_asker import Asker, ask_call
from vistill.types import Finish, Prompt, Rollout


class PartlyWritingEngine:
    """Passes on some prompts in an order, then breaks; a second call writes the rest."""

    def __init__(self, order, error=None):
        self.order, self.error, self.asked = order, error, []

    def generate_groups(self, requests, sampling, receive):
        self.asked.append([request.key for request in requests])
        by_key = {request.key: request for request in requests}
        order, error, self.order, self.error = self.order, self.error, [], None
        for key in order:
            receive(by_key[key], responses(by_key[key]))
        if error is not None:
            raise error
        return [responses(request) for request in requests]


def responses(request):
    return tuple(Rollout((7,), sibling, Finish.STOP) for sibling in request.siblings)


def asker_of(engine):
    vlm = SimpleNamespace(encode=lambda prompt: prompt, decode=lambda ids: "B")
    return Asker(vlm, engine, PROTOCOLS["va_opd"], 0, 8, shared_judge())


def call_of(names):
    rows = [BenchmarkRow(name, "?", answer="B", choices=("x", "y")) for name in names]
    return [(row, Prompt(row.id, ("?",), "B"), (0, 1)) for row in rows]


def stored(log):
    return [(sample.row.id, sample.sample) for sample in read_samples(log)]


@pytest.fixture
def log(tmp_path):
    open_log(tmp_path / "log.jsonl", {"task": "ai2d"})
    return tmp_path / "log.jsonl"


def test_finished_rows_are_stored_when_a_call_is_interrupted(log):
    engine = PartlyWritingEngine(["c", "a"], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ask_call(asker_of(engine), BENCHMARKS["ai2d"], call_of("abcd"), "sampled", log)
    assert stored(log) == [("c", 0), ("c", 1), ("a", 0), ("a", 1)]


def test_samples_in_writing_share_the_time_of_a_call(log, monkeypatch):
    clock = iter([0.0, 8.0, 100.0, 106.0, 200.0, 200.0, 300.0, 300.0, 400.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))  # what it reads is the test
    engine = PartlyWritingEngine(["c"])
    ask_call(asker_of(engine), BENCHMARKS["ai2d"], call_of("abcd"), "sampled", log)
    seconds = {sample.row.id: sample.seconds for sample in read_samples(log)}
    assert seconds == {"c": 1.0, "a": 2.0, "b": 2.0, "d": 2.0}
    assert 2 * sum(seconds.values()) == 8 + 6


def test_after_a_failed_sample_or_too_little_memory_only_the_rest_is_asked(log):
    failed = RolloutError("R413", "too long", why="", fix="")
    engine = PartlyWritingEngine(["c", "a"], failed)
    ask_call(asker_of(engine), BENCHMARKS["ai2d"], call_of("abcd"), "sampled", log)
    assert engine.asked == [["a", "b", "c", "d"], ["b"], ["d"]]
    assert sorted(stored(log)) == [(row, n) for row in "abcd" for n in (0, 1)]
    short = PartlyWritingEngine(["f"], torch.OutOfMemoryError("CUDA out of memory"))
    ask_call(asker_of(short), BENCHMARKS["ai2d"], call_of("efg"), "sampled", log)
    assert short.asked == [["e", "f", "g"], ["e", "g"]]
    assert len(stored(log)) == 2 * 7
