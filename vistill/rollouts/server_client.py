"""Requests to a server over HTTP: many at once, and a signal ends them."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from vistill.rollouts import server_checks as checks
from vistill.rollouts.settings import ServerSettings

#: Seconds between two looks at the run's signals.
LOOK = 0.2
#: Most requests that are open at a time.
MOST_OPEN = 128


class ServerClient:
    """A server by its address. It uses no proxy.

    Args:
        settings: address and timeout.
        poll: called often while the server computes; what it raises ends all requests.

    Raises:
        ConfigError: C101, no address.
        RolloutError: R413, R417, R418, as the server answers.
    """

    def __init__(self, settings: ServerSettings, poll: Callable[[], None] = lambda: None) -> None:
        self.settings, self.poll = settings, poll
        self.url = checks.checked_url(settings)
        self.opened: set[HTTPConnection] = set()
        self.lock = Lock()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers, to a POST if there is a body."""
        status, text = self.exchange(path, body)
        if status != 200:
            raise checks.refused_error(self.url, path, status, text)
        try:
            reply = json.loads(text)
        except ValueError as error:
            raise checks.unreachable_error(self.url, f"no JSON at {path}: {error}") from error
        if not isinstance(reply, dict):
            raise checks.unreachable_error(self.url, f"no JSON object at {path}")
        return reply

    def exchange(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and text of the reply."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=self.settings.timeout)
        with self.lock:
            self.opened.add(connection)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(checks.KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        try:
            data = None if body is None else json.dumps(body).encode()
            method = "GET" if data is None else "POST"
            connection.request(method, parts.path + path, data, headers)
            with connection.getresponse() as answer:
                return answer.status, answer.read().decode(errors="replace")
        except TimeoutError as error:
            why = f"no answer in {self.settings.timeout:g} seconds (rollout.server.timeout)"
            raise checks.unreachable_error(self.url, why) from error
        except (OSError, HTTPException) as error:
            why = f"{type(error).__name__}: {error}"
            raise checks.unreachable_error(self.url, why) from error
        finally:
            with self.lock:
                self.opened.discard(connection)
            connection.close()

    def ask_all(
        self,
        path: str,
        bodies: Sequence[dict[str, Any]],
        count: Callable[[int], None] = lambda finished: None,
        rows: int = MOST_OPEN,
    ) -> list[dict[str, Any]]:
        """The replies to many requests in order; the first error ends all of them.

        Args:
            path: of every request.
            bodies: one for each request.
            count: called with the number of requests that just finished.
            rows: most requests at a time.
        """
        pool = ThreadPoolExecutor(max(1, min(len(bodies), rows, MOST_OPEN)))
        futures = [pool.submit(self.ask, path, body) for body in bodies]
        open_: set[Future[dict[str, Any]]] = set(futures)
        try:
            while open_:
                self.poll()
                finished, open_ = wait(open_, LOOK, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                count(len(finished))
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self.abort()

    def abort(self) -> None:
        """Close the connections that are open, so that their threads end; vLLM drops the rows."""
        with self.lock:
            for connection in self.opened:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)
