"""A language model as judge, behind any URL that speaks OpenAI's protocol.

The key is read from `VISTILL_JUDGE_KEY` alone: a recipe cannot name another variable, so a recipe
from another person cannot send a secret of the environment to its own URL.
"""

import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vistill.errors import ConfigError, RolloutError
from vistill.redaction import MASK, mask_secrets

KEY_VARIABLE = "VISTILL_JUDGE_KEY"
PATH = "/chat/completions"
#: Requests for one verdict, and seconds before each repeat.
WAITS = (1.0, 2.0, 4.0)
LONGEST_WAIT = 60.0
#: Seconds for one request.
PATIENCE = 120.0
#: After so many verdicts in a row that failed, a judge is not asked any more.
MOST_FAILURES = 5
#: HTTP codes after which a request is repeated; so are those of 500 and more.
REPEATED = (408, 409, 425, 429)
#: HTTP codes for a wrong key, URL or model: no message would be answered. Redirects are among them.
REFUSING = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)
#: Tokens of an answer, with what a judge thinks before it.
MAX_TOKENS = 1024
DOWN, NONSENSE, LIMIT = "R431", "R432", "R433"


class JudgeFailure(Exception):  # noqa: N818  (of one sample; never fatal)
    """A judge gave no verdict on one sample."""

    def __init__(self, code: str, reason: str, is_asked: bool = True) -> None:
        super().__init__(reason)
        self.code, self.reason, self.is_asked = code, reason, is_asked


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it would send replies and the key to another place."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Never."""


Post = Callable[[str, bytes, Mapping[str, str]], bytes]


def post(url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The answer to a request."""
    opener = urllib.request.build_opener(NoRedirect)
    request = urllib.request.Request(url, data=body, headers=dict(headers))  # noqa: S310  (checked)
    with opener.open(request, timeout=PATIENCE) as answer:
        return answer.read()


@dataclass
class JudgeServer:
    """Asks a judge, repeats what failed, and counts requests and tokens; safe in threads."""

    url: str
    """With or without `/chat/completions`."""
    model: str
    limit: int | None = None
    """Most requests; None has no limit."""
    sleep: Callable[[float], object] = time.sleep
    calls: int = 0
    tokens: int = 0
    is_answering: bool = False
    """Whether the judge has answered once."""
    failures_in_a_row: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        check_judge(self.url, self.model)

    @property
    def endpoint(self) -> str:
        """Where requests go."""
        base = self.url.rstrip("/")
        return base if base.endswith(PATH) else base + PATH

    def ask(self, text: str) -> str:
        """The answer of the judge to a message.

        Raises:
            JudgeFailure: R431, no answer after repeats; R433, the limit is reached.
            RolloutError: R430, the judge gives no answer to the first request.
        """
        if self.failures_in_a_row >= MOST_FAILURES:
            raise JudgeFailure(DOWN, f"not asked: {MOST_FAILURES} failures in a row", False)
        try:
            answer = self.ask_with_repeats(text)
        except JudgeFailure as failure:
            if failure.code == LIMIT:
                raise
            if not self.is_answering:
                raise self.down_error(failure.reason) from failure
            with self.lock:
                self.failures_in_a_row += 1
            raise
        with self.lock:
            self.failures_in_a_row, self.is_answering = 0, True
        return answer

    def ask_with_repeats(self, text: str) -> str:
        """One answer, after at most four requests."""
        for wait in (*WAITS, None):
            self.count_call()
            try:
                return self.request(text)
            except urllib.error.HTTPError as error:
                reason = self.reason_of(error)
                if error.code not in REPEATED and error.code < 500:
                    self.is_answering |= error.code not in REFUSING
                    raise JudgeFailure(DOWN, reason) from error
                wait = wait and retry_after(error, wait)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = mask_secrets(f"{type(error).__name__}: {error!s:.200}")
                if not self.is_answering and is_refused(error):
                    raise JudgeFailure(DOWN, reason) from error
            if wait is None:
                raise JudgeFailure(DOWN, reason)
            self.sleep(wait)
        raise AssertionError("the last request returns or raises")

    def count_call(self) -> None:
        """Count a request, or R433 where the limit is reached."""
        with self.lock:
            if self.limit is not None and self.calls >= self.limit:
                raise JudgeFailure(LIMIT, f"not asked: the limit of {self.limit:,} requests", False)
            self.calls += 1

    def request(self, text: str) -> str:
        """One request; ValueError for an answer that is not of the protocol."""
        messages = [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "temperature": 0}
        body["max_tokens"] = MAX_TOKENS
        headers = {"Content-Type": "application/json", "User-Agent": "vistill"}
        key = os.environ.get(KEY_VARIABLE, "")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        answer = json.loads(post(self.endpoint, json.dumps(body).encode(), headers))
        try:
            content = answer["choices"][0]["message"]["content"]
            used = (answer.get("usage") or {}).get("total_tokens") or 0
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"no answer of the protocol: {answer!r:.150}") from error
        with self.lock:
            self.tokens += int(used)
        return content if isinstance(content, str) else ""

    @staticmethod
    def reason_of(error: urllib.error.HTTPError) -> str:
        """Code and text of a refusal, without secrets."""
        try:
            with error:
                text = error.read(2000).decode("utf-8", "replace")
        except OSError:
            text = ""
        key = os.environ.get(KEY_VARIABLE, "")
        shown = text.replace(key, MASK) if key else text
        return mask_secrets(f"HTTP {error.code} {error.reason}: {' '.join(shown.split())[:200]}")

    def down_error(self, reason: str) -> RolloutError:
        """R430."""
        hint = ""
        if reason.startswith(("HTTP 401", "HTTP 403")):
            hint = f"; the key is read from the variable {KEY_VARIABLE}"
        return RolloutError(
            "R430",
            f"the judge {self.model} gives no answer to the first request",
            where=mask_secrets(self.endpoint),
            why=f"{reason}{hint}",
            fix="start the server, or correct its URL, the name of the model or the key; then run"
            " the same command again, it continues",
        )


def is_refused(error: Exception) -> bool:
    """Whether nothing listens there: repeats do not help at the first request."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, ConnectionRefusedError | socket.gaierror)


def retry_after(error: urllib.error.HTTPError, wait: float) -> float:
    """Seconds that a server asks to wait, at most a minute; by default those of the repeat."""
    text = (error.headers or {}).get("Retry-After", "")
    return min(float(text), LONGEST_WAIT) if text.isdecimal() else wait


def check_judge(url: str, model: str) -> None:
    """C101 for a judge without a model, or a model without URL; C002 for what is no URL."""
    if not (url and model):
        given, lacks = ("the URL", "its model") if url else ("a model", "its URL")
        raise ConfigError(
            "C101",
            f"a judge needs URL and model: {given} is given, and not {lacks}",
            why="one URL serves several models, and a verdict belongs to one",
            fix="give both: the URL of the server, and the name of the model as it knows it",
        )
    if not url.startswith(("http://", "https://")) or "@" in url.split("?")[0]:
        raise ConfigError(
            "C002",
            f"the judge is no URL of a server: {mask_secrets(url)!r:.80}",
            why=f"it begins with http:// or https:// and has no key; that is read from"
            f" {KEY_VARIABLE}",
            fix="write it as the server names it, such as http://127.0.0.1:8000/v1",
        )
