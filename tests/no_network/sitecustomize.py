"""Put this folder on PYTHONPATH and no process can connect to another machine."""

import socket

_connect = socket.socket.connect


def _refuse(self, address, *rest):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        raise OSError(f"sockets are blocked: {address}")
    return _connect(self, address, *rest)


socket.socket.connect = _refuse
