"""Publish and find checkpoints: temporary folder, fsync, manifest with hashes, rename. safetensors and JSON only."""

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vistill.errors import StorageError
from vistill.faults import fault
from vistill.models.loading import VLM
from vistill.models.save import load_weights_into, save_vlm
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in, leftovers_in
from vistill.runs.storage import (
    check_finite,
    disk_error,
    file_hash,
    remove_tree,
    sync_file,
    sync_folder,
    write_json,
)
from vistill.training.journal import Journal
from vistill.training.run_state import RunState
from vistill.training.shards import (
    SHARD_BYTES,
    missing_shard_error,
    read_shards,
    save_shards,
    shards_of,
)
from vistill.training.state_file import read_state

#: What is written, and what is read. 2: typed fields in `state.json`, with the chain of the journal; shards.
FORMAT, READABLE = 2, (1, 2)
MANIFEST, STATE, OPTIMIZER, NOISE = "MANIFEST.json", "state.json", "optimizer", "rng.safetensors"
#: Free space a save asks for, beside the size of a checkpoint.
SPACE_FACTOR = 1.2
#: Names that a loader of weights opens on its own.
WEIGHTS = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class TrainedObjects:
    """Everything that is saved together."""

    student: VLM
    optimizer: torch.optim.Optimizer
    state: RunState
    extra: Mapping[str, VLM] = field(default_factory=dict)
    """Further models: EMA teacher, adapters."""
    published: set[int] = field(default_factory=set)
    """Steps whose checkpoint this process has written: they need no second look."""


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments under `opt.<parameter>.<slot>`, on their device, so that restoring them cannot be forgotten."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"opt.{names[id(parameter)]}.{slot}": torch.as_tensor(value).detach()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Iterable[tuple[str, Tensor]]
) -> None:
    """Put every moment back, one after the other; one of no parameter, or of another shape, is an error (S604)."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in saved:
        name, _, slot = key.removeprefix("opt.").rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or (slot != "step" and value.shape != parameter.shape):
            raise StorageError(
                "S604",
                f"the checkpoint holds {key}, and the model has no such parameter",
                why="the optimizer's state was saved for a model with other parameters",
                fix="name the model that the run was started with, or start a new run: run=NEW",
            )
        optimizer.state[parameter][slot] = value if slot == "step" else value.to(parameter.device)


def publish(folder: RunFolder, saved: TrainedObjects, fingerprint: str, keep: int) -> Path:
    """Write a checkpoint so that it exists whole or not at all, then apply retention."""
    step = saved.state.step
    final = folder.checkpoint(step)
    if final.exists() and (step in saved.published or reason_to_reject(final) is None):
        return final
    state = saved.state.to_dict()
    check_finite(state)
    check_space(folder, saved, keep)
    working = folder.path / f".inprogress-{step:06d}-{uuid.uuid4().hex[:8]}"
    try:
        fault("save.begin")
        working.mkdir(parents=True)
        save_vlm(saved.student, working / "student")
        for name, vlm in saved.extra.items():
            save_vlm(vlm, working / name)
        fault("save.after_weights")
        save_shards(
            optimizer_tensors(saved.student.model, saved.optimizer), working, OPTIMIZER, SHARD_BYTES
        )
        save_file({"torch": torch.get_rng_state()}, working / NOISE)
        write_json(working / STATE, state, exact=True)
        files = [path for path in sorted(working.rglob("*")) if path.is_file()]
        for path in files:
            sync_file(path)
        for path in {path.parent for path in files}:
            sync_folder(path)
        folder.sync_logs()  # what a checkpoint's step has logged must not be lost where the checkpoint is not
        fault("save.after_files")
        manifest = {
            "format": FORMAT,
            "step": step,
            "world_size": 1,
            "recipe": fingerprint,
            "files": [[str(p.relative_to(working)), p.stat().st_size, file_hash(p)] for p in files],
        }
        write_json(working / MANIFEST, manifest, exact=True)
        fault("save.after_manifest")
        if final.exists():  # it was rejected, and this is the same step taken again
            remove_tree(final)
        working.rename(final)
        sync_folder(folder.path)
        fault("save.after_rename")
        saved.published.add(step)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise disk_error(final, error) from error
    retain(folder, keep, saved.state.best, step)
    fault("save.after_retention")
    return final


def check_space(folder: RunFolder, saved: TrainedObjects, keep: int) -> None:
    """S601 before anything is written where the disk cannot hold another checkpoint, older ones dropped first."""
    needed = int(SPACE_FACTOR * size_of(folder, saved))
    if free_space(folder.path) >= needed:
        return
    retain(
        folder,
        keep,
        saved.state.best,
        saved.state.step,
        lambda path: reason_to_reject(path) is None,
    )
    free = free_space(folder.path)
    if free < needed:
        raise StorageError(
            "S601",
            f"{free / 1e6:,.0f} MB free, a checkpoint needs {needed / 1e6:,.0f} MB",
            where=str(folder.path),
            why="nothing was written; earlier checkpoints are untouched",
            fix="free space and run the same command again, or keep fewer: save.keep=1",
        )


def free_space(path: Path) -> int:
    """Bytes a user may still write."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def size_of(folder: RunFolder, saved: TrainedObjects) -> int:
    """Bytes of the newest checkpoint, or of the tensors that will be saved where there is none."""
    found = checkpoints_in(folder.path)
    if found:
        return sum(path.stat().st_size for path in found[-1].rglob("*") if path.is_file())
    models = [saved.student, *saved.extra.values()]
    weights = sum(p.numel() * p.element_size() for vlm in models for p in vlm.model.parameters())
    learnt = sum(
        p.numel() * p.element_size() for p in saved.student.model.parameters() if p.requires_grad
    )
    return weights + 2 * learnt


