"""The process of vLLM as a run sees it: started, asked, watched, shared by engines, ended."""

import os
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
#: Seconds between two looks at the run's signals while the process is silent.
LOOK = 0.2
#: Characters of the process's last output that an error shows.
TAIL = 400


def environment(device: torch.device) -> dict[str, str]:
    """The variables of the process: nothing of this Python's, no network, one process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
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
        visible = kept.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if len(visible) > device.index else [str(i) for i in range(64)]
        fixed["CUDA_VISIBLE_DEVICES"] = names[device.index]
    return {"VLLM_LOGGING_LEVEL": "WARNING", **kept, **fixed}


class VLLMProcess:
    """vLLM in its own process and environment, with the weights of its last sync.

    Args:
        settings: interpreter and limits.
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
        python = checks.find_python()
        self.folder = Path(tempfile.mkdtemp(prefix="vistill-vllm-"))
        self.log = Path(os.environ.get(checks.LOG_VARIABLE) or self.folder / "vllm.log")
        ours, theirs = socket.socketpair()
        with theirs, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [python, "-I", "-c", BOOT, str(theirs.fileno()), str(PACKAGE)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(device),
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the run, which then ends the process
            )
        self.channel = ours
        self.channel.settimeout(settings.timeout)
        self.close = weakref.finalize(self, end_process, self.process, ours, self.folder)
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
    ) -> dict[str, Any]:
        """Send a message and wait for the reply.

        After anything but a reply the process is ended, and a later call starts a new one. A
        refusal changes nothing in it.
        """
        try:
            try:
                messages.send(self.channel, message, blocks)
            except TimeoutError as error:
                raise self.silent(str(message["op"])) from error
            except (messages.Closed, OSError):
                raise self.ended(str(message["op"])) from None
            reply = self.wait(str(message["op"]), on_progress)[0]
            if reply.get("error") == "failed":
                raise checks.failed_error(str(reply["text"]))
        except BaseException:
            self.end()
            raise
        if "error" in reply:
            raise checks.refused_error(reply)
        return reply

    def wait(
        self, doing: str, on_progress: Callable[[int], None]
    ) -> tuple[dict[str, Any], list[bytearray]]:
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
                message, blocks = messages.receive(self.channel)
            except messages.Closed:
                raise self.ended(doing) from None
            except (ValueError, TimeoutError) as error:
                raise checks.failed_error(f"its message cannot be read: {error}") from error
            if message.pop("is_reply", False):
                return message, blocks
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
