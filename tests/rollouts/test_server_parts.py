"""The engine `server` without a server of vLLM: its proof, its requests, and errors of HTTP."""

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from vistill.errors import ConfigError, RolloutError
from vistill.models.loading import load_vlm
from vistill.rollouts import server_checks as checks
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.server_client import ServerClient
from vistill.rollouts.server_probe import (
    ROWS,
    measure_probe,
    probe_request,
    probe_tokens,
)
from vistill.rollouts.server_routes import ChatRoute, IdsRoute, ServerModel, ServerRow
from vistill.rollouts.settings import RolloutSettings, ServerSettings

#: Before a test refuses connections.
CONNECT = socket.socket.connect
SAMPLING = Sampling(0, 0, 1.0, 1.0, 8)
WARM = replace(SAMPLING, temperature=1.0, top_p=0.8)


@pytest.fixture(autouse=True)
def _this_machine(_no_network, monkeypatch):
    """Connections to this machine are allowed."""
    refuse = socket.socket.connect

    def connect(self, address, *rest):
        is_here = self.family == socket.AF_INET and address[0] == "127.0.0.1"
        return (CONNECT if is_here else refuse)(self, address, *rest)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def writer():
    return load_vlm("vistill/assets/student")


@pytest.fixture(scope="module")
def other():
    return load_vlm("vistill/assets/teacher")


def rows_of(vlm, sampling, siblings=ROWS):
    """What a server would answer to the probe: rows of our own engine."""
    request = replace(probe_request(vlm), siblings=tuple(range(siblings)))
    with make_engine(vlm, RolloutSettings()) as engine:
        (group,) = engine.generate([request], replace(probe_tokens(sampling), log_probs=True))
    ids = list(request.prompt.ids)
    return [ServerRow(ids, list(r.ids), list(r.log_probs)) for r in group]


def judge(vlm, rows, sampling):
    measured = measure_probe(vlm, probe_request(vlm), rows, probe_tokens(sampling))
    checks.check_same_model("URL", measured.distance, 1e-3, measured.processed_distance)
    checks.check_draws("URL", measured.difference, measured.variance, measured.outside)
    return measured


def code_of(call, *arguments):
    with pytest.raises(RolloutError) as caught:
        call(*arguments)
    assert caught.value.fix == "rollout.engine=shared"
    return caught.value.code


@pytest.mark.more
@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.95), (1.0, 0.5), (0.0, 1.0)]
)
def test_samples_of_the_model_itself_prove_it(writer, temperature, top_p):
    sampling = replace(SAMPLING, temperature=temperature, top_p=top_p)
    rows = rows_of(writer, sampling, ROWS if temperature else 1)
    measured = judge(writer, rows, sampling)
    assert measured.distance < 1e-5
    assert measured.tokens == sum(len(row.ids) for row in rows)


@pytest.mark.more
@pytest.mark.parametrize(
    ("asked", "applied"),
    [
        ((1.0, 1.0), (0.0, 1.0)),  # top_k = 1 of a generation config
        ((1.0, 1.0), (0.5, 1.0)),
        ((0.5, 1.0), (1.0, 1.0)),
        ((1.0, 1.0), (1.0, 0.5)),
        ((1.0, 0.5), (1.0, 1.0)),
        ((0.0, 1.0), (1.0, 1.0)),
    ],
)
def test_samples_of_another_temperature_or_nucleus_are_refused(writer, asked, applied):
    wanted, used = (
        replace(SAMPLING, temperature=temperature, top_p=top_p)
        for temperature, top_p in (asked, applied)
    )
    assert code_of(judge, writer, rows_of(writer, used), wanted) == "R412"


@pytest.mark.more
def test_another_model_and_log_probabilities_after_temperature_are_told_apart(writer, other):
    rows = rows_of(other, WARM)
    assert code_of(judge, writer, rows, WARM) == "R418"
    rows = rows_of(writer, replace(WARM, temperature=0.5, top_p=1.0))
    sampling = replace(WARM, temperature=0.5, top_p=1.0)
    request = probe_request(writer)
    warmed = [replace(row, log_probs=warm(writer, request, row, 0.5)) for row in rows]
    with pytest.raises(RolloutError) as caught:
        judge(writer, warmed, sampling)
    assert (caught.value.code, "raw_logprobs" in caught.value.note) == ("R412", True)


