"""What the engine `vllm` can be tested for without vLLM: messages, updates, noise, checks."""

import gc
import re
import socket
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from vistill.errors import RolloutError
from vistill.models.adapters import merge_adapters, merged_weights
from vistill.rollouts import vllm_checks as checks
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.keyed_noise import rollout_seed
from vistill.rollouts.samplers import make_sampler
from vistill.rollouts.settings import VLLMSettings
from vistill.rollouts.vllm_engine import host_weights, probe_ids, probe_prompt
from vistill.rollouts.vllm_memory import share, tensors_in
from vistill.rollouts.vllm_messages import Closed, receive, send
from vistill.rollouts.vllm_rows import Row, make_row_sampler
from vistill.rollouts.vllm_update import (
    digest_of,
    is_finite,
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
    before = weights() | {"c": torch.tensor(2.0), "d": torch.ones(3, 0), "e": torch.rand(5, 4).T}
    block, sent = share(before)
    after = tensors_in(block.memory, spec_of(before))
    block.close()
    assert all(torch.equal(sent[n], x) and torch.equal(after[n], x) for n, x in before.items())
    assert (
        digest_of(after)
        == digest_of(sent)
        == digest_of({n: x.contiguous() for n, x in before.items()})
    )
    assert update_problem(after, spec_of(before)) is None
    rounded = share(before, "bfloat16")
    rounded[0].close()
    assert all(torch.equal(rounded[1][name], x.bfloat16()) for name, x in before.items())


@pytest.fixture
def no_file_stays_open():
    before = set(Path("/proc/self/fd").iterdir())
    yield
    gc.collect()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_shared_memory_is_the_same_on_both_sides_and_outlives_its_descriptor(
    pair, no_file_stays_open
):
    block, sent = share(weights())
    with block:
        send(pair[0], {"op": "sync"}, [b"x"], block)
    message, blocks = receive(pair[1])
    assert (message, blocks[0]) == ({"op": "sync"}, bytearray(b"x"))
    after = tensors_in(blocks[1], spec_of(sent))
    assert digest_of(after) == digest_of(weights())
    sent["a.weight"][0, 0] = 7.0
    assert after["a.weight"][0, 0] == 7.0


def test_shared_memory_without_its_length_or_of_another_length_is_refused(pair, no_file_stays_open):
    block, sent = share(weights())
    frames = [
        (b'{"blocks":[],"shared":128}', []),  # no memory
        (b'{"blocks":[]}', [block.descriptor]),  # no length
        (b'{"blocks":[],"shared":1000000}', [block.descriptor]),  # too long
        (b'{"blocks":[],"shared":"1"}', [block.descriptor]),
    ]
    for text, numbers in frames:
        socket.send_fds(pair[0], [len(text).to_bytes(8, "big") + text], numbers)
        with pytest.raises(ValueError):
            receive(pair[1])
    block.close()
    with pytest.raises(ValueError, match="a block of 128 bytes for weights of 64"):
        tensors_in(block.memory, {"a.weight": spec_of(sent)["a.weight"]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_shows_wherever_it_is(dtype):
    assert is_finite(torch.empty(0, dtype=dtype))
    for size in (*range(1, 70), 1025):
        whole = torch.randn(size, generator=torch.manual_seed(size)).to(dtype)
        assert is_finite(whole)
        for place in range(min(size, 70)):
            for wrong in (float("nan"), float("inf"), -float("inf")):
                broken = whole.clone()
                broken[-1 - place] = wrong
                assert not is_finite(broken)


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
