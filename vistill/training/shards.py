"""Named tensors in safetensors files of limited size.

The files are `name.safetensors`, or `name-00001-of-00003.safetensors`, ... Host memory holds one
shard at a time, both when shards are written and when they are read.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

#: Bytes of a shard; a larger tensor has a shard of its own.
SHARD_BYTES = 2 * 2**30
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
    tensors: Mapping[str, Tensor], folder: Path, stem: str, max_bytes: int
) -> list[Path]:
    """Write tensors from any device, shard after shard."""
    parts = split_into_shards(tensors, max_bytes)
    files = [folder / name for name in shard_names(stem, len(parts))]
    for file, names in zip(files, parts, strict=True):
        save_file({name: tensors[name].detach().cpu().contiguous() for name in names}, file)
    return files


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