@torch.no_grad()
def warm(vlm, request, row, temperature):
    """Log-probabilities after bans and temperature."""
    from vistill.models.scoring import EncodedGroup, response_states
    from vistill.rollouts.checked_engine import banned_ids

    states = response_states(vlm, [EncodedGroup(request.prompt, (tuple(row.ids),))])
    logits = vlm.head(vlm.vocabulary_size).logits(states).double()
    logits[:, banned_ids(vlm)] = -torch.inf
    chosen = torch.tensor(row.ids)[:, None]
    return (logits / temperature).log_softmax(-1).gather(1, chosen)[:, 0].tolist()


# Requests.


def test_a_request_sets_everything_that_decides_a_response_and_sends_pictures_without_loss(
    writer, prompts
):
    import base64
    import io

    from PIL import Image

    model = ServerModel("m", writer.family, (7, 600), (2,))
    (request,) = make_requests(prompts[:1], [writer.encode(prompts[0])], (0,))
    body = IdsRoute().body(model, request, WARM, 5)
    ids, fields = body["token_ids"], body["sampling_params"]
    assert ids.count(writer.family.image_id) == 1 < request.prompt.ids.count(writer.family.image_id)
    assert (fields["temperature"], fields["top_p"], fields["top_k"], fields["seed"]) == (
        1.0, 0.8, 0, 5,
    )  # fmt: skip
    assert fields["repetition_penalty"] == 1.0
    assert fields["logit_bias"] == {"7": -100, "600": -100}
    (read,) = writer.family.images_as_read(request.prompt)
    chat = ChatRoute().body(model, request, WARM, 5)
    urls = [body["content_parts"][0]["url"]]
    urls += [p["image_url"]["url"] for p in chat["messages"][-1]["content"] if "image_url" in p]
    for url in urls:
        data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(data)).tobytes() == read.tobytes()


def test_a_response_that_ends_at_no_end_of_turn_before_its_limit_is_refused():
    checks.check_ended("URL", [5, 2], {2}, 8)
    checks.check_ended("URL", [5] * 8, {2}, 8)
    assert code_of(checks.check_ended, "URL", [5, 5], {2}, 8) == "R412"
    assert code_of(checks.check_ended, "URL", [], {2}, 8) == "R412"


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://name:word@host:1"])
def test_an_address_that_cannot_be_asked_is_refused_and_no_password_is_shown(url):
    with pytest.raises(ConfigError) as caught:
        checks.checked_url(ServerSettings(url=url))
    assert caught.value.code == "C101"
    assert "word" not in caught.value.render().replace("a password", "")


def test_another_machine_is_asked_only_if_the_environment_allows_it(monkeypatch):
    """No recipe alone sends pictures away."""
    far = ServerSettings(url="https://gpu7.example:8000")
    with pytest.raises(ConfigError) as caught:
        checks.checked_url(far)
    assert "export VISTILL_SERVER_HOSTS=gpu7.example" in caught.value.note
    monkeypatch.setenv("VISTILL_SERVER_HOSTS", "a, GPU7.example")
    assert checks.checked_url(far) == far.url


def test_an_address_may_end_with_the_path_of_the_api():
    assert checks.checked_url(ServerSettings(url="http://localhost:1/v1/")) == "http://localhost:1"


# HTTP.


