"""Publish and find checkpoints: temporary folder, fsync, manifest with hashes, rename.

The files are safetensors and JSON only.
"""

import json
import re
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
from vistill.models.adapters import own_parameters
from vistill.models.loading import VLM
from vistill.models.save import load_weights_into, save_vlm
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in, leftovers_in
from vistill.runs.recipe_changes import in_new_folder
from vistill.runs.storage import (
    check_finite,
    disk_error,
    file_hash,
    free_space,
    remove_tree,
    sync_file,
    sync_folder,
    write_json,
)
from vistill.training.journal import Journal
from vistill.training.run_state import RunState, read_state
from vistill.training.shards import (
    SHARD_BYTES,
    find_missing_shard,
    find_shards,
    read_shards,
    save_shards,
)

#: Format that is written. 2: typed fields in `state.json`, with the chain of the journal; shards.
#: 3: other field names.
FORMAT = 3
#: Formats that can be read.
READABLE = (1, 2, 3)
MANIFEST, STATE, OPTIMIZER, NOISE = "MANIFEST.json", "state.json", "optimizer", "rng.safetensors"
#: Free space that a save requires, as a multiple of the size of a checkpoint.
SPACE_FACTOR = 1.2
#: Files that a loader of weights opens by itself.
WEIGHTS = re.compile(r"(adapter_)?model(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class TrainedObjects:
    """The objects that a checkpoint holds."""

    student: VLM
    optimizer: torch.optim.Optimizer
    state: RunState
    extra: Mapping[str, VLM] = field(default_factory=dict)
    """Further models by name: the moving average of the student."""
    published: set[int] = field(default_factory=set)
    """Steps whose checkpoint this process has written: they need no check."""


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments by `opt.<parameter>.<slot>`, on their device."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"opt.{names[id(parameter)]}.{slot}": torch.as_tensor(value).detach()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Iterable[tuple[str, Tensor]]
) -> None:
    """Restore every moment (S604 for one of an unknown parameter or of another shape)."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in saved:
        name, _, slot = key.removeprefix("opt.").rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or (slot != "step" and value.shape != parameter.shape):
            raise StorageError(
                "S604",
                f"the checkpoint holds {key}, and the model has no parameter that fits",
                why="the optimizer's state was saved for a model with other parameters",
                fix="name the model that the run was started with, or start a new run: run=NEW",
            )
        optimizer.state[parameter][slot] = value if slot == "step" else value.to(parameter.device)


def publish_checkpoint(
    folder: RunFolder, saved: TrainedObjects, fingerprint: str, keep: int
) -> Path:
    """Write a checkpoint so that it exists completely or not at all, then drop older ones."""
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
        # a checkpoint must not outlive the log lines of its steps
        folder.sync_logs()
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
        if final.exists():  # it was rejected at the start; this is its step taken again
            remove_tree(final)
        working.rename(final)
        sync_folder(folder.path)
        fault("save.after_rename")
        saved.published.add(step)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise disk_error(final, error) from error
    drop_old_checkpoints(folder, keep, saved.state.best, step)
    fault("save.after_retention")
    return final


def check_space(folder: RunFolder, saved: TrainedObjects, keep: int) -> None:
    """S601, before anything is written, if the disk cannot hold another checkpoint.

    Older checkpoints are dropped first if that makes the space.
    """
    needed = int(SPACE_FACTOR * checkpoint_bytes(folder, saved))
    if free_space(folder.path) >= needed:
        return
    drop_old_checkpoints(
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
            fix="free space and run the same command again"
            + (", or keep fewer:   save.keep=1" if keep > 1 else ""),
        )


def checkpoint_bytes(folder: RunFolder, saved: TrainedObjects) -> int:
    """Bytes of the newest checkpoint, or of the tensors to save where there is none."""
    earlier = checkpoints_in(folder.path)
    if earlier:
        return sum(path.stat().st_size for path in earlier[-1].rglob("*") if path.is_file())
    models = [saved.student, *saved.extra.values()]
    saved_weights = [p for vlm in models for p in own_parameters(vlm.model)]
    weights = sum(p.numel() * p.element_size() for p in saved_weights)
    trainable = sum(
        p.numel() * p.element_size() for p in saved.student.model.parameters() if p.requires_grad
    )
    return weights + 2 * trainable  # two moments per trainable weight


def drop_old_checkpoints(
    folder: RunFolder,
    keep: int,
    best: dict[str, float] | None,
    step: int,
    is_valid: Callable[[Path], bool] = lambda path: True,
) -> None:
    """Drop older checkpoints, never the newest `keep` and never the best, and old journal entries.

    Args:
        folder: of the run.
        keep: how many of the newest stay.
        best: step and value of the best evaluation.
        step: of the run. Later checkpoints were rejected at the start: they do not count, and stay.
        is_valid: whether a checkpoint counts among the newest.
    """
    earlier = [path for path in checkpoints_in(folder.path) if checkpoint_step(path) <= step]
    newest = [path for path in earlier if is_valid(path)][-max(1, keep) :]
    protected = {path.name for path in newest}
    if best is not None:
        protected.add(folder.checkpoint(int(best["step"])).name)
    for path in earlier:
        if path.name not in protected:
            remove_tree(path)
    if newest:
        Journal(folder.journal, "").drop_until(checkpoint_step(newest[0]))


def list_checkpoints(folder: RunFolder) -> list[Path]:
    """Published checkpoints, oldest first, by step number."""
    return checkpoints_in(folder.path)


def reason_to_reject(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it can."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] not in READABLE:
            formats = ", ".join(map(str, READABLE))
            return f"format {manifest['format']}, this version reads {formats}"
        if manifest["step"] != checkpoint_step(path):
            return f"its manifest is that of step {manifest['step']}"
        reasons = (file_mismatch(path, *entry) for entry in manifest["files"])
        return next(filter(None, reasons), None) or content_mismatch(path, manifest)
    except StorageError as error:
        return error.why
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest unreadable: {error}"


def file_mismatch(path: Path, name: str, size: int, digest: str) -> str | None:
    """How a file differs from its entry in the manifest, or None."""
    file = path / name
    if not file.resolve().is_relative_to(path.resolve()):
        return f"{name} is outside the checkpoint"
    if not file.is_file() or file.is_symlink():
        return f"{name} is missing"
    if file.stat().st_size != size:
        return f"{name} has {file.stat().st_size} bytes, not {size}"
    return f"{name} has changed since it was written" if file_hash(file) != digest else None


def content_mismatch(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """Why a checkpoint whose files fit the manifest is bad: missing shards, or a bad state."""
    names = {name for name, _, _ in manifest["files"]}
    missing = find_missing_shard(names, path)
    if missing is not None:
        return f"{missing} is missing"
    weights = {
        str(file.relative_to(path)) for file in path.rglob("*") if WEIGHTS.fullmatch(file.name)
    }
    if weights - names:
        return f"{min(weights - names)} is not in its manifest, and a loader would read it"
    try:
        state = state_in(path, manifest)
    except ValueError as error:
        return str(error)
    return None if state.step == manifest["step"] else f"{STATE} is that of step {state.step}"


def state_in(path: Path, manifest: Mapping[str, Any]) -> RunState:
    """The state of a checkpoint (ValueError where a field is bad)."""
    return read_state(path / STATE, manifest["format"], file_hash(path / MANIFEST))


def remove_leftovers(folder: RunFolder) -> None:
    """Remove the temporary folders of an interrupted save."""
    for path in leftovers_in(folder.path):
        remove_tree(path)


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """The newest valid checkpoint, or None before the first; logs each rejected one.

    Raises:
        StorageError: S604, no checkpoint is valid: the run never silently starts over.
    """
    published = list_checkpoints(folder)
    for path in reversed(published):
        reason = reason_to_reject(path)
        if reason is None:
            return path
        folder.event(f"rejected {path.name}: {reason}")
    if published:
        raise StorageError(
            "S604",
            "no checkpoint of this run is valid",
            where=str(folder.path),
            why=f"newest: {published[-1].name}: {reason_to_reject(published[-1])}",
            fix="restore one from a backup, or start again elsewhere:   "
            + in_new_folder(folder.path),
        )
    return None


def format_older_terms(path: Path) -> str:
    """A note about a checkpoint of format 1: its version logged loss terms differently."""
    if json.loads((path / MANIFEST).read_text(encoding="utf-8"))["format"] != 1:
        return ""
    return (
        f"; up to step {checkpoint_step(path)} loss/* in metrics.jsonl are times their "
        "coefficients, later ones are not"
    )


def restore_checkpoint(
    path: Path,
    student: VLM,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, VLM] | None = None,
) -> RunState:
    """Load weights, moments, random state and run state of a valid checkpoint.

    Args:
        path: of the checkpoint.
        student: gets its weights.
        optimizer: gets its moments.
        extra: further models by name.
    """
    for name, vlm in {"student": student, **(extra or {})}.items():
        restore_weights(path / name, vlm)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    moments = [
        path / name for name in find_shards([name for name, _, _ in manifest["files"]], OPTIMIZER)
    ]
    restore_optimizer(student.model, optimizer, read_shards(moments))
    torch.set_rng_state(load_file(path / NOISE)["torch"])
    return state_in(path, manifest)


def restore_weights(folder: Path, vlm: VLM) -> None:
    """Load saved weights into a model (M107 for a missing, unknown or different tensor)."""
    load_weights_into(folder, vlm.model)


def weights_hash(vlm: VLM) -> str:
    """SHA-256 of all weights, for bit-identity tests and the lock file."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(vlm.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
