"""The output of every engine is checked in one place: a broken engine is an error."""

from dataclasses import replace

import pytest
import torch
from conftest import build_model

from vistill.errors import RolloutError
from vistill.rollouts.build import make_engine
from vistill.rollouts.checked_engine import (
    EMPTY_ATTEMPTS,
    CheckedEngine,
    generate_responses,
    keep_awake,
)
from vistill.rollouts.engine import (
    RolloutRequest,
    Sampling,
    WrappedEngine,
    make_requests,
    sampling_for_step,
)
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.types import Finish, Rollout

SAMPLING = Sampling(0, 0, 1.0, 1.0, 5, log_probs=True)


def make_test_requests(vlm, prompts, siblings=(0, 1)):
    return make_requests(prompts, [vlm.encode(p) for p in prompts], siblings)


class Broken(WrappedEngine):
    """An engine whose rollouts are changed before they are returned."""

    def __init__(self, inner, change):
        super().__init__(inner)
        self.change = change

    def generate(self, requests, sampling):
        return self.change([list(group) for group in super().generate(requests, sampling)])


def valid_engine(vlm):
    """Two tokens and the end of the turn, each with a log-probability."""
    stop = vlm.stop_ids[0]
    return ScriptedEngine(
        lambda key, sibling: (20, 21, stop), stop, lambda request, ids: (-1.0,) * len(ids)
    )


def change_first(**changes):
    """Return a function that changes the first rollout."""

    def change(groups):
        groups[0][0] = replace(groups[0][0], **changes)
        return groups

    return change


def numpy_ids(groups):
    groups[0][0] = replace(groups[0][0], ids=tuple(torch.tensor(groups[0][0].ids).numpy()))
    return groups


STOP = object()
BREAKS = {
    "a group is missing": (lambda g: g[:-1], "R404"),
    "one group too many": (lambda g: [*g, g[0]], "R404"),
    "a sibling is missing": (lambda g: [g[0][:-1], *g[1:]], "R404"),
    "siblings in another order": (lambda g: [g[0][::-1], *g[1:]], "R404"),
    "another attempt": (change_first(attempt=1), "R404"),
    "an id beyond the tokenizer": (change_first(ids=(20, 10**6, STOP)), "R405"),
    "an id below 0": (change_first(ids=(20, -1, STOP)), "R405"),
    "ids that are not ints": (numpy_ids, "R405"),
    "an image token": (change_first(ids=(20, "banned", STOP)), "R405"),
    "more tokens than max_new_tokens": (
        change_first(ids=(20, 21, 22, 23, 24, STOP), log_probs=(-1.0,) * 6),
        "R405",
    ),
    "tokens after the end": (change_first(ids=(20, STOP, STOP)), "R405"),
    "stopped without an end": (change_first(ids=(20, 21, 22)), "R406"),
    "cut off with an end": (change_first(finish=Finish.LENGTH), "R406"),
    "an end that was stripped": (change_first(ids=(), log_probs=()), "R406"),
    "no log-probabilities": (change_first(log_probs=None), "R407"),
    "too few log-probabilities": (change_first(log_probs=(-1.0, -1.0)), "R407"),
    "a probability above 1": (change_first(log_probs=(-1.0, 0.5, -1.0)), "R407"),
    "not a number": (change_first(log_probs=(-1.0, float("nan"), -1.0)), "R407"),
}


def resolve_placeholders(vlm, change):
    """Replace the placeholders in the changed ids by the stop id and a banned id of this model."""
    names = {STOP: vlm.stop_ids[0], "banned": vlm.family.banned_ids()[0]}

    def changed(groups):
        return [
            tuple(replace(r, ids=tuple(names.get(i, i) for i in r.ids)) for r in group)
            for group in change(groups)
        ]

    return changed


def test_valid_rollouts_pass_unchanged(teacher, prompts):
    requests = make_test_requests(teacher, prompts[:2])
    assert CheckedEngine(valid_engine(teacher), teacher).generate(
        requests, SAMPLING
    ) == valid_engine(teacher).generate(requests, SAMPLING)


@pytest.mark.parametrize("name", BREAKS)
def test_every_breach_of_the_contract_has_a_code(teacher, prompts, name):
    change, code = BREAKS[name]
    engine = make_engine(
        teacher,
        RolloutSettings(),
        own=Broken(valid_engine(teacher), resolve_placeholders(teacher, change)),
    )
    with pytest.raises(RolloutError) as caught:
        engine.generate(make_test_requests(teacher, prompts[:2]), SAMPLING)
    assert caught.value.code == code
    assert "rollout.engine=shared" in caught.value.fix
    assert not caught.value.rows  # the engine is at fault, not a row


def test_an_engine_that_ignores_a_weight_sync_stops_the_run(teacher):
    class IgnoresSync(SharedEngine):
        def sync_weights(self, version):
            pass

    with pytest.raises(RolloutError) as caught:
        CheckedEngine(IgnoresSync(teacher), teacher).sync_weights(3)
    assert caught.value.code == "R408"


