"""The engine `server` with a real vLLM server. `make test-vllm` installs it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from urllib.request import urlopen

import pytest
import torch
from conftest import REPO, build_model
from test_vllm_real import NEEDED, REASON

from vistill.cli.target import recipe_for
from vistill.data.diagrams import diagram_prompts
from vistill.errors import RolloutError
from vistill.models.loading import load_vlm
from vistill.models.scoring import EncodedGroup, response_states, score
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.server_routes import ChatRoute
from vistill.rollouts.server_scores import SampledTokenTeacher
from vistill.rollouts.settings import RolloutSettings, ServerSettings
from vistill.rollouts.vllm_checks import VARIABLE
from vistill.types import LoadedImage, Prompt, View
from vistill.views import ViewContext, apply_view

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not os.environ.get(VARIABLE) and not os.environ.get(NEEDED), reason=REASON),
]
STUDENT = REPO / "vistill" / "assets" / "student"
GREEDY = Sampling(seed=3, step=7, temperature=0.0, top_p=1.0, max_new_tokens=40, log_probs=True)
WARM = replace(GREEDY, temperature=1.0, top_p=0.9, max_new_tokens=12)
#: Defaults of a checkpoint that would change every response.
DEFAULTS = {"top_k": 1, "top_p": 0.1, "temperature": 0.1, "repetition_penalty": 5.0}
OPTIONS = [
    "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--max-num-seqs", "32",
    "--host", "127.0.0.1", "--enable-scale-out", "--served-model-name", "student",
    "--limit-mm-per-prompt", '{"image": 2, "video": 0}',
    "--no-enable-chunked-prefill",  # else vLLM on a CPU ends where a seeded prompt is split
]  # fmt: skip
CONNECT = socket.socket.connect


@pytest.fixture(autouse=True)
def _this_machine(_no_network, monkeypatch):
    """Connections to this machine are allowed."""
    refuse = socket.socket.connect

    def connect(self, address, *rest):
        is_here = self.family == socket.AF_INET and address[0] == "127.0.0.1"
        return (CONNECT if is_here else refuse)(self, address, *rest)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with the shipped student, and its address."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(STUDENT, folder / "model")
    file = folder / "model" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **DEFAULTS, "do_sample": True}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = {
        "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    sizes = {"size": {"shortest_edge": 256, "longest_edge": 8192}}
    command = [
        os.environ[VARIABLE], "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(folder / "model"), "--port", str(port), *OPTIONS,
        "--mm-processor-kwargs", json.dumps(sizes),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=kept | fixed, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, folder / "log")
        yield url, process
    finally:
        end(process)


def wait_for(url, process, log):
    """Wait until the server answers."""
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(log.read_text()[-2000:])


def end(process):
    """End a server with the processes that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


@pytest.fixture(scope="module")
def writer():
    return load_vlm(str(STUDENT))


@pytest.fixture(scope="module")
def some_prompts():
    """Diagrams, a resized picture, two pictures, and none."""
    prompts = diagram_prompts("val", 5, 0)
    picture = prompts[0].images[0].load().convert("RGB")
    odd = [LoadedImage(picture.resize(size)) for size in ((200, 100), (37, 91))]
    return [
        *prompts[:3],
        Prompt("wide", (odd[0], "What is it?")),
        Prompt("two", (odd[0], "and", odd[1], "Which?"), system="Be brief."),
        Prompt("text", ("Which?",)),
    ]


def requests_for(vlm, prompts, siblings=(0, 1)):
    return make_requests(prompts, [vlm.encode(p) for p in prompts], siblings)


def engine_at(vlm, url, **server):
    own = ServerSettings(url=url, precision="float32", **server)
    return make_engine(vlm, RolloutSettings(engine="server", server=own))


def code_of(vlm, url, requests, sampling=WARM, **server):
    with engine_at(vlm, url, **server) as engine, pytest.raises(RolloutError) as caught:
        engine.generate(requests, sampling)
    assert caught.value.fix == "rollout.engine=shared"
    return caught.value.code


