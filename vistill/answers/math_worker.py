"""The process that compares expressions with math-verify: one JSON line in, one out.

Its processor time per question and its memory are limited, so that no expression stops a run. A
question that exceeds a limit is answered with the name of the limit.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

#: Processor seconds that the parser's Python code gets per question.
SECONDS = 5.0
#: Further processor seconds until the system ends the process (a long C call ignores the timer).
GRACE = 3
#: Bytes of address space.
MEMORY = 4 * 1024**3


class TimeUsedError(Exception):
    """The question used up its processor time."""


def stop(number: int, frame: FrameType | None) -> None:
    """Handle the timer."""
    raise TimeUsedError


def limit_time(seconds: float) -> None:
    """Give the next question its processor time."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + seconds) + GRACE
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def limit_memory(most: int) -> None:
    """Limit the address space, where the system can."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def say(word: bool | str) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()


def serve(seconds: float, memory: int) -> None:
    """Answer questions `[gold, answer]` with `true`, `false`, `"time"` or `"memory"`."""
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    configs = (LatexExtractionConfig(), ExprExtractionConfig())

    def read(text: str) -> Any:
        wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
        return parse(wrapped, extraction_config=configs, parsing_timeout=None)  # pyright: ignore[reportArgumentType]

    signal.signal(signal.SIGPROF, stop)
    limit_memory(memory)
    say("ready")
    for line in sys.stdin:
        gold, answer = json.loads(line)
        answered: bool | str = False
        try:
            limit_time(seconds)
            answered = bool(verify(read(gold), read(answer), timeout_seconds=None))
        except TimeUsedError:
            answered = "time"
        except MemoryError:
            answered = "memory"
        except RecursionError:
            answered = "depth"
        except Exception:  # noqa: BLE001  a parser error on hostile text means "not equal"
            answered = False
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        say(answered)


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
