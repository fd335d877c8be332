"""Named tensors in safetensors files of limited size: `name.safetensors`, or `name-00001-of-00003.safetensors`, ...

One shard is in host memory at a time, when it is written and when it is read.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

#: Bytes of a shard, a single larger tensor excepted.
SHARD_BYTES = 2 * 2**30
SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")


def shard_names(stem: str, number: int) -> list[str]:
    """Names of the shards; a single one has no number."""
    if number <= 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{number:05d}.safetensors" for i in range(1, number + 1)]


def in_shards(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """Names in their order, in parts of at most so many bytes, one tensor at least; no tensors are one empty part."""
    parts: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > most:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += tensor.nbytes
    return parts


def save_shards(tensors: Mapping[str, Tensor], folder: Path, stem: str, most: int) -> list[Path]:
    """Write tensors, on whatever device they are, shard after shard."""
    parts = in_shards(tensors, most)
    files = [folder / name for name in shard_names(stem, len(parts))]
    for file, names in zip(files, parts, strict=True):
        save_file({name: tensors[name].detach().cpu().contiguous() for name in names}, file)
    return files


def read_shards(files: Collection[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in some files, one tensor after the other."""
    for file in sorted(files):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118  not a dictionary
                yield name, handle.get_tensor(name)


def shards_of(names: Collection[str], stem: str) -> list[str]:
    """Which of some file names are `stem.safetensors` or its shards."""
    numbered = [name for name in names if (match := SHARD.fullmatch(name)) and match[1] == stem]
    return sorted(numbered) or [name for name in names if name == f"{stem}.safetensors"]


def missing_shard_error(names: Collection[str], folder: Path) -> str | None:
    """A shard that an index or the other shards' names speak of and that is not among some file names, or None."""
    there = set(names)
    for name in sorted(there):
        if match := SHARD.fullmatch(name):
            wanted = [
                f"{match[1]}-{i:05d}-of-{match[3]}.safetensors" for i in range(1, int(match[3]) + 1)
            ]
        elif name.endswith(".safetensors.index.json"):
            index = json.loads((folder / name).read_bytes())
            place = name.rpartition("/")[0]
            wanted = [
                f"{place}/{file}" if place else file for file in set(index["weight_map"].values())
            ]
        else:
            continue
        absent = sorted(set(wanted) - there)
        if absent:
            return absent[0]
    return None