@pytest.mark.parametrize("route", ["ids", "chat"])
def test_greedy_responses_are_those_of_our_engine_and_samples_prove_themselves(
    server, writer, some_prompts, route
):
    """Also with a generation config that would sample in another way."""
    asked = requests_for(writer, some_prompts)
    ours = make_engine(writer, RolloutSettings()).generate(asked, GREEDY)
    with engine_at(writer, server[0], model="student") as engine:
        if route == "chat":
            engine.inner.route = ChatRoute()
        theirs = engine.generate(asked, GREEDY)
        assert theirs == ours
        for group, expected in zip(theirs, ours, strict=True):
            for a, b in zip(group, expected, strict=True):
                assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)
        first, again = engine.generate(asked, WARM), engine.generate(asked[::-1], WARM)[::-1]
        assert first == again  # a seed of its own for each response
        assert any(len({r.ids for r in group}) > 1 for group in first)
        assert max(engine.inner.proven.values()) < 1e-5


def test_a_server_of_another_model_vocabulary_or_name_is_refused(
    server, some_prompts, writer, tokenizer
):
    url = server[0]
    other = load_vlm(str(STUDENT.with_name("teacher")))
    assert code_of(other, url, requests_for(other, some_prompts[:1])) == "R418"
    assert code_of(writer, url, requests_for(writer, some_prompts[:1]), model="x") == "R418"
    untrained = build_model(tokenizer, 3)
    assert code_of(untrained, url, requests_for(untrained, some_prompts[:1])) in ("R412", "R418")
    with torch.no_grad():
        changed = load_vlm(str(STUDENT))
        for parameter in changed.model.parameters():
            parameter.mul_(1.02)
    assert code_of(changed, url, requests_for(changed, some_prompts[:1])) == "R418"


def test_what_is_too_long_or_has_too_many_pictures_is_refused(server, writer, some_prompts):
    url, picture = server[0], some_prompts[0].images[0]
    long = replace(WARM, max_new_tokens=1020)
    assert code_of(writer, url, requests_for(writer, some_prompts[:1]), long) == "R413"
    three = [Prompt("three", (picture, picture, picture, "Which?"))]
    assert code_of(writer, url, requests_for(writer, three)) == "R413"


def test_the_sampled_token_teacher_has_the_exact_log_probabilities_under_both_views(
    server, writer, some_prompts
):
    """And the mean of `log pS - log pT` over sampled tokens is the exact KL within its error.

    The shipped teacher is the student here: the server has the other model.
    """
    student, diagrams = load_vlm(str(STUDENT.with_name("teacher"))), diagram_prompts("val", 12, 1)
    asked = requests_for(student, diagrams, range(4))
    sampling = replace(GREEDY, temperature=1.0)
    groups = make_engine(student, RolloutSettings()).generate(asked, sampling)
    responses = [tuple(r.ids for r in group) for group in groups]
    ids = torch.tensor([i for group in responses for row in group for i in row])
    settings = RolloutSettings(server=ServerSettings(url=server[0], precision="float32"))
    scorer, views = SampledTokenTeacher(writer, settings), {}
    for view in (View.FULL, View.PIXELATED):
        seen = [writer.encode(apply_view(p, view, ViewContext())) for p in diagrams]
        read = [EncodedGroup(p, r) for p, r in zip(seen, responses, strict=True)]
        with torch.no_grad():
            exact = score(writer, read, ids, writer.vocabulary_size, "log_prob").sampled()
            logits = writer.head(writer.vocabulary_size).logits(response_states(writer, read))
        views[view] = scorer.log_probs(read), exact, logits.log_softmax(-1)
    sampled, exact, teacher = views[View.FULL]
    assert torch.allclose(sampled, exact, atol=1e-4)
    blind, exact_blind, _ = views[View.PIXELATED]
    assert torch.allclose(sampled - blind, exact - exact_blind, atol=2e-4)
    assert float((exact - exact_blind).abs().max()) > 0.1
    own = [EncodedGroup(r.prompt, rows) for r, rows in zip(asked, responses, strict=True)]
    with torch.no_grad():
        logits = student.head(student.vocabulary_size).logits(response_states(student, own))
    student_log = logits.log_softmax(-1)
    exact_kl = (student_log.exp() * (student_log - teacher)).sum(-1)
    estimate = student_log.gather(1, ids[:, None])[:, 0] - sampled
    error = float((estimate - exact_kl).std()) / len(ids) ** 0.5
    difference = float(estimate.mean() - exact_kl.mean())
    print(
        f"tokens {len(ids)}, sampled {float(estimate.mean()):.4f}, exact"
        f" {float(exact_kl.mean()):.4f} +- {error:.4f}, deviation of a token"
        f" {float((estimate - exact_kl).std()):.3f}, log-probabilities"
        f" {float((sampled - exact).abs().max()):.1e}, advantage"
        f" {float((sampled - blind - exact + exact_blind).abs().max()):.1e}"
    )
    assert abs(difference) < 4 * error


