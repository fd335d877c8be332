"""Messages between a run and its vLLM process: a JSON object and blocks of bytes over a socket.

A frame is the length of the object as 8 bytes, the object in UTF-8, and its blocks one after the
other; `blocks` in the object lists their lengths. Nothing is pickled. Both sides import this file.
"""

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

#: What a socket can send: bytes, or the memory of an image or of a tensor.
Block: TypeAlias = "bytes | bytearray | memoryview"
LENGTH = struct.Struct(">Q")
#: Most bytes of an object (without its blocks), and of a block: a wrong length is no request for
#: memory.
MOST_JSON, MOST_BLOCK = 1 << 30, 1 << 36


class Closed(Exception):  # noqa: N818  (the other side may end on purpose)
    """The other side closed the socket."""


def send(channel: socket.socket, message: dict[str, Any], blocks: Sequence[Block] = ()) -> None:
    """Send one frame (Closed if the other side is gone)."""
    views = [memoryview(block).cast("B") for block in blocks]
    text = json.dumps({**message, "blocks": [len(view) for view in views]}).encode()
    try:
        channel.sendall(LENGTH.pack(len(text)) + text)
        for view in views:
            channel.sendall(view)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed(str(error)) from error


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[bytearray]]:
    """Receive one frame.

    Raises:
        Closed: the other side is gone.
        ValueError: what it sent is no frame.
    """
    (length,) = LENGTH.unpack(receive_bytes(channel, LENGTH.size))
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
