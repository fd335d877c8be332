"""Check the output of every engine in one place, so that a broken engine is an error."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vistill.errors import RolloutError
from vistill.models.loading import VLM
from vistill.phases import responses_counted
from vistill.rollouts.engine import (
    GroupwiseEngine,
    Receive,
    RolloutEngine,
    RolloutRequest,
    Sampling,
    WrappedEngine,
)
from vistill.types import Finish, Rollout

#: How often an empty response is sampled again.
EMPTY_ATTEMPTS = 3
#: Log-probabilities are at most 0, up to rounding.
ROUNDING = 1e-3


@dataclass(frozen=True)
class ResponseRules:
    """The ids that a response of a model can contain."""

    vocabulary: int
    banned: frozenset[int]
    stop: frozenset[int]


def banned_ids(vlm: VLM) -> list[int]:
    """Ids that are never sampled: multimodal tokens, and padding unless it ends a response."""
    banned = {*vlm.family.banned_ids(), *vlm.also_banned, vlm.pad_id}
    return sorted(banned - set(vlm.stop_ids))


def response_rules(vlm: VLM) -> ResponseRules:
    """The rules of a model's responses."""
    return ResponseRules(vlm.vocabulary_size, frozenset(banned_ids(vlm)), frozenset(vlm.stop_ids))


