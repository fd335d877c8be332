"""Doubles to pass in, and public places where a test observes or breaks a run."""

import contextlib
import io
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from torch.optim.optimizer import register_optimizer_step_pre_hook

from vistill.faults import VARIABLE, reset_visits


def break_at(monkeypatch, point):
    """Set a fault point, for example `learn.loss:nan@2,5`; visits count from here."""
    reset_visits()
    monkeypatch.setenv(VARIABLE, point)


def stop_breaking(monkeypatch):
    """Unset the fault point."""
    reset_visits()
    monkeypatch.delenv(VARIABLE, raising=False)


@contextmanager
def before_each_update(observe):
    """Call `observe(optimizer)` before every update of any optimizer, by torch's own hook."""
    hook = register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: observe(optimizer))
    try:
        yield
    finally:
        hook.remove()


def gradients_of(optimizer):
    """The gradients of all parameters of an optimizer."""
    return [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]


def small_blocks(monkeypatch, chunk, block):
    """Set the sizes of chunks and blocks of logits rows on a CPU, which no recipe sets."""
    monkeypatch.setattr("vistill.functional.row_chunks.CHUNK_BYTES", {"cpu": chunk})
    monkeypatch.setattr("vistill.functional.row_chunks.BLOCK_ELEMENTS", {"cpu": block})


def with_family(vlm, **methods):
    """The same model, its family adapter with these methods."""
    kind = type("Changed", (type(vlm.family),), methods)
    family = object.__new__(kind)
    family.__dict__ = vlm.family.__dict__
    return replace(vlm, family=family)


def watched_images(vlm, encoded):
    """The same model; it adds (question, decoded images) of every prompt that it encodes."""
    encode = type(vlm.family).encode

    def record(self, messages, images):
        parts = messages[-1]["content"]
        question = parts if isinstance(parts, str) else "".join(p.get("text", "") for p in parts)
        encoded.append((question, list(images)))
        return encode(self, messages, images)

    return with_family(vlm, encode=record)


def system_with_free_memory(monkeypatch, size):
    """Make the operating system report so many available bytes."""
    read = Path.read_text

    def text(path, *arguments, **options):
        if str(path) == "/proc/meminfo":
            return f"MemTotal: 1 kB\nMemAvailable: {int(size) // 1024} kB\n"
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", text)


def command(*words, cwd=None):
    """Run `vistill WORDS` in this process; return status and output as `subprocess.run` does."""
    from vistill.cli.main import entry

    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            entry([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
