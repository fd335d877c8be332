"""When checkpoints are written: in a thread, while the next steps run.

A save first copies the tensors into host buffers, which every save uses again; then it writes the
copies. The copy runs next to the rollouts and the scoring of the next step, which change no weight:
the loop waits for it only before the next update. At most one checkpoint is written at a time. An
error of the thread is raised at the next step, at the next save or at the end of the run.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vistill.faults import fault
from vistill.phases import SAVING, open_phase
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import (
    CheckpointTarget,
    check_space,
    is_published,
    write_checkpoint,
)
from vistill.training.checkpoint_content import (
    CheckpointContent,
    SmallFiles,
    TrainedObjects,
    content_to_save,
    small_files,
)
from vistill.training.disk_needs import size_text
from vistill.training.held_bytes import SHARE
from vistill.training.host_memory import free_host_bytes
from vistill.training.interrupt import SaveAbandonedError, StopRequest
from vistill.training.oom import is_out_of_memory
from vistill.training.plan import Plan

Key = TypeVar("Key")


class SnapshotBuffers:
    """Copies of tensors in host memory, allocated once and filled again by every save."""

    def __init__(self) -> None:
        self.buffers: dict[object, Tensor] = {}

    def missing_bytes(self, tensors: Mapping[Key, Tensor]) -> int:
        """Bytes that the next copy allocates."""
        return sum(buffer_bytes(t) for key, t in tensors.items() if not self.fits(key, t))

    def fits(self, key: object, tensor: Tensor) -> bool:
        """Whether there is a buffer for a tensor."""
        buffer = self.buffers.get(key)
        return buffer is not None and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype)

    @torch.no_grad()
    def copy(self, tensors: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """Copy tensors into the buffers. The copies are complete when this returns."""
        copies, devices = {}, set()
        for key, tensor in tensors.items():
            if not self.fits(key, tensor):
                self.buffers[key] = host_buffer(tensor)
            copies[key] = self.buffers[key].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            devices |= {tensor.device} if tensor.is_cuda else set()
            if len(copies) == 2:
                fault("save.snapshot")
        for device in devices:  # not the current one: a run may be on `cuda:1`
            torch.cuda.synchronize(device)
        return copies


def host_buffer(tensor: Tensor) -> Tensor:
    """An empty tensor in host memory, page-locked if the tensor is on a CUDA device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def buffer_bytes(tensor: Tensor) -> int:
    """Bytes of its buffer. torch rounds page-locked memory up to a power of two."""
    if not tensor.is_cuda or tensor.nbytes == 0:
        return tensor.nbytes
    return 1 << (tensor.nbytes - 1).bit_length()


