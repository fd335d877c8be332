"""Start, ask and end the process of math-verify (`math_worker`), without buffers and locks.

`multiprocessing` would import the user's script again, so the process executes a file of its own.
It sees neither the current folder nor `PYTHONPATH` nor the user's own packages: a file
`resource.py` or a folder `sympy` next to a recipe must not be executed.
"""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path

#: A process.
Process = subprocess.Popen[bytes]
#: Seconds the process may take to import.
START_LIMIT = 300.0
#: Seconds that a process which closed its output may take to end.
END_LIMIT = 10.0
#: The file that the process executes.
WORKER = Path(__file__).with_name("math_worker.py")
#: What it imports. Their folders, as this process finds them, end its search path.
PACKAGES = ("math_verify", "latex2sympy2_extended", "antlr4", "sympy", "mpmath")

#: What of the environment it gets.
ENVIRONMENT = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("PYTHONHOME", "PYTHONDONTWRITEBYTECODE"),
)


class ProcessLostError(Exception):
    """The process ended without an answer (holds its return code), or sent another one (None)."""

    def __init__(self, code: int | None) -> None:
        self.code = code
        super().__init__(f"return code {code}")


class NoAnswerError(Exception):
    """The process gave no answer in the wall-clock time."""


class NotStartedError(Exception):
    """The process does not start; the message says why."""


def package_folders() -> list[str]:
    """The folders in which this process finds math-verify, without the current folder."""
    here = os.path.realpath(os.curdir)
    path = [folder for folder in sys.path if folder and os.path.realpath(folder) != here]
    folders: dict[str, None] = {}
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.origin:
            folders[str(Path(spec.origin).parent.parent)] = None
    return list(folders)


def clean_environment() -> dict[str, str]:
    """What Python needs to start, no secrets, and one order of sets for every start."""
    values = {name: os.environ.get(name) for name in ENVIRONMENT}
    return {name: v for name, v in values.items() if v is not None} | {"PYTHONHASHSEED": "0"}


def start_process(seconds: float, memory: int) -> Process:
    """Start a process and wait until it has imported math-verify.

    Raises:
        NotStartedError: it ends, is silent, or says something else than that it is ready.
    """
    options = ["-P", "-s", str(WORKER), str(seconds), str(memory), *package_folders()]
    try:
        process = subprocess.Popen(
            [sys.executable, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=clean_environment(),
        )
    except (OSError, ValueError) as error:
        raise NotStartedError(f"{sys.executable or 'Python'}: {error}") from error
    try:
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        first = read_line(process, time.monotonic() + START_LIMIT)
        check_first_line(first)
    except ProcessLostError as lost:
        end_process(process)
        raise NotStartedError(f"it ended with code {lost.code} at its start") from lost
    except NoAnswerError as silent:
        end_process(process)
        raise NotStartedError(f"it was silent for {START_LIMIT:,.0f} s") from silent
    except BaseException:
        end_process(process)
        raise
    return process


def check_first_line(line: bytes) -> None:
    """Refuse a process that does not say that it is ready."""
    try:
        first = json.loads(line)
    except ValueError:
        first = None
    if first != "ready":
        reason = first.get("error") if isinstance(first, dict) else None
        raise NotStartedError(str(reason or f"its first line is {line!r:.80}"))


def ask_process(
    process: Process, number: int, question: tuple[str, str], patience: float
) -> tuple[bool | str, float]:
    """Send a question with its number; return the answer and its seconds of processor time.

    Raises:
        ProcessLostError: the process ended, or answered another question.
        NoAnswerError: there is no answer within `patience` seconds.
    """
    end = time.monotonic() + patience
    write_line(process, json.dumps([number, *question]).encode() + b"\n", end)
    line = read_line(process, end)
    try:
        answered, verdict, seconds = json.loads(line)
    except (ValueError, TypeError):
        raise ProcessLostError(None) from None
    if answered != number or not isinstance(verdict, bool | str):
        raise ProcessLostError(None)
    return verdict, float(seconds)


def write_line(process: Process, line: bytes, end: float) -> None:
    """Write a line before `end`; the process may be stopped and its pipe full."""
    assert process.stdin is not None
    descriptor = process.stdin.fileno()
    while line:
        wait_for(descriptor, select.POLLOUT, end)
        try:
            line = line[os.write(descriptor, line) :]
        except BlockingIOError:
            continue
        except OSError:
            raise ProcessLostError(return_code(process)) from None


def read_line(process: Process, end: float) -> bytes:
    """Read the next line of the process before `end`."""
    assert process.stdout is not None
    descriptor, line = process.stdout.fileno(), b""
    while not line.endswith(b"\n"):
        wait_for(descriptor, select.POLLIN, end)
        part = os.read(descriptor, 1 << 16)
        if not part:
            raise ProcessLostError(return_code(process))
        line += part
    return line


def wait_for(descriptor: int, event: int, end: float) -> None:
    """Wait until a pipe can be read or written; `select` would fail above 1,024 open files."""
    poll = select.poll()
    poll.register(descriptor, event)
    while not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        if time.monotonic() >= end:
            raise NoAnswerError


def return_code(process: Process) -> int | None:
    """The return code of a process that closed its pipes; None if it does not end."""
    try:
        return process.wait(END_LIMIT)
    except subprocess.TimeoutExpired:
        return None


def end_process(process: Process) -> None:
    """Kill a process and close its pipes."""
    process.kill()
    process.wait()
    close_pipes(process)


def close_pipes(process: Process) -> None:
    """Close this side of the pipes."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def leave_to_parent(process: Process) -> None:
    """In a forked child: close the copies of the pipes of the parent's process."""
    close_pipes(process)
    process.returncode = 0  # not a child of this process: never wait for it