TINY = [
    "data.diagrams.train=8", "data.diagrams.eval=4", "rollout.per_prompt=2", "eval.every=0",
    "rollout.max_new_tokens=16", "rollout.all_truncated=go_on", "train.prompts_per_step=4",
    "train.steps=2", "save.every=0", f"teacher.model={STUDENT}",
    f"student.model={STUDENT.with_name('teacher')}", "rollout.server.precision=float32",
]  # fmt: skip


def command(server, folder, *words):
    """A command as a user types it; what it printed."""
    url = f"rollout.server.url={server[0]}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-m", "vistill", *words, url], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_generate_and_the_responses_of_a_teacher_come_from_the_server_by_command(server, tmp_path):
    """With `kd` it writes for the teacher; the student of the run is asked without it."""
    own = ["rollout.engine=server", "rollout.server.precision=float32", "data.limit=2"]
    written = [*own, "rollout.temperature=0", "rollout.max_new_tokens=8", "--out", "out.jsonl"]
    shown = command(server, tmp_path, "generate", str(STUDENT), "diagrams", *written)
    assert "2 responses in out.jsonl" in shown
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [8, 8]
    train = ["train", "tiny_vllm.yaml", "method=kd", "rollout.engine=server", "run=kd", *TINY]
    command(server, tmp_path, *train)
    stored = (tmp_path / "kd" / "teacher_responses.jsonl").read_text().splitlines()
    assert len(stored) == 8
    assert recipe_for(str(tmp_path / "kd"), [], "chat").rollout.engine == "shared"


def test_a_run_whose_teacher_is_on_the_server_is_the_run_with_a_loaded_teacher(server, tmp_path):
    """VA-OPD with the one-token estimate, both views; nothing is chosen silently."""
    logs = []
    for scorer in ("model", "sampled_token"):
        words = ["method=va_opd", "va_opd.estimator=sampled", f"train.teacher_scorer={scorer}"]
        command(
            server,
            tmp_path,
            "train",
            "tiny_vllm.yaml",
            "rollout.engine=shared",
            *words,
            f"run={scorer}",
            *TINY,
        )
        lines = (tmp_path / scorer / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for exact, sampled in zip(*logs, strict=True):
        assert {"loss/sampled_policy", "loss/sampled_reverse_kl", "va/mean"} <= sampled.keys()
        assert sampled == pytest.approx(exact, abs=1e-3, rel=1e-3)


def test_a_server_that_is_killed_during_a_call_is_an_error(server, writer, some_prompts):
    """The last test: the server is gone afterwards."""
    url, process = server
    asked = requests_for(writer, some_prompts[:2])
    with engine_at(writer, url) as engine:
        engine.generate(asked, WARM)
        end(process)
        with pytest.raises(RolloutError) as caught:
            engine.generate(asked, WARM)
        assert (caught.value.code, caught.value.fix) == ("R417", "rollout.engine=shared")