@contextmanager
def serving(answers):
    """A server with canned answers by path; None closes the connection. Counts what it gets."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            asked.append((self.path, body, self.headers.get("Authorization")))
            answer = answers[self.path]
            answer = answer(body) if callable(answer) else answer
            if answer is None:
                self.close_connection = True
                return
            status, text = answer
            data = (text if isinstance(text, str) else json.dumps(text)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def engine_at(vlm, url, poll=lambda: None, **server):
    server = ServerSettings(url=url, precision="float32", **server)
    return make_engine(vlm, RolloutSettings(engine="server", server=server), poll)


def first_code(vlm, prompts, url, **server):
    requests = make_requests(prompts[:2], [vlm.encode(p) for p in prompts[:2]], (0,))
    with engine_at(vlm, url, **server) as engine:
        return code_of(engine.generate, requests, SAMPLING)


ONE = {"data": [{"id": "m", "max_model_len": 4096}]}
GENERATE = "/inference/v1/generate"


@pytest.mark.parametrize(
    ("models", "code"),
    [
        (None, "R417"),
        ((200, "no JSON"), "R417"),
        ((200, []), "R417"),
        ((401, "who?"), "R417"),
        ((200, {"data": []}), "R418"),
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), "R418"),
        ((200, {"data": [{"id": "m", "max_model_len": 32}]}), "R413"),
    ],
)
def test_a_server_that_is_none_or_not_the_right_one_is_an_error_at_the_first_request(
    writer, prompts, models, code
):
    with serving({"/v1/models": models}) as (url, asked):
        assert first_code(writer, prompts, url) == code
    assert {path for path, *_ in asked} <= {"/v1/models", GENERATE}


def test_no_server_at_the_address_is_an_error_at_the_first_request(writer, prompts):
    with serving({}) as (url, _):
        pass
    assert first_code(writer, prompts, url) == "R417"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (None, "R417"),
        ((500, {"error": {"message": "EngineCore encountered an issue"}}), "R417"),
        ((500, "CUDA out of memory"), "R417"),
        ((400, "At most 0 image(s) may be provided in one prompt."), "R418"),
        ((400, "At most 1 image(s) may be provided in one prompt."), "R413"),
        ((400, "This model's maximum context length is 8 tokens"), "R413"),
        ((200, {"choices": [{"text": "hello"}]}), "R417"),
    ],
)
def test_a_server_that_refuses_dies_or_returns_text_is_an_error(writer, prompts, answer, code):
    with serving({"/v1/models": (200, ONE), GENERATE: answer}) as (url, _):
        assert first_code(writer, prompts, url) == code


@pytest.mark.parametrize("count", [0, 32])
def test_a_lost_or_doubled_picture_is_an_error(writer, prompts, count):
    """The ids that the server reports are compared with the model's."""

    def answer(body):
        image, ids = writer.family.image_id, []
        for token in body["token_ids"]:
            ids += [token] * (count if token == image else 1)
        content = [{"logprob": -1.0}]
        choice = {"token_ids": [9], "logprobs": {"content": content}}
        return 200, {"prompt_token_ids": ids, "choices": [choice]}

    with serving({"/v1/models": (200, ONE), GENERATE: answer}) as (url, _):
        assert first_code(writer, prompts, url) == "R412"


def test_the_key_of_the_server_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv(checks.KEY_VARIABLE, "word")
    with serving({"/v1/models": (200, ONE)}) as (url, asked):
        ServerClient(ServerSettings(url=url)).ask("/v1/models")
    assert asked == [("/v1/models", None, "Bearer word")]


def test_a_silent_server_and_a_signal_end_all_requests():
    """The requests that hang are closed, so their threads end."""
    hang = threading.Event()

    def answer(body):
        hang.wait(60)
        return 200, {}

    with serving({GENERATE: answer}) as (url, asked):
        client = ServerClient(ServerSettings(url=url, timeout=0.2))
        assert code_of(client.ask_all, GENERATE, [{}] * 3) == "R417"

        def poll():
            if len(asked) >= 6:
                raise TimeoutError

        client = ServerClient(ServerSettings(url=url), poll)
        with pytest.raises(TimeoutError):
            client.ask_all(GENERATE, [{}] * 3)
        for _ in range(100):
            if not client.opened:
                break
            threading.Event().wait(0.05)
        assert not client.opened
        hang.set()


def test_weights_that_change_while_a_server_writes_are_refused(writer):
    with engine_at(writer, "http://127.0.0.1:1") as engine:
        engine.sync_weights(1)
        engine.sync_weights(2)
        parameter = writer.model.get_input_embeddings().weight
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter[7, 3] += 1
        try:
            assert code_of(engine.sync_weights, 3) == "R419"
        finally:
            with torch.no_grad():
                parameter.copy_(before)
