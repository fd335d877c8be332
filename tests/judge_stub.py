"""A server that speaks as much of OpenAI's protocol as a judge needs, in this process."""

import _socket
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StubJudge(ThreadingHTTPServer):
    """Answers with what `reply(message, number)` returns: text, or an HTTP code."""

    def __init__(self, reply):
        self.reply, self.requests, self.keys = reply, [], []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            number = len(self.server.requests)
        reply = self.server.reply(body["messages"][0]["content"], number)
        if isinstance(reply, int):
            self.send_response(reply)
            self.send_header("Retry-After", "0")
            self.send_header("Location", f"{self.server.url}/other")
            text = json.dumps({"error": f"refused {self.headers.get('Authorization')}"})
        else:
            self.send_response(200)
            message = {"role": "assistant", "content": reply}
            text = json.dumps({"choices": [{"message": message}], "usage": {"total_tokens": 7}})
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        """Nothing."""


@contextmanager
def own_machine():
    """Connections to this machine pass; others stay blocked (conftest.py)."""
    blocked = socket.socket.connect

    def connect(self, address):
        is_here = isinstance(address, tuple) and address[0] == "127.0.0.1"
        return _socket.socket.connect(self, address) if is_here else blocked(self, address)

    socket.socket.connect = connect
    try:
        yield
    finally:
        socket.socket.connect = blocked


@contextmanager
def stub_judge(reply):
    with own_machine():
        yield from serve(reply)


def serve(reply):
    server = StubJudge(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
