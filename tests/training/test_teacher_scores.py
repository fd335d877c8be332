"""A server scores as the teacher: which methods may, what is stored, and what a replay reads.

The server is a double here; `tests/rollouts/test_server_real.py` has a real one.
"""

import json
from dataclasses import replace

import pytest
import torch
from plans import replay_plan
from training.test_loop import make_plan, run_plan

from vistill.errors import ConfigError, RolloutError, StorageError
from vistill.models.scoring import score
from vistill.objectives import METHODS
from vistill.rollouts.server_checks import unreachable_error
from vistill.rollouts.settings import RolloutSettings, ServerSettings
from vistill.runs.folder import RunFolder
from vistill.training import teacher_scores
from vistill.training.checkpoint import weights_hash
from vistill.training.settings import SaveSettings
from vistill.training.teacher_scores import check_scorer

pytestmark = pytest.mark.usefixtures("without_canary")

AT = ServerSettings(url="http://127.0.0.1:1")
SAMPLED = {name: METHODS[name](estimator="sampled") for name in ("opd", "iw_opd", "va_opd")}


class Double:
    """A server that scores by the teacher itself, and a little differently at every call."""

    calls = 0
    jitter = 0.0
    fails = False

    def __init__(self, teacher, settings, poll):
        self.teacher = teacher

    def prove(self):
        if Double.fails:
            raise unreachable_error(AT.url, "refused")
        return 0.0

    @torch.no_grad()
    def log_probs(self, groups):
        Double.calls += 1
        ids = torch.tensor([i for g in groups for response in g.responses for i in response])
        exact = score(self.teacher, groups, ids, self.teacher.vocabulary_size, "log_prob")
        return exact.sampled() + Double.jitter * Double.calls


@pytest.fixture(autouse=True)
def _server(monkeypatch):
    """Scores come from a double: a vLLM server takes minutes to start."""
    Double.calls, Double.jitter, Double.fails = 0, 0.0, False
    monkeypatch.setattr(teacher_scores, "SampledTokenTeacher", Double)


def make_scored_plan(tokenizer, teacher, scorer="sampled_token", method="va_opd", **changes):
    plan = make_plan(tokenizer, teacher, SAMPLED[method], eval_prompts=[], **changes)
    train = replace(plan.train, teacher_scorer=scorer, overlap=True)
    return replace(plan, train=train, rollout=replace(plan.rollout, server=AT))


@pytest.mark.more
@pytest.mark.parametrize("method", SAMPLED)
def test_a_run_with_exact_scores_of_a_server_is_the_run_with_the_teacher(
    tokenizer, teacher, tmp_path, method
):
    """And the log says that its loss is the sampled-token estimate."""
    texts, weights = [], []
    for scorer in ("model", "sampled_token"):
        folder = RunFolder(tmp_path / scorer)
        plan = make_scored_plan(tokenizer, teacher, scorer, method)
        run_plan(plan, folder)
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        assert {"loss/sampled_policy", "loss/sampled_reverse_kl"} <= lines[0].keys()
        assert "loss/reverse_kl" not in lines[0]
        weights.append(weights_hash(plan.models.student))
        texts.append(lines)
        assert (Double.calls > 0) == (scorer == "sampled_token")
    assert texts[0][0] == pytest.approx(texts[1][0], abs=1e-5)  # other batches, other rounding
    assert len(texts[0]) == len(texts[1]) == 9


@pytest.mark.more
def test_a_stopped_run_and_a_replay_use_the_stored_scores(tokenizer, teacher, tmp_path):
    Double.jitter = 1e-3
    save = SaveSettings(every=4, keep=9)
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")

    def plan(**changes):
        return make_scored_plan(tokenizer, teacher, save=save, **changes)

    run_plan(plan(), whole)
    Double.calls = 0
    run_plan(plan(stop_after=7), stopped)
    assert Double.calls == 7 * 2  # both views, once a step
    run_plan(plan(), stopped)
    assert Double.calls == 9 * 2  # steps 5 to 7 were repeated
    assert stopped.metrics.read_text() == whole.metrics.read_text()
    replayed = replay_plan(plan(), whole, 6)
    assert replayed.same
    assert Double.calls == 9 * 2
    entry = whole.journal / "000006.json"
    record = json.loads(entry.read_text())
    assert set(record["scores"]) == {"teacher.full", "teacher.pixelated"}
    record["scores"]["teacher.full"][0] += 1.0  # changed on the disk
    entry.write_text(json.dumps(record))
    with pytest.raises(StorageError) as caught:
        replay_plan(plan(), whole, 6)
    assert caught.value.code == "S607"
    assert "scores of step 6" in caught.value.what


@pytest.mark.parametrize(
    ("method", "teachers", "why"),
    [
        (METHODS["opd"](), 0, "whole distribution of teacher.full"),
        (METHODS["va_opd"](), 0, "whole distribution of teacher.full"),
        (METHODS["va_opd"](estimator="sampled", score="distribution"), 0, "teacher.pixelated"),
        (METHODS["vgs"](), 0, "whole distribution"),
        (METHODS["kd"](), 0, "whole distribution"),
        (METHODS["grpo"](), 0, "reads no teacher"),
        (SAMPLED["opd"], 2, "one server serves one teacher"),
    ],
)
def test_what_needs_more_than_the_sampled_token_is_refused(method, teachers, why):
    with pytest.raises(ConfigError) as caught:
        check_scorer("m", method.passes(), RolloutSettings(server=AT), teachers)
    error = caught.value
    assert (error.code, error.fix) == ("C101", "train.teacher_scorer=model")
    assert why in error.why


def test_a_scorer_without_an_address_is_refused_and_names_its_own_way_out():
    with pytest.raises(ConfigError) as caught:
        check_scorer("opd", SAMPLED["opd"].passes(), RolloutSettings(), 0)
    assert (caught.value.code, caught.value.fix) == ("C101", "train.teacher_scorer=model")
    assert "the teacher's server" in caught.value.what
    for method in SAMPLED.values():
        check_scorer("m", method.passes(), RolloutSettings(server=AT), 0)


def test_a_server_that_is_not_there_ends_the_start_before_step_1(tokenizer, teacher, tmp_path):
    Double.fails = True
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RolloutError) as caught:
        run_plan(make_scored_plan(tokenizer, teacher), folder)
    assert (caught.value.code, caught.value.fix) == ("R417", "train.teacher_scorer=model")
    assert not folder.metrics.exists()
