"""Named tensors in safetensors files of limited size.

The files are `name.safetensors`, or `name-00001-of-00003.safetensors`, ... Host memory holds one
tensor at a time, both when shards are written and when they are read.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from vistill.faults import fault
from vistill.models.tensor_files import WrittenFile, write_bytes, write_tensors

#: What transformers writes into every file of weights.
METADATA = {"format": "pt"}
SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")


def shard_names(stem: str, number: int) -> list[str]:
    """File names of the shards; a single one has no number."""
    if number <= 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{number:05d}.safetensors" for i in range(1, number + 1)]


def split_into_shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Names in their order, cut into shards of at most `max_bytes` with at least one tensor each.

    No tensors give one empty shard.
    """
    parts: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += tensor.nbytes
    return parts


def save_shards(
    tensors: Mapping[str, Tensor],
    folder: Path,
    stem: str,
    max_bytes: int,
    poll: Callable[[], None] = lambda: None,
) -> list[WrittenFile]:
    """Write tensors from any device, shard after shard, each durable before the next."""
    parts = split_into_shards(tensors, max_bytes)
    files = []
    for name, part in zip(shard_names(stem, len(parts)), parts, strict=True):
        shard = {tensor: tensors[tensor] for tensor in part}
        files.append(write_tensors(folder / name, shard, METADATA, poll))
        fault("save.shard")
    return files


def save_indexed_shards(
    tensors: Mapping[str, Tensor],
    folder: Path,
    stem: str,
    max_bytes: int,
    poll: Callable[[], None] = lambda: None,
) -> list[WrittenFile]:
    """The same for weights that transformers reads: several shards have an index."""
    files = save_shards(tensors, folder, stem, max_bytes, poll)
    if len(files) == 1:
        return files
    parts = split_into_shards(tensors, max_bytes)
    file_of = {
        name: file.path.name for file, part in zip(files, parts, strict=True) for name in part
    }
    totals = {
        "total_parameters": sum(t.numel() for t in tensors.values()),
        "total_size": sum(t.nbytes for t in tensors.values()),
    }
    index = json.dumps({"metadata": totals, "weight_map": file_of}, indent=2, sort_keys=True)
    return [*files, write_bytes(folder / f"{stem}.safetensors.index.json", f"{index}\n".encode())]


def read_shards(files: Collection[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor of everything in some files, one after the other."""
    for file in sorted(files):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118  not a dictionary
                yield name, handle.get_tensor(name)


def find_shards(names: Collection[str], stem: str) -> list[str]:
    """Those of some file names that are `stem.safetensors` or its shards."""
    numbered = [name for name in names if (match := SHARD.fullmatch(name)) and match[1] == stem]
    return sorted(numbered) or [name for name in names if name == f"{stem}.safetensors"]


def find_missing_shard(names: Collection[str], folder: Path) -> str | None:
    """A missing shard that an index or the name of another shard requires, or None."""
    present = set(names)
    for name in sorted(present):
        if match := SHARD.fullmatch(name):
            count = int(match[3])
            required = [
                f"{match[1]}-{i:05d}-of-{match[3]}.safetensors" for i in range(1, count + 1)
            ]
        elif name.endswith(".safetensors.index.json"):
            index = json.loads((folder / name).read_bytes())
            parent = name.rpartition("/")[0]
            files = set(index["weight_map"].values())
            required = [f"{parent}/{file}" if parent else file for file in files]
        else:
            continue
        missing = sorted(set(required) - present)
        if missing:
            return missing[0]
    return None