@dataclass
class BackgroundSave:
    """One checkpoint that a thread writes."""

    target: CheckpointTarget
    content: CheckpointContent
    """The run's own tensors. They must not change before `is_copied`."""
    buffers: SnapshotBuffers
    stop: StopRequest = field(default_factory=StopRequest)
    is_copied: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. It does not keep the process alive."""
        name = f"checkpoint-{self.content.step:06d}"
        self.thread = threading.Thread(target=self.work, name=name, daemon=True)
        self.thread.start()

    def work(self) -> None:
        """Copy and write. The loop raises the error."""
        try:
            write_checkpoint(self.target, self.copied_content(), self.stop)
        except SaveAbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001  the step loop raises it
            self.error = error
        finally:
            self.is_copied.set()

    def copied_content(self) -> CheckpointContent:
        """The content as copies; the run's own tensors if memory for copies runs out.

        In that case `is_copied` is set only when the checkpoint is written.
        """
        try:
            copies = self.buffers.copy(self.content.tensors())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.buffers.buffers.clear()
            return self.content
        self.content = self.content.with_tensors(copies)
        self.is_copied.set()
        return self.content

    def wait(self) -> None:
        """Wait until the checkpoint is complete, has failed or is abandoned."""
        assert self.thread is not None
        self.thread.join()

    @property
    def is_running(self) -> bool:
        """Whether the thread works."""
        return self.thread is not None and self.thread.is_alive()


def make_writer(plan: Plan, folder: RunFolder, saved: TrainedObjects) -> "CheckpointWriter":
    """What saves the checkpoints of a run."""
    shard_bytes = int(plan.save.shard_gb * 1e9)
    target = CheckpointTarget(folder, plan.fingerprint, plan.save.keep, shard_bytes)
    return CheckpointWriter(target, saved, plan.save.background, folder.event)


@dataclass
class CheckpointWriter:
    """Saves the checkpoints of a run."""

    target: CheckpointTarget
    saved: TrainedObjects
    background: bool = True
    report: Callable[[str], None] = lambda text: None
    """Called with lines for the log of events."""
    free_memory: Callable[[], float] = free_host_bytes
    """Free bytes of the host."""
    buffers: SnapshotBuffers = field(default_factory=SnapshotBuffers)
    current: BackgroundSave | None = None
    """The save that is being written, or whose error is not raised yet."""
    files: SmallFiles | None = None
    """The small files of the models, read once."""

    @contextmanager
    def open(self) -> Iterator["CheckpointWriter"]:
        """Wait for the last checkpoint at the end of the block, also after an error.

        A second Ctrl-C abandons it: the checkpoint before stays the newest.
        """
        self.files = small_files(self.saved)
        try:
            yield self
        except Exception:
            self.settle()
            raise
        except BaseException:
            self.abandon()
            raise
        self.finish()

    def save(self) -> None:
        """Save the current step: in the background if memory allows it, else before returning."""
        if self.current is not None and self.current.content.step == self.saved.state.step:
            return
        with open_phase(SAVING):
            self.finish()
            if is_published(self.target.folder, self.saved):
                return
            content = self.content()
            if not (self.background and self.has_memory(content)):
                self.write(content)
                return
            self.current = BackgroundSave(self.target, content, self.buffers)
            self.current.start()
            if any(tensor.is_cuda for tensor in content.tensors().values()):
                self.wait_for_copy()  # the copy would delay the kernels of the next step

    def save_now(self) -> Path:
        """Save the current step and wait for it: the process ends."""
        with open_phase(SAVING):
            self.settle()
            if not is_published(self.target.folder, self.saved):
                self.write(self.content())
        return self.target.folder.checkpoint(self.saved.state.step)

    def content(self) -> CheckpointContent:
        """What to save now, if the disk has the space for it."""
        content = content_to_save(self.saved, self.files)
        check_space(self.target.folder, content, self.target.keep)
        return content

    def write(self, content: CheckpointContent) -> None:
        """Write a checkpoint in this thread."""
        write_checkpoint(self.target, content)
        self.saved.published.add(content.step)

    def has_memory(self, content: CheckpointContent) -> bool:
        """Whether the buffers exist or fit into free memory; else saves stay in the foreground."""
        missing = self.buffers.missing_bytes(content.tensors())
        free = self.free_memory()
        if missing <= SHARE["cpu"] * free:
            return True
        self.background = False
        self.report(
            f"checkpoints are not written in the background: a copy needs {size_text(missing)},"
            f" and {size_text(free)} of host memory are free"
        )
        return False

    def wait_for_copy(self) -> None:
        """Call it before weights or moments change."""
        if self.current is not None:
            self.current.is_copied.wait()

    def raise_error(self) -> None:
        """Raise the error of a save that has ended; do not wait for one that works."""
        if self.current is not None and not self.current.is_running:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written; raise its error."""
        current = self.current
        if current is None:
            return
        try:
            current.wait()
        except BaseException:
            self.abandon()
            raise
        self.current = None
        if current.error is not None:
            raise current.error
        self.saved.published.add(current.content.step)

    def settle(self) -> None:
        """The same where another error or a signal ends the run: an error becomes an event."""
        step = self.saved.state.step if self.current is None else self.current.content.step
        try:
            self.finish()
        except Exception as error:  # noqa: BLE001  the run ends for another reason
            with suppress(Exception):  # the disk may be full
                self.report(f"the checkpoint of step {step} could not be written: {error}")

    def abandon(self) -> None:
        """Stop the checkpoint that is being written; it is never published."""
        if self.current is not None:
            self.current.stop.make()
            self.current = None