def test_an_engine_that_falls_back_to_old_weights_stops_the_run_before_training(teacher, prompts):
    class FallsBack(SharedEngine):
        def generate(self, requests, sampling):
            self.version = 0
            return super().generate(requests, sampling)

    engine = CheckedEngine(FallsBack(teacher), teacher)
    engine.sync_weights(3)
    with pytest.raises(RolloutError) as caught:
        engine.generate(make_test_requests(teacher, prompts[:1]), SAMPLING)
    assert caught.value.code == "R408"


def test_a_caller_that_names_the_weights_version_notices_a_missing_sync(teacher, prompts):
    engine = make_engine(teacher, RolloutSettings())
    engine.sync_weights(3)
    now = replace(
        sampling_for_step(RolloutSettings(max_new_tokens=2), 0, 3, weights=3), rows_per_call=2
    )
    engine.generate(make_test_requests(teacher, prompts[:1]), now)
    with pytest.raises(RolloutError) as caught:
        engine.generate(make_test_requests(teacher, prompts[:1]), replace(now, weights=4))
    assert caught.value.code == "R408"


class EmptyUntil(ScriptedEngine):
    """Returns an empty response for sibling 1 before a given attempt."""

    def __init__(self, stop, attempt):
        super().__init__(lambda key, sibling: (20, stop), stop)
        self.attempt, self.calls, self.states = attempt, [], []

    def ids(self, request, sibling, sampling):
        self.calls.append((request.key, sibling, request.attempt))
        silent = sibling == 1 and request.attempt < self.attempt
        return () if silent else super().ids(request, sibling, sampling)

    def sleep(self):
        self.states.append("sleep")

    def wake(self):
        self.states.append("wake")


def test_an_empty_response_is_sampled_again_alone_with_a_new_key(teacher, prompts):
    engine = EmptyUntil(teacher.stop_ids[0], 2)
    ((first, second),) = generate_responses(
        CheckedEngine(engine, teacher), make_test_requests(teacher, prompts[:1]), WITHOUT_LOG_PROBS
    )
    key = prompts[0].id
    assert engine.calls == [(key, 0, 0), (key, 1, 0), (key, 1, 1), (key, 1, 2)]
    assert (first.attempt, second.attempt, second.ids) == (0, 2, first.ids)


WITHOUT_LOG_PROBS = replace(SAMPLING, log_probs=False)


def test_a_response_that_stays_empty_names_its_rows(teacher, prompts):
    engine = EmptyUntil(teacher.stop_ids[0], 99)
    with pytest.raises(RolloutError) as caught:
        generate_responses(
            CheckedEngine(engine, teacher),
            make_test_requests(teacher, prompts[:2]),
            WITHOUT_LOG_PROBS,
        )
    assert caught.value.code == "R403"
    assert caught.value.rows == [p.id for p in prompts[:2]]
    assert max(attempt for *_, attempt in engine.calls) == EMPTY_ATTEMPTS


def test_the_end_of_a_turn_alone_is_a_response_of_one_token(teacher, prompts):
    stop = teacher.stop_ids[0]
    engine = CheckedEngine(ScriptedEngine(lambda key, sibling: (stop,), stop), teacher)
    ((rollout,),) = generate_responses(
        engine, make_test_requests(teacher, prompts[:1], (0,)), WITHOUT_LOG_PROBS
    )
    assert rollout == Rollout((stop,), 0, Finish.STOP)


def test_an_engine_is_awake_while_it_generates_and_sleeps_afterwards_even_after_an_error(
    teacher, prompts
):
    engine = EmptyUntil(teacher.stop_ids[0], 99)
    checked = CheckedEngine(engine, teacher)
    with keep_awake(checked):
        pass
    with pytest.raises(RolloutError):
        generate_responses(checked, make_test_requests(teacher, prompts[:1]), WITHOUT_LOG_PROBS)
    assert engine.states == ["sleep", "wake", "sleep"]
    with pytest.raises(AssertionError, match="sleeps"):
        checked.generate(make_test_requests(teacher, prompts[:1]), WITHOUT_LOG_PROBS)


def test_a_request_carries_the_prompt_under_the_writers_view(teacher, prompts):
    (request,) = make_test_requests(teacher, prompts[:1])
    assert request.source.images == prompts[0].images
    assert request == RolloutRequest(request.key, request.prompt, request.siblings)


@pytest.mark.parametrize("engine_type", [SharedEngine, HFEngine])
def test_our_own_engines_never_return_an_empty_response(tokenizer, prompts, engine_type):
    """R403 is for engines of users. If every token ends the turn, ours return that one token."""
    vlm = build_model(tokenizer, 0)
    vlm.model.generation_config.eos_token_id = list(range(vlm.vocabulary_size))
    requests = make_test_requests(vlm, prompts[:2])
    groups = generate_responses(CheckedEngine(engine_type(vlm), vlm), requests, WITHOUT_LOG_PROBS)
    ends = {(len(rollout.ids), rollout.finish) for group in groups for rollout in group}
    assert ends == {(1, Finish.STOP)}
