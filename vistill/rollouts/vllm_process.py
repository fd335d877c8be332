"""The process of vLLM as a run sees it: started, asked, watched, shared by engines, ended."""

import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vistill.redaction import Secrets, mask_secrets
from vistill.rollouts import vllm_checks as checks
from vistill.rollouts import vllm_messages as messages
from vistill.rollouts.settings import VLLMSettings
from vistill.rollouts.vllm_update import WeightSpec

PACKAGE = Path(__file__).parent.parent
#: Starts the worker with `vistill` as the package in this folder, without the packages around it:
#: they are those of another environment.
BOOT = """\
import sys, types
package = types.ModuleType("vistill")
package.__path__ = [sys.argv[2]]
sys.modules["vistill"] = package
from vistill.rollouts.vllm_worker import main
main()
"""
#: Names of variables that the process does not get: it needs no secret. Wider than what redaction
#: masks, because a variable that is missing costs nothing.
SECRET_VARIABLE = re.compile("token(?!iz)|key|secret|passw|credential", re.IGNORECASE)
#: Seconds between two looks at the run's signals while the process is silent.
LOOK = 0.2
#: Characters of the process's last output that an error shows.
TAIL = 400


def environment(device: torch.device) -> dict[str, str]:
    """The variables of the process: nothing of this Python's, no secret, no network."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and not holds_secret(name, value)
    }
    fixed = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    if device.type == "cpu":  # compiling takes minutes there, and saves nothing at this size
        fixed |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    elif device.index is not None:
        visible = [v for v in kept.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
        names = visible if len(visible) > device.index else [str(i) for i in range(64)]
        fixed["CUDA_VISIBLE_DEVICES"] = names[device.index]
    return {"VLLM_LOGGING_LEVEL": "WARNING", **kept, **fixed}


def holds_secret(name: str, value: str) -> bool:
    """Whether a variable looks like a secret, by its name or as a URL with a password."""
    return bool(SECRET_VARIABLE.search(name)) or mask_secrets(value, Secrets(None)) != value


class VLLMProcess:
    """vLLM in its own process and environment, with the weights of its last sync.

    Args:
        settings: limits and the timeout.
        device: of the student.
        poll: called often while the process computes.

    Raises:
        MissingExtraError: E303, no interpreter with the right vLLM.
        RolloutError: R410, the process ended or hangs.
    """

    def __init__(
        self, settings: VLLMSettings, device: torch.device, poll: Callable[[], None]
    ) -> None:
        self.settings, self.poll = settings, poll
        self.serial, self.digest = 0, ""
        self.spec: WeightSpec = {}
        self.is_asleep = False
        self.max_length = 0
        """Most tokens of a prompt and its response that it was started for."""
        python = checks.find_python()
        self.folder = Path(tempfile.mkdtemp(prefix="vistill-vllm-"))
        self.log = Path(os.environ.get(checks.LOG_VARIABLE) or self.folder / "vllm.log")
        try:
            self.process, self.channel = start_process(python, self.folder, self.log, device)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.channel.settimeout(settings.timeout)
        self.close = weakref.finalize(self, end_process, self.process, self.channel, self.folder)
        try:
            self.wait("start", lambda finished: None)
        except BaseException:
            self.end()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it was not ended by the run."""
        return bool(self.close.alive)

    def check_alive(self) -> None:
        """R410 if something else ended it. The next call starts a new one."""
        if self.process.poll() is not None:
            error = self.ended("between two calls")
            self.end()
            raise error

    def ask(
        self,
        message: dict[str, Any],
        blocks: Sequence[messages.Block] = (),
        on_progress: Callable[[int], None] = lambda finished: None,
        shared: messages.Shared | None = None,
    ) -> dict[str, Any]:
        """Send a message and wait for the reply.

        After anything but a reply the process is ended, and a later call starts a new one. So it
        is after weights that were loaded in part. Any other refusal changes nothing in it.
        """
        try:
            try:
                messages.send(self.channel, message, blocks, shared)
            except TimeoutError as error:
                raise self.silent(str(message["op"])) from error
            except (messages.Closed, OSError):
                raise self.ended(str(message["op"])) from None
            reply = self.wait(str(message["op"]), on_progress)
            if reply.get("error") == "failed":
                raise checks.failed_error(str(reply["text"]))
            if reply.get("error") == "partly loaded":
                raise checks.refused_error(reply)
        except BaseException:
            self.end()
            raise
        if "error" in reply:
            raise checks.refused_error(reply)
        return reply

    def wait(self, doing: str, on_progress: Callable[[int], None]) -> dict[str, Any]:
        """The next reply. Polls at every message and while there is none."""
        last = time.monotonic()
        while True:
            self.poll()
            readable, _, _ = select.select([self.channel], [], [], LOOK)
            if not readable:
                if time.monotonic() - last > self.settings.timeout:
                    raise self.silent(doing)
                continue
            last = time.monotonic()
            try:
                message, _ = messages.receive(self.channel)
            except messages.Closed:
                raise self.ended(doing) from None
            except (ValueError, TimeoutError) as error:
                raise checks.failed_error(f"its message cannot be read: {error}") from error
            if message.pop("is_reply", False):
                return message
            on_progress(int(message.get("finished", 0)))

    def ended(self, doing: str) -> Exception:
        """R410 for a process that is gone."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        what = f"the process of vLLM ended ({doing}, exit status {code})"
        return checks.ended_error(what, self.tail())

    def silent(self, doing: str) -> Exception:
        """R410 for a process that hangs."""
        what = f"vLLM gave no sign of life for {self.settings.timeout:g} seconds ({doing})"
        return checks.ended_error(what, self.tail())

    def tail(self) -> str:
        """The last lines of its output that name an error."""
        with suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            named = [line.strip() for line in lines if "Error" in line] or lines[-3:]
            return " ".join(named[-2:])[-TAIL:]
        return ""

    def end(self) -> None:
        """End the process and remove its folder."""
        self.close()


def start_process(
    python: str, folder: Path, log: Path, device: torch.device
) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """Start the worker; returns it and the socket to speak with it (E303 if it cannot be run)."""
    ours, theirs = socket.socketpair()
    try:
        with theirs, log.open("ab") as output:
            command = [python, "-I", "-c", BOOT, str(theirs.fileno()), str(PACKAGE)]
            try:
                process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment(device),
                    cwd=folder,
                    start_new_session=True,  # Ctrl-C is for the run, which then ends the process
                )
            except OSError as error:
                what = "the interpreter of vLLM cannot be run"
                raise checks.environment_error(what, str(error), python) from error
    except BaseException:
        ours.close()
        raise
    return process, ours


def end_process(process: "subprocess.Popen[bytes]", channel: socket.socket, folder: Path) -> None:
    """End a process, also one that hangs."""
    with suppress(OSError):
        channel.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
    if process.poll() is None:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
