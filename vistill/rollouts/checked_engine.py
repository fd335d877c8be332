"""Checks every answer of every engine in one place: a broken engine is an error, not a number."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vistill.errors import RolloutError
from vistill.models.loading import VLM
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling, WrappedEngine
from vistill.types import Finish, Rollout

#: How often an empty response is drawn again.
EMPTY_ATTEMPTS = 3
#: Log-probabilities are at most 0, plus rounding.
ROUNDING = 1e-3


@dataclass(frozen=True)
class ResponseRules:
    """What the ids of a model's response can be."""

    vocabulary: int
    banned: frozenset[int]
    stop: frozenset[int]


def banned_ids(vlm: VLM) -> list[int]:
    """Ids that are never sampled: multimodal marks, and padding where it does not end a response."""
    return sorted({*vlm.family.banned_ids(), vlm.pad_id} - set(vlm.stop_ids))


def rules_of(vlm: VLM) -> ResponseRules:
    """The rules of a model's responses."""
    return ResponseRules(vlm.vocabulary_size, frozenset(banned_ids(vlm)), frozenset(vlm.stop_ids))


class CheckedEngine(WrappedEngine):
    """The boundary between an engine and everything that uses responses: every answer is checked.

    Raises:
        RolloutError: R404 other responses than asked for, R405 ids that no response can have, R406 a
            reason to end that the ids contradict, R407 log-probabilities that are none, R408 other
            weights than expected.
    """

    def __init__(self, inner: RolloutEngine, vlm: VLM) -> None:
        super().__init__(inner)
        self.vlm = vlm
        self.synced: int | None = None
        self.asleep = False

    def write(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """The rollouts of each request, checked."""
        assert not self.asleep, "the engine sleeps: wake it before it writes"
        expected = self.synced if sampling.weights is None else sampling.weights
        expected = self.inner.version if expected is None else expected
        check_version(self.inner, expected)
        groups = self.inner.write(requests, sampling)
        check_version(self.inner, expected)
        check_written(requests, groups, sampling, rules_of(self.vlm))
        return groups

    def sync_weights(self, version: int) -> None:
        """Hand on, and see that the engine took the version."""
        self.inner.sync_weights(version)
        check_version(self.inner, version)
        self.synced = version

    def sleep(self) -> None:
        """Hand on, once."""
        if not self.asleep:
            self.inner.sleep()
        self.asleep = True

    def wake(self) -> None:
        """Hand on, once."""
        if self.asleep:
            self.inner.wake()
        self.asleep = False


@contextmanager
def keep_awake(engine: RolloutEngine) -> Iterator[None]:
    """Inside, the engine is ready to write; afterwards it sleeps."""
    engine.wake()
    try:
        yield
    finally:
        engine.sleep()


def generate_responses(
    engine: RolloutEngine, requests: Sequence[RolloutRequest], sampling: Sampling
) -> list[tuple[Rollout, ...]]:
    """Responses to learn from: an empty one is drawn again with a new key, `EMPTY_ATTEMPTS` times (R403).

    Empty means without any id. An end-of-turn token alone is a response of one token, and that token
    is learnt.
    """
    with keep_awake(engine):
        groups = [list(group) for group in engine.write(requests, sampling)]
        for attempt in range(1, EMPTY_ATTEMPTS + 1):
            places = [
                (g, k)
                for g, group in enumerate(groups)
                for k, rollout in enumerate(group)
                if not rollout.ids
            ]
            if not places:
                break
            again = [
                replace(requests[g], siblings=(requests[g].siblings[k],), attempt=attempt)
                for g, k in places
            ]
            for (g, k), (rollout,) in zip(places, engine.write(again, sampling), strict=True):
                groups[g][k] = rollout
    empty = [
        request
        for request, group in zip(requests, groups, strict=True)
        if any(not r.ids for r in group)
    ]
    if empty:
        what = f"a response stayed empty after {EMPTY_ATTEMPTS} new attempts"
        raise empty_response_error(
            what, [request.key for request in empty], location_of_request(empty[0])
        )
    return [tuple(group) for group in groups]


def empty_response_error(what: str, keys: Sequence[str], where: str = "") -> RolloutError:
    """R403; its rows are the prompts that were asked."""
    error = RolloutError(
        "R403",
        what,
        where=where,
        why="a response without tokens has no visual advantage and no loss",
        fix="data.max_bad_share=0.05   or in a new run: rollout.temperature=1.0 run=NEW",
    )
    error.rows = list(keys)
    return error


def check_version(engine: RolloutEngine, expected: int) -> None:
    """R408 where the engine writes with other weights than expected."""
    if engine.version != expected:
        raise RolloutError(
            "R408",
            f"the rollout engine writes with weights version {engine.version}, expected is {expected}",
            where=type(engine).__name__,
            why="responses of other weights than the student's are no longer on-policy",
            fix="rollout.engine=shared",
            note="an engine of your own: sync_weights(version) must take the weights over and set `version`",
        )


def check_written(
    requests: Sequence[RolloutRequest],
    groups: Sequence[Sequence[Rollout]],
    sampling: Sampling,
    rules: ResponseRules,
) -> None:
    """R404 to R407: everything that can be said about an answer without the model."""
    if len(groups) != len(requests):
        raise contract_error(
            "R404", f"the rollout engine answered {len(groups)} of {len(requests)} requests"
        )
    for request, group in zip(requests, groups, strict=True):
        found = [(rollout.sibling, rollout.attempt) for rollout in group]
        if found != [(sibling, request.attempt) for sibling in request.siblings]:
            what = f"siblings {list(request.siblings)} of attempt {request.attempt} were asked for, (sibling, attempt)"
            raise contract_error("R404", f"{what} {found} came back", request)
        for rollout in group:
            check_ids(rollout, request, sampling, rules)
            check_finish(rollout, request, rules)
            if sampling.log_probs:
                check_log_probs(rollout, request)


def check_ids(
    rollout: Rollout, request: RolloutRequest, sampling: Sampling, rules: ResponseRules
) -> None:
    """R405: plain ids of the vocabulary, none banned, no more than asked for, none after the end."""
    ids = rollout.ids
    other = [i for i in ids if type(i) is not int]
    if other:
        raise contract_error(
            "R405",
            f"token ids of the type {type(other[0]).__name__} instead of int",
            request,
            rollout,
        )
    outside = [i for i in ids if not 0 <= i < rules.vocabulary]
    if outside:
        raise contract_error(
            "R405", f"token id {outside[0]} is not among the {rules.vocabulary:,}", request, rollout
        )
    if not rules.banned.isdisjoint(ids):
        banned = next(i for i in ids if i in rules.banned)
        raise contract_error(
            "R405", f"token id {banned} is a multimodal mark or padding", request, rollout
        )
    if len(ids) > sampling.max_new_tokens:
        what = f"{len(ids)} tokens, where rollout.max_new_tokens = {sampling.max_new_tokens}"
        raise contract_error("R405", what, request, rollout)
    if not rules.stop.isdisjoint(ids[:-1]):
        raise contract_error("R405", "tokens after the first end-of-turn token", request, rollout)


def check_finish(rollout: Rollout, request: RolloutRequest, rules: ResponseRules) -> None:
    """R406: a response has stopped exactly if its last id ends a turn."""
    ended = bool(rollout.ids) and rollout.ids[-1] in rules.stop
    if ended != (rollout.finish is Finish.STOP):
        last = f"the last id is {rollout.ids[-1]}" if rollout.ids else "there is no id"
        raise contract_error("R406", f"finish is `{rollout.finish}`, but {last}", request, rollout)


def check_log_probs(rollout: Rollout, request: RolloutRequest) -> None:
    """R407: one finite log-probability for each id."""
    values = rollout.log_probs
    if values is None or len(values) != len(rollout.ids):
        number = "no" if values is None else str(len(values))
        raise contract_error(
            "R407", f"{number} log-probabilities for {len(rollout.ids)} tokens", request, rollout
        )
    wrong = [value for value in values if not math.isfinite(value) or value > ROUNDING]
    if wrong:
        raise contract_error("R407", f"{wrong[0]} is no log-probability", request, rollout)


def contract_error(
    code: str, what: str, request: RolloutRequest | None = None, rollout: Rollout | None = None
) -> RolloutError:
    """An answer that breaks the contract."""
    where = "" if request is None else location_of_request(request)
    return RolloutError(
        code,
        what,
        where=where if rollout is None else f"{where}, sibling {rollout.sibling}",
        why="the rollout engine breaks its contract; learnt from, such responses would give wrong numbers",
        fix="rollout.engine=shared",
        note="an engine of your own: docs/extending.md, An engine",
    )


def location_of_request(request: RolloutRequest) -> str:
    """The row or the prompt, for messages."""
    row = "" if request.source is None else request.source.labels.get("row", "")
    return row or f"prompt {request.key}"
