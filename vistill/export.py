"""`vistill export`: the student as a folder that other programs load, with a model card.

The folder is written under another name and renamed, so it exists completely or not at all.
"""

import re
import shlex
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from vistill.errors import ConfigError, StorageError, in_place_of, quote_command
from vistill.models.adapters import adapter_base, is_adapter_folder
from vistill.models.export import PRECISIONS, WrittenModel, weights_bytes, write_model
from vistill.report.model_card import CardFacts, base_name, model_card
from vistill.report.run_data import RunData, read_run
from vistill.runs.chosen_student import finish_fix, resolve_model
from vistill.runs.folder import CHECKPOINT, checkpoints_in
from vistill.runs.hub import offline_is_set
from vistill.runs.recipe_changes import unused_folder
from vistill.runs.storage import free_space, read_json, sync_file, sync_folder
from vistill.runtime import quiet_libraries
from vistill.training.recipe import stored_in
from vistill.training.results import COPIED
from vistill.training.run_lock import package_versions

#: `owner/name` of a repository.
REPOSITORY = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
#: Runs that a student was trained from, one after another.
LONGEST_CHAIN = 20


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that an upload uses."""

    def whoami(self) -> Any:
        """The account of the saved token."""
        ...

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Create a repository for a model."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Upload a folder in one commit."""
        ...


@dataclass(frozen=True)
class Exported:
    """What was written, and where."""

    folder: Path
    model: WrittenModel
    pushed: str = ""
    """Where it was uploaded to."""

    def __str__(self) -> str:
        """The folder, its size, notes, and commands that use it."""
        return f"{self.summary()}\n\n{usage_commands(self.folder)}"

    def summary(self) -> str:
        """The folder, its size, and notes."""
        size = weights_bytes(self.folder) / 1e6
        facts = f"{self.model.parameters / 1e6:,.1f} M parameters, {self.model.dtype}"
        facts += f", {size:,.1f} MB"
        lines = [f"exported {self.folder}   {facts}", *(f"note     {n}" for n in self.model.notes)]
        lines += [f"pushed   {self.pushed}   (private)"] if self.pushed else []
        return "\n".join(lines)


@dataclass(frozen=True)
class ExportSource:
    """The exported model, and where it comes from."""

    model: str
    """Folder or hub id."""
    run: Path | None
    """The run folder that trained it."""
    checkpoint: str = ""
    """Name of its checkpoint in the run folder."""


def export_model(
    target: str | Path,
    to: str | Path | None = None,
    *,
    dtype: str = "",
    push: str = "",
    hub: Hub | None = None,
) -> Exported:
    """Write a student as a folder for transformers, vLLM and `AutoProcessor`, with a model card.

    Args:
        target: a run folder (its chosen student), a model folder, or a hub id.
        to: the folder to write; it must not exist. By default next to the run.
        dtype: `bf16` or `fp32`; empty keeps the precision of the student.
        push: `owner/name` of a repository on the hub, created as a private one.
        hub: uploads; None is the hub of the saved token.

    Raises:
        StorageError: S605, the run is not finished; S608, the folder exists; S601, no space; S609,
            the hub cannot be reached or refuses.
        ModelError: M103 to M107, the model cannot be loaded; M120, it has no processor.
        ConfigError: C002, an unknown precision or no name of a repository.
    """
    quiet_libraries()
    if dtype and dtype not in PRECISIONS:
        raise option_error(
            "--dtype", dtype, "   or   ".join(f"--dtype {name}" for name in PRECISIONS)
        )
    if push and not REPOSITORY.fullmatch(push):
        raise option_error("--push", push, "--push OWNER/NAME")
    source = find_source(str(target))
    folder = Path(to) if to is not None else default_folder(str(target))
    check_absent(folder)
    api = connect(push, folder, str(target), hub) if push else None
    bases = find_bases(source)
    check_free_space(source, folder, dtype)
    with published_at(folder) as working:
        model = write_model(source.model, working, dtype=PRECISIONS.get(dtype), bases=bases)
        run = read_run(source.run) if source.run is not None else None
        card = model_card(card_facts(source, folder, model, bases, run))
        (working / "README.md").write_text(card, encoding="utf-8")
    pushed = upload(api, push, folder) if api is not None else ""
    return Exported(folder, model, pushed)


