"""Write safetensors files tensor by tensor: from any device, without a copy of the whole file.

The hash is computed from the bytes that are written. Writing and hashing release Python's global
lock, so a file can be written in a thread. (The function of safetensors holds the lock.)
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

#: The precisions of tensors, by their names in safetensors.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: Bytes that are written at a time.
PIECE = 1 << 24


@dataclass(frozen=True)
class WrittenFile:
    """A file that is complete and durable."""

    path: Path
    size: int
    digest: str
    """xxh3-128, as `runs/storage.py:file_hash`."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> WrittenFile:
    """Write tensors as one safetensors file and make it durable.

    Args:
        path: of the file.
        tensors: by name, on any device. One at a time is copied to the host.
        metadata: texts in the header.
        poll: called before each piece; raises to stop.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    pieces = [header_of({name: tensors[name] for name in order}, metadata)]
    digest, size = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as handle:
        for block in (*pieces, *order):
            data = memoryview(block) if isinstance(block, bytes) else bytes_of(tensors[block])
            for piece in pieces_of(data):
                poll()
                digest.update(piece)
                write_all(handle.fileno(), piece)
                size += len(piece)
        os.fsync(handle.fileno())
    return WrittenFile(path, size, digest.hexdigest())


def write_bytes(path: Path, data: bytes) -> WrittenFile:
    """Write a small file and make it durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    return WrittenFile(path, len(data), xxhash.xxh3_128(data).hexdigest())


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """The length of the header and the header: place, shape and precision of each tensor."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor. On the host they are not copied."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def pieces_of(data: memoryview) -> Iterator[memoryview]:
    """The bytes in pieces."""
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def write_all(descriptor: int, data: memoryview) -> None:
    """Write every byte: one call may write only a part."""
    while data:
        data = data[os.write(descriptor, data) :]
