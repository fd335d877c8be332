"""Publish and find checkpoints: temporary folder, fsync, manifest with hashes, rename.

The files are safetensors and JSON only. What is saved is in `checkpoint_content.py`.
"""

import json
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vistill.errors import StorageError
from vistill.faults import fault
from vistill.models.loading import VLM
from vistill.models.save import load_weights_into
from vistill.models.tensor_files import WrittenFile, write_bytes, write_tensors
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in, leftovers_in
from vistill.runs.recipe_changes import in_new_folder
from vistill.runs.storage import (
    disk_error,
    file_hash,
    free_space,
    remove_tree,
    sync_folder,
    write_json,
)
from vistill.training.checkpoint_content import CheckpointContent, TrainedObjects
from vistill.training.disk_needs import SPACE_FACTOR
from vistill.training.interrupt import StopRequest
from vistill.training.journal import Journal
from vistill.training.optim import place_steps
from vistill.training.run_state import RunState, read_state
from vistill.training.settings import SaveSettings
from vistill.training.shards import (
    find_missing_shard,
    find_shards,
    read_shards,
    save_indexed_shards,
    save_shards,
)

#: Format that is written. 2: typed fields in `state.json`, with the chain of the journal; shards.
#: 3: other field names.
FORMAT = 3
#: Formats that can be read.
READABLE = (1, 2, 3)
MANIFEST, STATE, OPTIMIZER, NOISE = "MANIFEST.json", "state.json", "optimizer", "rng.safetensors"
#: Values of the optimizer's state that have not the shape of their weight: the number of updates,
#: and the tables and scales of moments of 8 bits.
SHAPES_OF_THEIR_OWN = ("step", "qmap1", "qmap2", "absmax1", "absmax2")
#: Files that a loader of weights opens by itself.
WEIGHTS = re.compile(r"(adapter_)?model(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class CheckpointTarget:
    """Where checkpoints are written, and how."""

    folder: RunFolder
    fingerprint: str
    """Of the recipe."""
    keep: int
    """How many of the newest stay."""
    shard_bytes: int = int(1e9 * SaveSettings().shard_gb)
    """Bytes of a file of weights or moments. A larger tensor has its own."""


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Iterable[tuple[str, Tensor]]
) -> None:
    """Restore every moment (S604 for one of an unknown parameter or of another shape)."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in saved:
        name, _, slot = key.removeprefix("opt.").rpartition(".")
        parameter = parameters.get(name)
        own_shape = slot in SHAPES_OF_THEIR_OWN
        if parameter is None or (not own_shape and value.shape != parameter.shape):
            raise StorageError(
                "S604",
                f"the checkpoint holds {key}, and the model has no parameter that fits",
                why="the optimizer's state was saved for a model with other parameters",
                fix="name the model that the run was started with, or start a new run: run=NEW",
            )
        optimizer.state[parameter][slot] = value if slot == "step" else value.to(parameter.device)
    place_steps(optimizer)


def is_published(folder: RunFolder, saved: TrainedObjects) -> bool:
    """Whether the current step has a valid checkpoint."""
    final = folder.checkpoint(saved.state.step)
    if not final.exists():
        return False
    return saved.state.step in saved.published or reason_to_reject(final) is None


def write_checkpoint(
    target: CheckpointTarget, content: CheckpointContent, stop: StopRequest | None = None
) -> Path:
    """Write, publish, drop older ones. An incomplete folder is removed after an error.

    Args:
        target: where and how.
        content: the values to write; nothing may change them until this returns.
        stop: lets another thread stop the save.

    Raises:
        StorageError: S601, the disk is full or cannot be written.
        SaveAbandonedError: another thread stopped the save.
    """
    stop = StopRequest() if stop is None else stop
    folder, step = target.folder, content.step
    final = folder.checkpoint(step)
    working = folder.path / f".inprogress-{step:06d}-{uuid.uuid4().hex[:8]}"
    try:
        fault("save.begin")
        working.mkdir(parents=True)
        files = write_files(working, content, target.shard_bytes, stop)
        # a checkpoint must not outlive the log lines of its steps
        folder.sync_logs()
        fault("save.after_files")
        entries = sorted((str(f.path.relative_to(working)), f.size, f.digest) for f in files)
        manifest = {
            "format": FORMAT,
            "step": step,
            "world_size": 1,
            "recipe": target.fingerprint,
            "files": [list(entry) for entry in entries],
        }
        write_json(working / MANIFEST, manifest, exact=True)
        fault("save.after_manifest")
        with stop.no_longer():
            if final.exists():  # it was rejected at the start; this is its step taken again
                remove_tree(final)
            working.rename(final)
            sync_folder(folder.path)
        fault("save.after_rename")
        stop.poll()
        drop_old_checkpoints(folder, target.keep, content.state["best"], step)
        fault("save.after_retention")
    except Exception as error:
        with suppress(OSError):
            remove_tree(working)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise disk_error(final, error) from error
        raise
    return final


def write_files(
    working: Path, content: CheckpointContent, shard_bytes: int, stop: StopRequest
) -> list[WrittenFile]:
    """Write every file but the manifest, and make files and folders durable."""
    files: list[WrittenFile] = []
    for name, model in content.models.items():
        (working / name).mkdir()
        files += [write_bytes(working / name / file, data) for file, data in model.files.items()]
        most = sys.maxsize if model.is_one_file else shard_bytes
        files += save_indexed_shards(model.weights, working / name, model.stem, most, stop.poll)
    fault("save.after_weights")
    files += save_shards(content.moments, working, OPTIMIZER, shard_bytes, stop.poll)
    files.append(write_tensors(working / NOISE, {"torch": content.noise}))
    write_json(working / STATE, content.state, exact=True)
    state = working / STATE
    files.append(WrittenFile(state, state.stat().st_size, file_hash(state)))
    for path in {file.path.parent for file in files}:
        sync_folder(path)
    return files


def check_space(folder: RunFolder, content: CheckpointContent, keep: int) -> None:
    """S601, before anything is written, if the disk cannot hold another checkpoint.

    Older checkpoints are dropped first if that makes the space.
    """
    needed = int(SPACE_FACTOR * content.num_bytes())
    if free_space(folder.path) >= needed:
        return
    drop_old_checkpoints(
        folder,
        keep,
        content.state["best"],
        content.step,
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