def option_error(option: str, value: str, fix: str) -> ConfigError:
    """C002 for a value of an option."""
    return ConfigError("C002", f"{option} {value!r} is not possible", fix=fix)


def find_source(target: str) -> ExportSource:
    """The model of a run folder, of one of its checkpoints, or any other model."""
    folder = Path(target)
    if is_run(folder) and not (folder / "config.json").exists():
        result = folder / "result.json"
        if not result.is_file():
            raise unfinished_export_error(folder)
        model = resolve_model(target)
        return ExportSource(model, folder, Path(model).parent.name)
    resolved = Path(resolve_model(target)) if folder.is_dir() else folder
    checkpoint = resolved.resolve().parent
    if (resolved / COPIED).is_file():  # the copy of a checkpoint's student, in a run folder
        checkpoint /= (resolved / COPIED).read_text(encoding="utf-8").strip()
    if CHECKPOINT.fullmatch(checkpoint.name) and is_run(checkpoint.parent):
        return ExportSource(target, checkpoint.parent, checkpoint.name)
    return ExportSource(resolve_model(target), None)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (folder / "run.lock.json").is_file() or (folder / "result.json").is_file()


def unfinished_export_error(folder: Path) -> StorageError:
    """S605 for a run that has no chosen student yet."""
    saved = checkpoints_in(folder)
    newest = str(saved[-1] / "student") if saved else ""
    return StorageError(
        "S605",
        f"the run {folder} has no chosen student yet",
        where=str(folder),
        why="the run is not finished: result.json names the chosen checkpoint at its end",
        fix=in_place_of(newest, str(folder)) if newest else finish_fix(folder),
    )


def find_bases(source: ExportSource) -> list[str]:
    """The models that a student was trained from, the nearest first."""
    bases: list[str] = []
    run = source.run
    while run is not None and (run / "recipe.json").is_file() and len(bases) < LONGEST_CHAIN:
        name = str(stored_in(str(run), read_json(run / "recipe.json"))["student"]["model"])
        folder = Path(name)
        run = folder if is_run(folder) else None
        if run is None or (run / "result.json").is_file():
            bases.append(resolve_model(name))
    return bases


def default_folder(target: str) -> Path:
    """Next to a run; in the current folder for any other model."""
    path = Path(target)
    if is_run(path):
        return path.with_name(f"{path.name or path.resolve().name}-export")
    parts = [part for part in path.parts if part not in (path.anchor, "..", "student")]
    name = parts[-1].replace(":", "-") if parts else "model"
    return Path(f"{name}-export")


def check_absent(folder: Path) -> None:
    """S608 if the target exists. Nothing is ever overwritten or merged."""
    if not folder.exists() and not folder.is_symlink():
        return
    raise StorageError(
        "S608",
        f"{folder} exists already",
        where=str(folder),
        why="an export into an existing folder could mix the files of two models",
        fix=f"--to {shlex.quote(unused_folder(str(folder)))}",
    )


def check_free_space(source: ExportSource, folder: Path, dtype: str) -> None:
    """S601 before anything is written, if the weights do not fit the disk."""
    needed = int(1.05 * exported_bytes(Path(source.model), dtype))
    free = free_space(folder)
    if free < needed:
        half = exported_bytes(Path(source.model), "bf16")
        smaller = "   or, for half the size,   --dtype bf16" if 1.05 * half < needed - 1 else ""
        raise StorageError(
            "S601",
            f"{free / 1e6:,.0f} MB free, the weights need {needed / 1e6:,.0f} MB",
            where=str(folder.absolute().parent),
            why="nothing was written",
            fix="--to OTHER_FOLDER   on another disk" + smaller,
        )


def exported_bytes(model: Path, dtype: str) -> float:
    """Bytes of the weights of a model folder in another precision; 0 without a folder.

    Adapters are merged, so a folder of adapters counts as its base.
    """
    if is_adapter_folder(model):
        return exported_bytes(Path(resolve_model(adapter_base(model))), dtype)
    if not (model / "config.json").is_file():
        return 0
    config = read_json(model / "config.json")
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    return weights_bytes(model) * PRECISIONS.get(dtype, stored).itemsize / stored.itemsize


