"""Messages between a run and its vLLM process: a JSON object and blocks of bytes over a socket.

A frame is the length of the object as 8 bytes, the object in UTF-8, and its blocks one after the
other; `blocks` in the object lists their lengths. Shared memory (`vllm_memory.py`) goes as a file
descriptor next to the length, `shared` in the object is its length, and it is the last block of
what is received. Nothing is pickled. Both sides import this file.
"""

import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

#: What a socket can send: bytes, or the memory of an image or of a tensor.
Block: TypeAlias = "bytes | bytearray | memoryview"
#: What is received: bytes, or shared memory.
Received: TypeAlias = "bytearray | mmap.mmap"
LENGTH = struct.Struct(">Q")
#: Most bytes of an object (without its blocks), and of a block: a wrong length is no request for
#: memory.
MOST_JSON, MOST_BLOCK = 1 << 30, 1 << 36


class Closed(Exception):  # noqa: N818  (the other side may end on purpose)
    """The other side closed the socket."""


class Shared(Protocol):
    """Memory that goes to the other process as it is (`vllm_memory.SharedBlock`)."""

    descriptor: int
    memory: mmap.mmap


def send(
    channel: socket.socket,
    message: dict[str, Any],
    blocks: Sequence[Block] = (),
    shared: Shared | None = None,
) -> None:
    """Send one frame (Closed if the other side is gone)."""
    views = [memoryview(block).cast("B") for block in blocks]
    sizes = {"blocks": [len(view) for view in views]}
    held = {} if shared is None else {"shared": len(shared.memory)}
    text = json.dumps({**message, **sizes, **held}).encode()
    try:
        length = LENGTH.pack(len(text))
        count = 0 if shared is None else socket.send_fds(channel, [length], [shared.descriptor])
        channel.sendall(length[count:] + text)
        for view in views:
            channel.sendall(view)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed(str(error)) from error


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[Received]]:
    """Receive one frame.

    Raises:
        Closed: the other side is gone.
        ValueError: what it sent is no frame.
    """
    head, descriptors = receive_head(channel)
    try:
        message, blocks = receive_rest(channel, head)
        size = message.pop("shared", None)
        if (size is None) != (not descriptors):
            raise ValueError("a message with shared memory and without its length, or the reverse")
        if size is None:
            return message, [*blocks]
        if type(size) is not int or size < 1:
            raise ValueError("a message without the length of its shared memory")
        return message, [*blocks, mmap.mmap(descriptors[0], size)]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def receive_head(channel: socket.socket) -> tuple[bytes, list[int]]:
    """The length of the object, and the file descriptors of shared memory (Closed without them)."""
    try:
        head, descriptors, _, _ = socket.recv_fds(channel, LENGTH.size, 1)
    except ConnectionResetError as error:
        raise Closed(str(error)) from error
    if not head:
        raise Closed("the other side closed the socket")
    return head + receive_bytes(channel, LENGTH.size - len(head)), descriptors


def receive_rest(channel: socket.socket, head: bytes) -> tuple[dict[str, Any], list[bytearray]]:
    """The object and the blocks that follow a length."""
    (length,) = LENGTH.unpack(head)
    if length > MOST_JSON:
        raise ValueError(f"a message of {length:,} bytes")
    message = json.loads(receive_bytes(channel, length))
    sizes = message.pop("blocks") if isinstance(message, dict) and "blocks" in message else None
    if not isinstance(sizes, list) or not all(
        type(size) is int and 0 <= size <= MOST_BLOCK for size in sizes
    ):
        raise ValueError("a message without the lengths of its blocks")
    return message, [receive_bytes(channel, size) for size in sizes]


def receive_bytes(channel: socket.socket, size: int) -> bytearray:
    """Exactly so many bytes (Closed if there are fewer)."""
    data = bytearray(size)
    view, start = memoryview(data), 0
    while start < size:
        try:
            count = channel.recv_into(view[start:])
        except ConnectionResetError as error:
            raise Closed(str(error)) from error
        if count == 0:
            raise Closed("the other side closed the socket")
        start += count
    return data
