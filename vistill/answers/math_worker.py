"""The process that compares expressions with math-verify: one JSON line in, one out.

Its processor time per question and its memory are limited, so that no expression stops a run. A
question that exceeds a limit is answered with the name of the limit.

The file is executed by its path, without the package, so that Python can start it with a search
path of its own (`worker_process`). Imports from `vistill` do not work here.
"""

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

#: Processor seconds that the parser's Python code gets per question.
SECONDS = 5.0
#: Further processor seconds until the system ends the process (a long C call ignores the timer).
GRACE = 3
#: Bytes of address space.
MEMORY = 4 * 1024**3


class TimeUsedError(BaseException):
    """The question used up its processor time. No `except Exception` of a parser catches it."""


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


def say(record: object) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def load_parser() -> Callable[[str, str], bool]:
    """Import math-verify; return the function that compares two expressions, gold first."""
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    configs = (LatexExtractionConfig(), ExprExtractionConfig())

    def read(text: str) -> Any:
        wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
        return parse(wrapped, extraction_config=configs, parsing_timeout=None)  # pyright: ignore[reportArgumentType]

    def compare(gold: str, answer: str) -> bool:
        return bool(verify(read(gold), read(answer), timeout_seconds=None))

    return compare


def answer_to(compare: Callable[[str, str], bool], gold: str, answer: str, seconds: float) -> Any:
    """`True`, `False`, or the name of the limit that the question exceeds."""
    try:
        limit_time(seconds)
        return compare(gold, answer)
    except TimeUsedError:
        return "time"
    except MemoryError:
        return "memory"
    except RecursionError:
        return "depth"
    except Exception:  # noqa: BLE001  a parser error on hostile text means "not equal"
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def serve(seconds: float, memory: int) -> None:
    """Say `"ready"`, then answer `[number, gold, answer]` with `[number, verdict, seconds]`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        compare = load_parser()
    except Exception as error:  # noqa: BLE001  whatever the import raises, the run must say it
        say({"error": f"{type(error).__name__}: {error}"})
        return
    signal.signal(signal.SIGPROF, stop)
    limit_memory(memory)
    say("ready")
    for line in sys.stdin:
        number, gold, answer = json.loads(line)
        before = time.process_time()
        verdict = answer_to(compare, gold, answer, seconds)
        say([number, verdict, time.process_time() - before])


if __name__ == "__main__":
    sys.path.extend(folder for folder in sys.argv[3:] if folder not in sys.path)
    serve(float(sys.argv[1]), int(sys.argv[2]))