@contextmanager
def published_at(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes the folder at the end, or is removed."""
    working = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.inprogress")
    try:
        working.mkdir(parents=True)
        yield working
        mode = working.stat().st_mode & 0o666  # weights are written for the owner alone
        for file in working.rglob("*"):
            if file.is_file():
                file.chmod(mode)
                sync_file(file)
        sync_folder(working)
        check_absent(folder)
        working.rename(folder)
        sync_folder(folder.absolute().parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            "S601",
            f"cannot write {folder}: {error.strerror or error}",
            where=str(folder.parent),
            why="the disk is full or the folder is not writable; nothing is left behind",
            fix="--to OTHER_FOLDER",
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def card_facts(
    source: ExportSource,
    folder: Path,
    model: WrittenModel,
    bases: list[str],
    run: RunData | None,
) -> CardFacts:
    """What the model card states."""
    return CardFacts(
        name=folder.name,
        source=base_name(source.model),
        bases=bases,
        dtype=model.dtype,
        parameters=model.parameters,
        versions={k: package_versions()[k] for k in ("vistill", "transformers", "torch")},
        commands=f"```\n{usage_commands(Path(folder.name))}\n```",
        notes=model.notes,
        run=run,
        checkpoint=source.checkpoint,
    )


def usage_commands(folder: Path) -> str:
    """Commands that serve, load and evaluate the folder, as they are pasted."""
    path, name = shlex.quote(str(folder)), shlex.quote(folder.name)
    return f"""\
# serve with vLLM, with its own sampling defaults
vllm serve {path} --served-model-name {name} --generation-config vllm

# ask it about a picture in plain transformers
python - <<'EOF'
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(folder)!r})
processor = AutoProcessor.from_pretrained({str(folder)!r})
content = [{{"type": "image", "image": Image.open("picture.png")}},
    {{"type": "text", "text": "What is shown?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True,
    tokenize=True, return_dict=True, return_tensors="pt")
length = inputs["input_ids"].shape[1]
ids = model.generate(**inputs, max_new_tokens=256)[:, length:]
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
EOF

# benchmarks of the served model: lmms-eval, or VLMEvalKit in its own folder
python -m lmms_eval --model async_openai --model_args \
model_version={name},base_url=http://localhost:8000/v1,api_key=EMPTY --tasks mmstar \
--gen_kwargs temperature=0,max_new_tokens=4096 --process-docs-parallel 1 --output_path results
python run.py --data MMStar --model {name} --base-url http://localhost:8000/v1 \
--judge exact_matching"""


def connect(push: str, folder: Path, target: str, hub: Hub | None) -> Hub:
    """The hub, after it has accepted the saved token (S609)."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if hub is None:
        if offline_is_set():
            raise push_error(push, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
        if get_token() is None:
            raise push_error(push, "no token is saved on this machine", "hf auth login")
        hub = HfApi()  # pyright: ignore[reportAssignmentType]
        assert hub is not None
    try:
        hub.whoami()
    except hub_failures() as error:
        if isinstance(error, (HfHubHTTPError, LocalTokenNotFoundError)):  # the hub has answered
            raise push_error(push, first_line(error), "hf auth login") from error
        export = quote_command("vistill", "export", target, "--to", folder)
        later = f"{export}   and, with a network,   {upload_command(push, folder)}"
        raise push_error(push, f"the hub does not answer: {first_line(error)}", later) from error
    return hub


def upload_command(push: str, folder: Path) -> str:
    """The command that uploads an exported folder."""
    return quote_command("hf", "upload", push, folder, "--private")


def upload(hub: Hub, push: str, folder: Path) -> str:
    """Create a private repository and upload the folder; return its address."""
    try:
        hub.create_repo(push, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=push, folder_path=str(folder), commit_message="Exported by vistill"
        )
    except hub_failures() as error:
        again = upload_command(push, folder)
        raise push_error(push, first_line(error), again, f"{folder} is complete") from error
    return f"https://huggingface.co/{push}"


def hub_failures() -> tuple[type[Exception], ...]:
    """The errors of huggingface_hub for a network, an account or a name."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    # the base class of its HTTP errors is that of the client library, for a failed connection too
    http = HfHubHTTPError.__bases__
    return (*http, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError)


def first_line(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def push_error(push: str, why: str, fix: str, note: str = "nothing was written") -> StorageError:
    """S609."""
    return StorageError(
        "S609", f"cannot upload to {push}", where=push, why=why[:300], fix=fix, note=note
    )
