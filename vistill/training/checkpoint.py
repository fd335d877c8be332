"""Publish and find checkpoints: temporary folder, fsync, manifest with hashes, rename. safetensors and JSON only."""

import dataclasses
import json
import shutil
import uuid
from collections.abc import Mapping
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
from vistill.runs.folder import RunFolder
from vistill.runs.storage import (
    disk_error,
    file_hash,
    remove_tree,
    sync_file,
    sync_folder,
    write_json,
)
from vistill.training.journal import Journal

FORMAT = 1
MANIFEST = "MANIFEST.json"
#: Free space a save asks for, beside the size of a checkpoint.
SPACE_FACTOR = 1.2


@dataclass
class TrainState:
    """What a checkpoint carries beside weights and optimizer. The data order needs nothing but the step."""

    step: int = 0
    best: dict[str, float] | None = None
    """Step and value of the best validation result."""
    skipped: int = 0
    """Updates skipped because they were not finite."""
    gone: dict[str, str] = field(default_factory=dict)
    """Rows that are replaced from here on: id and code of the reason."""
    ladder: dict[str, int] = field(default_factory=dict)
    """How often each phase was halved because memory did not hold it."""
    method: dict[str, Any] = field(default_factory=dict)
    """State of the method."""

    def to_dict(self) -> dict[str, Any]:
        """For `state.json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Saved:
    """Everything that is saved together."""

    student: VLM
    optimizer: torch.optim.Optimizer
    state: TrainState
    extra: Mapping[str, VLM] = field(default_factory=dict)
    """Further models: EMA teacher, adapters."""


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments under `opt.<parameter>.<slot>`, so that restoring them cannot be forgotten."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"opt.{names[id(parameter)]}.{slot}": torch.as_tensor(value).detach().cpu().contiguous()
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Put every moment back; an unknown or missing parameter is an error."""
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        name, _, slot = key.removeprefix("opt.").rpartition(".")
        parameter = parameters[name]
        on = value if slot == "step" else value.to(parameter.device)
        optimizer.state[parameter][slot] = on


def publish(folder: RunFolder, saved: Saved, fingerprint: str, keep: int) -> Path:
    """Write a checkpoint so that it exists whole or not at all, then apply retention."""
    step = saved.state.step
    final = folder.checkpoint(step)
    if final.exists():
        return final
    check_space(folder, saved, keep)
    working = folder.path / f".inprogress-{step:06d}-{uuid.uuid4().hex[:8]}"
    try:
        fault("save.begin")
        working.mkdir(parents=True)
        save_vlm(saved.student, working / "student")
        for name, vlm in saved.extra.items():
            save_vlm(vlm, working / name)
        fault("save.after_weights")
        save_file(optimizer_tensors(saved.student.model, saved.optimizer), working / "optimizer.safetensors")
        save_file({"torch": torch.get_rng_state()}, working / "rng.safetensors")
        write_json(working / "state.json", saved.state.to_dict(), exact=True)
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
        working.rename(final)
        sync_folder(folder.path)
        fault("save.after_rename")
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise disk_error(final, error) from error
    retain(folder, keep, saved.state.best)
    fault("save.after_retention")
    return final


def check_space(folder: RunFolder, saved: Saved, keep: int) -> None:
    """S601 before anything is written where the disk cannot hold another checkpoint, older ones dropped first."""
    needed = int(SPACE_FACTOR * size_of(folder, saved))
    if free_space(folder.path) >= needed:
        return
    retain(folder, keep, saved.state.best)
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


def size_of(folder: RunFolder, saved: Saved) -> int:
    """Bytes of the newest checkpoint, or of the tensors that will be saved where there is none."""
    found = checkpoints(folder)
    if found:
        return sum(path.stat().st_size for path in found[-1].rglob("*") if path.is_file())
    models = [saved.student, *saved.extra.values()]
    weights = sum(p.numel() * p.element_size() for vlm in models for p in vlm.model.parameters())
    learnt = sum(p.numel() * p.element_size() for p in saved.student.model.parameters() if p.requires_grad)
    return weights + 2 * learnt


def retain(folder: RunFolder, keep: int, best: dict[str, float] | None) -> None:
    """Drop older checkpoints; never the newest `keep`, never the best."""
    found = checkpoints(folder)
    protected = {path.name for path in found[-max(1, keep) :]}
    if best is not None:
        protected.add(folder.checkpoint(int(best["step"])).name)
    for path in found:
        if path.name not in protected:
            remove_tree(path)
    kept = checkpoints(folder)
    if kept:
        Journal(folder.journal, "").forget_until(step_of(kept[0]))


def checkpoints(folder: RunFolder) -> list[Path]:
    """Published checkpoints, oldest first, by step number."""
    if not folder.path.is_dir():
        return []
    return sorted(p for p in folder.path.iterdir() if p.is_dir() and p.name.startswith("checkpoint-"))


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("checkpoint-"))


def reason_to_reject(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None where it can."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        for name, size, digest in manifest["files"]:
            file = path / name
            inside = file.resolve().is_relative_to(path.resolve())
            if not inside or not file.is_file() or file.is_symlink():
                return f"{name} is missing" if inside else f"{name} leaves the checkpoint"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if file_hash(file) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest unreadable: {error}"
    return None


def sweep(folder: RunFolder) -> None:
    """Remove what an interrupted save left behind."""
    if folder.path.is_dir():
        for path in folder.path.iterdir():
            if path.name.startswith((".inprogress-", ".trash-")):
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


def restore(
    path: Path, student: VLM, optimizer: torch.optim.Optimizer, extra: Mapping[str, VLM] | None = None
) -> TrainState:
    """Load weights, moments, noise state and counters of a verified checkpoint, further models by name."""
    for name, vlm in {"student": student, **(extra or {})}.items():
        restore_weights(path / name, vlm)
    restore_optimizer(student.model, optimizer, load_file(path / "optimizer.safetensors"))
    torch.set_rng_state(load_file(path / "rng.safetensors")["torch"])
    raw = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return TrainState(**raw)


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