def retain(
    folder: RunFolder,
    keep: int,
    best: dict[str, float] | None,
    step: int,
    counts: Callable[[Path], bool] = lambda path: True,
) -> None:
    """Drop older checkpoints; never the newest `keep`, never the best. The journal goes back to the newest `keep`.

    Args:
        folder: of the run.
        keep: how many of the newest stay.
        best: step and value of the best evaluation.
        step: of the run. A later checkpoint was rejected at the start: it is not among the newest, and is left alone.
        counts: whether one may be among the newest.
    """
    found = [path for path in checkpoints_in(folder.path) if checkpoint_step(path) <= step]
    newest_ones = [path for path in found if counts(path)][-max(1, keep) :]
    protected = {path.name for path in newest_ones}
    if best is not None:
        protected.add(folder.checkpoint(int(best["step"])).name)
    for path in found:
        if path.name not in protected:
            remove_tree(path)
    if newest_ones:
        Journal(folder.journal, "").forget_until(checkpoint_step(newest_ones[0]))


def checkpoints(folder: RunFolder) -> list[Path]:
    """Published checkpoints, oldest first, by step number."""
    return checkpoints_in(folder.path)


def reason_to_reject(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None where it can."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] not in READABLE:
            return f"format {manifest['format']}, this version reads {' and '.join(map(str, READABLE))}"
        if manifest["step"] != checkpoint_step(path):
            return f"its manifest is that of step {manifest['step']}"
        wrong = (wrong_file(path, *entry) for entry in manifest["files"])
        return next((reason for reason in wrong if reason), None) or wrong_content(path, manifest)
    except StorageError as error:
        return error.why
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest unreadable: {error}"


def wrong_file(path: Path, name: str, size: int, digest: str) -> str | None:
    """Why a file is not the one that the manifest names, or None where it is."""
    file = path / name
    if not file.resolve().is_relative_to(path.resolve()):
        return f"{name} leaves the checkpoint"
    if not file.is_file() or file.is_symlink():
        return f"{name} is missing"
    if file.stat().st_size != size:
        return f"{name} has {file.stat().st_size} bytes, not {size}"
    return f"{name} has changed since it was written" if file_hash(file) != digest else None


def wrong_content(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a checkpoint whose files are as they were written: shards that are missing, or the state."""
    names = {name for name, _, _ in manifest["files"]}
    absent = missing_shard_error(names, path)
    if absent is not None:
        return f"{absent} is missing"
    there = {
        str(file.relative_to(path)) for file in path.rglob("*") if WEIGHTS.fullmatch(file.name)
    }
    if there - names:
        return f"{min(there - names)} is not in its manifest, and would be read"
    try:
        state = state_fields(path, manifest)
    except ValueError as error:
        return str(error)
    return None if state["step"] == manifest["step"] else f"{STATE} is that of step {state['step']}"


def state_fields(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The checked fields of a checkpoint's state."""
    return read_state(path / STATE, manifest["format"], file_hash(path / MANIFEST))


def remove_leftovers(folder: RunFolder) -> None:
    """Remove what an interrupted save left behind."""
    for path in leftovers_in(folder.path):
        remove_tree(path)


def newest(folder: RunFolder) -> Path | None:
    """The newest valid checkpoint; each rejected one is logged. All invalid is an error, never a silent restart."""
    found = checkpoints(folder)
    for path in reversed(found):
        reason = reason_to_reject(path)
        if reason is None:
            return path
        folder.event(f"rejected {path.name}: {reason}")
    if found:
        raise StorageError(
            "S604",
            "no checkpoint of this run is valid",
            where=str(folder.path),
            why=f"newest: {found[-1].name}: {reason_to_reject(found[-1])}",
            fix=f"restore one from a backup, or start again elsewhere: run={folder.path}-2",
        )
    return None


def format_older_terms(path: Path) -> str:
    """What to know of the log of a checkpoint of format 1, whose version logged terms otherwise; else nothing."""
    if json.loads((path / MANIFEST).read_text(encoding="utf-8"))["format"] != 1:
        return ""
    return f"; up to step {checkpoint_step(path)} loss/* in metrics.jsonl are times their coefficients, later ones are not"


def restore(
    path: Path,
    student: VLM,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, VLM] | None = None,
) -> RunState:
    """Load weights, moments, noise state and counters of a verified checkpoint, further models by name."""
    for name, vlm in {"student": student, **(extra or {})}.items():
        restore_weights(path / name, vlm)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    moments = [
        path / name for name in shards_of([name for name, _, _ in manifest["files"]], OPTIMIZER)
    ]
    restore_optimizer(student.model, optimizer, read_shards(moments))
    torch.set_rng_state(load_file(path / NOISE)["torch"])
    return RunState(**state_fields(path, manifest))


def restore_weights(folder: Path, vlm: VLM) -> None:
    """Put saved weights into a model (M107 where anything is missing, unknown or different)."""
    load_weights_into(folder, vlm.model)


def weights_hash(vlm: VLM) -> str:
    """Content hash of all weights, for bit-identity tests and the lock file."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(vlm.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