class CheckedEngine(WrappedEngine):
    """Wraps an engine and checks every response before anything else uses it.

    Raises:
        RolloutError: R404 responses do not match the requests, R405 ids that no response can
            contain, R406 the ids contradict the finish reason, R407 invalid log-probabilities,
            R408 unexpected weights version.
    """

    def __init__(self, inner: RolloutEngine, vlm: VLM) -> None:
        super().__init__(inner)
        self.vlm = vlm
        self.synced_version: int | None = None
        self.is_asleep = False
        self.is_closed = False

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the checked rollouts of each request."""
        return self.generate_groups(requests, sampling, None)

    def generate_groups(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, receive: Receive | None
    ) -> list[tuple[Rollout, ...]]:
        """The same; `receive` gets checked groups while others are written, if the engine can."""
        assert not self.is_closed, "the engine is closed: make a new one"
        assert not self.is_asleep, "the engine sleeps: call wake() before generate()"
        expected = self.synced_version if sampling.weights is None else sampling.weights
        expected = self.inner.version if expected is None else expected
        check_version(self.inner, expected)
        with responses_counted(sum(len(request.siblings) for request in requests)):
            if receive is not None and isinstance(self.inner, GroupwiseEngine):
                checked = self.with_checks(receive, sampling)
                groups = self.inner.generate_groups(requests, sampling, checked)
            else:
                groups = self.inner.generate(requests, sampling)
        check_version(self.inner, expected)
        check_responses(requests, groups, sampling, response_rules(self.vlm))
        return groups

    def with_checks(self, receive: Receive, sampling: Sampling) -> Receive:
        """The same function; what it gets is checked first."""
        rules = response_rules(self.vlm)

        def checked(request: RolloutRequest, group: tuple[Rollout, ...]) -> None:
            check_responses([request], [group], sampling, rules)
            receive(request, group)

        return checked

    def sync_weights(self, version: int) -> None:
        """Sync the inner engine and check that it reports the version."""
        self.inner.sync_weights(version)
        check_version(self.inner, version)
        self.synced_version = version

    def sleep(self) -> None:
        """Put the inner engine to sleep, unless it already sleeps."""
        if not self.is_asleep:
            self.inner.sleep()
        self.is_asleep = True

    def wake(self) -> None:
        """Wake the inner engine, if it sleeps."""
        if self.is_asleep:
            self.inner.wake()
        self.is_asleep = False

    def close(self) -> None:
        """Close the inner engine, unless it is closed already."""
        if not self.is_closed:
            self.inner.close()
        self.is_closed = True


@contextmanager
def keep_awake(engine: RolloutEngine) -> Iterator[None]:
    """Wake the engine inside the block and put it to sleep afterwards."""
    engine.wake()
    try:
        yield
    finally:
        engine.sleep()


def generate_responses(
    engine: RolloutEngine,
    requests: Sequence[RolloutRequest],
    sampling: Sampling,
    receive: Receive | None = None,
) -> list[tuple[Rollout, ...]]:
    """Generate responses for training.

    `receive` gets finished groups without an empty response while others are written, if the engine
    can say so (`GroupwiseEngine`).

    An empty response is sampled again with a new noise key, up to `EMPTY_ATTEMPTS` times (R403).
    Empty means without any id. An end-of-turn token alone is a response of one token, and the
    student learns that token.
    """

    def pass_on(request: RolloutRequest, group: tuple[Rollout, ...]) -> None:
        if receive is not None and all(rollout.ids for rollout in group):
            receive(request, group)

    with keep_awake(engine):
        if receive is not None and isinstance(engine, GroupwiseEngine):
            first = engine.generate_groups(requests, sampling, pass_on)
        else:
            first = engine.generate(requests, sampling)
        groups = [list(group) for group in first]
        for attempt in range(1, EMPTY_ATTEMPTS + 1):
            empty_indices = [
                (g, k)
                for g, group in enumerate(groups)
                for k, rollout in enumerate(group)
                if not rollout.ids
            ]
            if not empty_indices:
                break
            retries = [
                replace(requests[g], siblings=(requests[g].siblings[k],), attempt=attempt)
                for g, k in empty_indices
            ]
            for (g, k), (rollout,) in zip(
                empty_indices, engine.generate(retries, sampling), strict=True
            ):
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
    """Make R403; its rows are the prompts of the empty responses."""
    error = RolloutError(
        "R403",
        what,
        where=where,
        why="a response without tokens has no visual advantage and no loss",
        fix="data.max_bad_share=LARGER   or in a new run: rollout.temperature=OTHER run=NEW",
    )
    error.rows = list(keys)
    return error


def check_version(engine: RolloutEngine, expected: int) -> None:
    """Raise R408 if the engine holds another weights version than expected."""
    if engine.version != expected:
        raise RolloutError(
            "R408",
            f"the rollout engine has weights version {engine.version}, expected {expected}",
            where=type(engine).__name__,
            why="responses are on-policy only if the engine has the student's weights",
            fix="rollout.engine=shared",
            note="your own engine: sync_weights(version) must copy the weights and set `version`",
        )


def check_responses(
    requests: Sequence[RolloutRequest],
    groups: Sequence[Sequence[Rollout]],
    sampling: Sampling,
    rules: ResponseRules,
) -> None:
    """Make all checks that need no model: R404 to R407."""
    if len(groups) != len(requests):
        raise contract_error(
            "R404", f"the rollout engine returned {len(groups)} groups for {len(requests)} requests"
        )
    for request, group in zip(requests, groups, strict=True):
        returned = [(rollout.sibling, rollout.attempt) for rollout in group]
        if returned != [(sibling, request.attempt) for sibling in request.siblings]:
            what = f"siblings {list(request.siblings)} of attempt {request.attempt} were requested"
            what += f", the engine returned (sibling, attempt) {returned}"
            raise contract_error("R404", what, request)
        for rollout in group:
            check_ids(rollout, request, sampling, rules)
            check_finish(rollout, request, rules)
            if sampling.log_probs:
                check_log_probs(rollout, request)


def check_ids(
    rollout: Rollout, request: RolloutRequest, sampling: Sampling, rules: ResponseRules
) -> None:
    """R405: ints of the vocabulary, none banned, at most max_new_tokens, none after the end."""
    ids = rollout.ids
    not_ints = [i for i in ids if type(i) is not int]
    if not_ints:
        raise contract_error(
            "R405",
            f"token ids are of type {type(not_ints[0]).__name__}, not int",
            request,
            rollout,
        )
    outside = [i for i in ids if not 0 <= i < rules.vocabulary]
    if outside:
        raise contract_error(
            "R405",
            f"token id {outside[0]} is outside the vocabulary of {rules.vocabulary:,}",
            request,
            rollout,
        )
    if not rules.banned.isdisjoint(ids):
        banned = next(i for i in ids if i in rules.banned)
        raise contract_error(
            "R405", f"token id {banned} is a multimodal token or padding", request, rollout
        )
    if len(ids) > sampling.max_new_tokens:
        what = f"{len(ids)} tokens with rollout.max_new_tokens = {sampling.max_new_tokens}"
        raise contract_error("R405", what, request, rollout)
    if not rules.stop.isdisjoint(ids[:-1]):
        raise contract_error("R405", "tokens after the first end-of-turn token", request, rollout)


def check_finish(rollout: Rollout, request: RolloutRequest, rules: ResponseRules) -> None:
    """R406: `finish` is STOP if and only if the last id ends a turn."""
    ended = bool(rollout.ids) and rollout.ids[-1] in rules.stop
    if ended != (rollout.finish is Finish.STOP):
        last = f"the last id is {rollout.ids[-1]}" if rollout.ids else "there is no id"
        raise contract_error("R406", f"finish is `{rollout.finish}`, but {last}", request, rollout)


def check_log_probs(rollout: Rollout, request: RolloutRequest) -> None:
    """R407: one finite log-probability per id."""
    values = rollout.log_probs
    if values is None or len(values) != len(rollout.ids):
        count = "no" if values is None else str(len(values))
        raise contract_error(
            "R407", f"{count} log-probabilities for {len(rollout.ids)} tokens", request, rollout
        )
    invalid = [value for value in values if not math.isfinite(value) or value > ROUNDING]
    if invalid:
        raise contract_error("R407", f"{invalid[0]} is not a log-probability", request, rollout)


def contract_error(
    code: str, what: str, request: RolloutRequest | None = None, rollout: Rollout | None = None
) -> RolloutError:
    """Make the error for a response that breaks the engine contract."""
    where = "" if request is None else location_of_request(request)
    return RolloutError(
        code,
        what,
        where=where if rollout is None else f"{where}, sibling {rollout.sibling}",
        why="the rollout engine breaks its contract, so training would use wrong responses",
        fix="rollout.engine=shared",
        note="the contract for your own engine: docs/extending.md, An engine",
    )


def location_of_request(request: RolloutRequest) -> str:
    """The row or the prompt of a request, for messages."""
    row = "" if request.source is None else request.source.labels.get("row", "")
    return row or f"prompt {request.key}"
