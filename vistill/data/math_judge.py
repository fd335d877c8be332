"""Run math-verify in a separate process, so that its time limit holds and no crash reaches the run.

The process reads and writes JSON lines. `multiprocessing` would import the user's script again.
"""

import json
import select
import subprocess
import sys
from types import TracebackType
from typing import Any

#: Seconds one comparison may take.
TIME_LIMIT = 5.0
#: Seconds the worker may take to import.
START_LIMIT = 60.0


class MathJudge:
    """Compares mathematical expressions. The worker process starts at the first comparison."""

    def __init__(self, time_limit: float = TIME_LIMIT) -> None:
        self.time_limit = time_limit
        self.timeouts = 0
        self.process: subprocess.Popen[str] | None = None

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two expressions are equal; gold first, as math-verify requires.

        A comparison that exceeds the time limit counts as not equal.
        """
        process = self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps([gold, answer]) + "\n")
        process.stdin.flush()
        line = self._read_line(process, self.time_limit)
        if line is None:
            self.timeouts += 1
            self.close()
            return False
        return line == "true"

    def _read_line(self, process: "subprocess.Popen[str]", limit: float) -> str | None:
        """The worker's next line; None if it takes too long or has died."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], limit)
        return process.stdout.readline().strip() or None if ready else None

    def _start(self) -> "subprocess.Popen[str]":
        if self.process is not None:
            return self.process
        process = subprocess.Popen(
            [sys.executable, "-m", "vistill.data.math_judge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.process = process
        if self._read_line(process, START_LIMIT) != "ready":
            self.close()
            raise RuntimeError("the math worker did not start")
        return process

    def close(self) -> None:
        """Stop the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None

    def __enter__(self) -> "MathJudge":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve() -> None:
    """Run the worker: read pairs of expressions, write `true` or `false`."""
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    configs = (LatexExtractionConfig(), ExprExtractionConfig())

    def read(text: str) -> Any:
        wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
        return parse(wrapped, extraction_config=configs, parsing_timeout=None)  # pyright: ignore[reportArgumentType]

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            equal = bool(verify(read(gold), read(answer), timeout_seconds=None))
        except Exception:  # noqa: BLE001  a parser error on hostile text means "not equal"
            equal = False
        sys.stdout.write("true\n" if equal else "false\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
