"""The engine `vllm` with a real vLLM. `make test-vllm` installs it, and fails where none is."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from conftest import build_model, build_untied
from plans import prepare_run
from vllm_faults import FAULTS

from vistill.data.diagrams import diagram_prompts
from vistill.data.stored_prompts import with_content_hashes
from vistill.errors import ModelError, RolloutError
from vistill.evaluation.settings import EvalSettings
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import adapter_parameters, add_adapters
from vistill.models.loading import load_vlm
from vistill.models.scoring import EncodedGroup, score
from vistill.objectives import VAOPD
from vistill.rollouts import vllm_engine, vllm_process
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.settings import RolloutSettings, VLLMSettings
from vistill.rollouts.vllm_checks import VARIABLE
from vistill.rollouts.vllm_memory import share
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.loop import Plan, run
from vistill.training.models_of_run import Models
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import LoadedImage, Prompt

#: CI sets this: a test then fails where it would be skipped.
NEEDED = "VISTILL_NEEDS_VLLM"
REASON = f"no environment of vLLM: make test-vllm, or set {VARIABLE} to its interpreter"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get(VARIABLE) and not os.environ.get(NEEDED), reason=REASON),
]
VLLM = VLLMSettings(cache_gb=0.25, max_length=1024)
SETTINGS = RolloutSettings(engine="vllm", vllm=VLLM, rows_per_call=32)
SAMPLING = Sampling(seed=3, step=7, temperature=1.0, top_p=0.9, max_new_tokens=12, log_probs=True)
#: Words that make a prompt longer than one block of the prefix cache.
LONG = "Which of the numbers is larger? " * 40


def change(vlm, factor=1.02):
    """Change every weight, as an update does."""
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            parameter.mul_(factor)


def requests_for(vlm, prompts, siblings=(0, 1, 2)):
    return make_requests(prompts, [vlm.encode(p) for p in prompts], siblings)


@pytest.fixture(scope="module")
def some_prompts(prompts):
    """Pictures of several sizes, two of them, a long prompt, and one without a picture."""
    picture = prompts[0].images[0].load().convert("RGB")
    odd = [LoadedImage(picture.resize(size)) for size in ((200, 100), (37, 91))]
    return [
        *prompts[:3],
        Prompt("wide", (odd[0], "What is it?")),
        Prompt("two", (odd[0], "and", odd[1], "Which?")),
        Prompt("long", (odd[1], LONG)),
        Prompt("text", ("Which?",)),
    ]


class Planted:
    """A process of vLLM with a fault that can be changed while it runs."""

    def __init__(self, folder):
        self.file = folder / "fault"
        self.set("")
        head, _, main = vllm_process.BOOT.rpartition("from vistill")
        self.boot = f"{head}FAULT = {str(self.file)!r}\n{FAULTS}\nfrom vistill{main}"

    def set(self, name):
        self.file.write_text(name)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    fault = Planted(tmp_path_factory.mktemp("fault"))
    before, vllm_process.BOOT = vllm_process.BOOT, fault.boot
    yield fault
    vllm_process.BOOT = before


@pytest.fixture(scope="module")
def writer():
    """The shipped student, whose pictures matter."""
    return load_vlm("vistill/assets/student")


@pytest.fixture(scope="module")
def module_engine(planted, writer):
    with make_engine(writer, SETTINGS) as engine:
        yield engine


@pytest.fixture
def engine(module_engine, planted):
    """The engine of this module, synced and without a fault."""
    planted.set("")
    module_engine.wake()
    module_engine.sync_weights(1)
    yield module_engine
    planted.set("")


def process_of(engine):
    return vllm_engine.PROCESSES[engine.inner.key][0]


def code_of(call, *arguments, **named):
    with pytest.raises((RolloutError, ModelError)) as caught:
        call(*arguments, **named)
    assert "rollout.engine=shared" in caught.value.fix
    return caught.value.code


def same_as_shared(engine, vlm, prompts, sampling=SAMPLING):
    """Whether all rollouts are those of our own engine, and how far log-probabilities are."""
    asked = requests_for(vlm, prompts)
    theirs = [r for group in engine.generate(asked, sampling) for r in group]
    groups = make_engine(vlm, RolloutSettings()).generate(asked, sampling)
    ours = [r for group in groups for r in group]
    if [replace(r, log_probs=None) for r in theirs] != [replace(r, log_probs=None) for r in ours]:
        return False
    pairs = zip(theirs, ours, strict=True)
    return all(a.log_probs == pytest.approx(b.log_probs, abs=1e-4) for a, b in pairs)


@pytest.mark.parametrize("noise", ["generator", "counter"])
@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.95), (1.0, 0.5), (0.0, 1.0)]
)
def test_tokens_and_log_probabilities_are_those_of_our_engine_and_of_our_scoring(
    engine, writer, some_prompts, noise, temperature, top_p
):
    sampling = replace(
        SAMPLING, temperature=temperature, top_p=top_p, noise=noise, max_new_tokens=40
    )
    assert same_as_shared(engine, writer, some_prompts, sampling)
    asked = requests_for(writer, some_prompts[:5], (0,))
    for request, (rollout,) in zip(asked, engine.generate(asked, sampling), strict=True):
        with torch.no_grad():
            ids = torch.tensor(rollout.ids)
            groups, size = [EncodedGroup(request.prompt, (rollout.ids,))], writer.vocabulary_size
            ours = score(writer, groups, ids, size, "log_prob").sampled()
        assert rollout.log_probs == pytest.approx(ours.tolist(), abs=1e-4)


def test_responses_do_not_depend_on_the_batch_or_on_scarce_memory(engine, writer, some_prompts):
    asked = requests_for(writer, some_prompts)
    together = engine.generate(asked, SAMPLING)
    assert engine.generate(asked[::-1], SAMPLING)[::-1] == together
    alone = [engine.generate([request], SAMPLING)[0] for request in asked]
    assert [[r.ids for r in g] for g in alone] == [[r.ids for r in g] for g in together]
    many = requests_for(writer, some_prompts, range(12))  # 84 rows, 32 at a time
    assert [g[:3] for g in engine.generate(many, SAMPLING)] == together


def test_a_response_ends_at_the_students_end_of_turn_and_has_no_banned_id(engine, writer, prompts):
    rollouts = [
        r
        for group in engine.generate(
            requests_for(writer, prompts[:4]), replace(SAMPLING, max_new_tokens=150)
        )
        for r in group
    ]
    assert any(not r.finish.is_truncated() for r in rollouts)  # the check of R405 and R406 passed


def test_every_sync_takes_over_all_weights_and_drops_every_cache(engine, writer, some_prompts):
    for version in (2, 3, 4):
        assert same_as_shared(engine, writer, some_prompts)
        change(writer, 1.03 if version != 4 else 1.03**-2)
        engine.sync_weights(version)
        assert engine.version == version
        assert process_of(engine).process.pid == process_of(engine).process.pid
    assert same_as_shared(engine, writer, some_prompts)


def test_weights_that_vllm_has_already_are_not_sent_again(engine, writer, some_prompts):
    before = process_of(engine).serial
    engine.sync_weights(8)
    with make_engine(writer, SETTINGS) as second:  # as an evaluation does
        assert same_as_shared(second, writer, some_prompts[:2])
        assert process_of(second) is process_of(engine)
    assert process_of(engine).serial == before
    assert same_as_shared(engine, writer, some_prompts[:2])


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("stale weights", "R414"),
        ("stale head", "R414"),
        ("stale caches", "R414"),
        ("other picture", "R414"),
        ("lost picture", "R412"),
        ("old serial", "R408"),
        ("says another temperature", "R412"),
    ],
)
def test_a_sync_after_which_vllm_is_not_the_student_is_an_error(
    engine, writer, planted, some_prompts, name, code
):
    planted.set(name)
    change(writer)
    assert code_of(engine.sync_weights, 2) == code
    assert code_of(engine.generate, requests_for(writer, some_prompts), SAMPLING) == code
    planted.set("")
    engine.sync_weights(3)
    assert same_as_shared(engine, writer, some_prompts)


@pytest.mark.parametrize(
    ("name", "code"),
    [("lost picture", "R412"), ("expanded picture", "R412"), ("says another temperature", "R412")],
)
def test_a_call_that_vllm_reads_in_another_way_is_an_error(
    engine, writer, planted, prompts, name, code
):
    planted.set(name)
    assert code_of(engine.generate, requests_for(writer, prompts[:2]), SAMPLING) == code


def test_a_temperature_that_vllm_does_not_admit_is_found_by_the_canary(
    engine, writer, planted, prompts
):
    from functools import partial

    from vistill.training.canary.engine import check_engine
    from vistill.training.canary.reader import ReaderProbe
    from vistill.training.precision import autocast
    from vistill.types import Reader

    samples = with_content_hashes(prompts[:4])
    partners = {p.id: q for p, q in zip(samples, samples[1:] + samples[:1], strict=True)}
    models = replace(Models(writer, None, writer.vocabulary_size), partners=partners)
    precision = partial(autocast, TrainSettings(), writer.device)
    probe = ReaderProbe(Reader.STUDENT, models, samples, (20, 21), precision, 4)
    recipe = replace(SETTINGS, temperature=1.0, top_p=1.0)
    check_engine(probe, engine, recipe, 0)
    planted.set("another temperature")
    with pytest.raises(ModelError) as caught:
        check_engine(probe, engine, recipe, 0)
    assert caught.value.code == "V810"


@pytest.mark.parametrize("break_it", ["partial", "nan", "shape", "unknown", "precision"])
def test_a_wrong_update_is_refused_by_vllms_side_before_anything_is_overwritten(
    engine, writer, some_prompts, break_it
):
    process, name = process_of(engine), "model.language_model.norm.weight"
    weights = vllm_engine.host_weights(writer, "float32")
    broken = {
        "partial": {n: x for n, x in weights.items() if n != name},
        "nan": weights | {name: weights[name] * float("nan")},
        "shape": weights | {name: weights[name][:-1].contiguous()},
        "unknown": weights | {"model.other.weight": weights[name]},
        "precision": weights | {name: weights[name].bfloat16()},
    }[break_it]
    pid, serial = process.process.pid, process.serial
    head = {"serial": serial + 1, "digest": vllm_engine.digest_of(broken)}
    message = {"op": "sync", **head, "weights": vllm_engine.described(broken)}
    with share(broken)[0] as block:
        assert code_of(process.ask, message, shared=block) == "R415"
    assert (process.process.pid, process.serial) == (pid, serial)
    assert same_as_shared(engine, writer, some_prompts[:2])


def test_weights_that_are_not_finite_are_never_sent(engine, writer, some_prompts):
    parameter = writer.model.get_input_embeddings().weight
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter[7, 3] = float("nan")
    assert code_of(engine.sync_weights, 2) == "R415"
    with torch.no_grad():
        parameter.copy_(before)
    assert same_as_shared(engine, writer, some_prompts[:2])


def test_bytes_that_changed_on_the_way_are_refused(engine, writer):
    process, weights = process_of(engine), vllm_engine.host_weights(writer, "float32")
    head = {"serial": process.serial + 1, "digest": "0" * 32}
    message = {"op": "sync", **head, "weights": vllm_engine.described(weights)}
    with share(weights)[0] as block:
        assert code_of(process.ask, message, shared=block) == "R415"


def test_a_model_of_another_vocabulary_or_shape_is_refused(engine, tokenizer):
    other, inner = build_model(tokenizer, 3), engine.inner
    right, key = inner.vlm, vllm_engine.PROCESSES[inner.key]
    inner.vlm = other
    vllm_engine.PROCESSES[inner.key] = key
    try:
        assert code_of(engine.sync_weights, 2) == "R415"
    finally:
        del vllm_engine.PROCESSES[inner.key]
        inner.vlm = right


def test_a_weight_that_vllm_has_and_the_student_does_not_is_an_error(engine, writer, planted):
    planted.set("partial load")
    process = process_of(engine)
    change(writer)
    assert code_of(engine.sync_weights, 2) == "R415"
    assert not process.is_open  # other weights were overwritten
    assert process.process.poll() is not None


def test_generating_with_weights_of_another_sync_is_refused(engine, writer, prompts):
    process = process_of(engine)
    asked = requests_for(writer, prompts[:1])
    assert code_of(engine.inner.ask_rows, process, "0" * 32, asked, SAMPLING) == "R408"


def test_prompts_beyond_the_limits_say_which_limit_they_need(engine, writer, some_prompts):
    asked = requests_for(writer, some_prompts[:1])
    with pytest.raises(RolloutError) as caught:
        engine.generate(asked, replace(SAMPLING, max_new_tokens=2000))
    length = len(asked[0].prompt.ids) + 2000
    assert (caught.value.code, f"rollout.vllm.max_length={length}" in caught.value.fix) == (
        "R413",
        True,
    )


def test_the_generation_config_of_a_checkpoint_changes_no_response(tokenizer, some_prompts):
    """Defaults of a folder (top_k, top_p, a repetition penalty) never reach vLLM."""
    vlm = load_vlm("vistill/assets/student")
    config = vlm.model.generation_config
    config.top_k, config.top_p, config.temperature, config.do_sample = 1, 0.1, 0.1, True
    config.repetition_penalty = 5.0
    with make_engine(vlm, SETTINGS) as engine:
        engine.sync_weights(1)
        assert same_as_shared(engine, vlm, some_prompts)


def test_a_signal_stops_generation_and_the_process(writer, prompts):
    calls = []

    def poll():
        calls.append(1)
        if len(calls) > 3 and stop:
            raise TimeoutError

    stop = False
    settings = replace(SETTINGS, rows_per_call=31)
    with make_engine(writer, settings, poll) as engine:
        engine.sync_weights(1)
        stop, process = True, process_of(engine)
        calls.clear()
        with pytest.raises(TimeoutError):
            engine.generate(requests_for(writer, prompts[:1]), SAMPLING)
        assert process.process.poll() is not None
        assert not process.folder.exists()


def test_a_process_that_is_killed_or_hangs_is_an_error_and_the_next_call_starts_another(
    engine, writer, planted, prompts
):
    """In one test, because each needs a start of vLLM."""
    asked = requests_for(writer, prompts[:2])
    expected = engine.generate(asked, SAMPLING)
    os.kill(process_of(engine).process.pid, signal.SIGKILL)
    process_of(engine).process.wait()
    assert code_of(engine.generate, asked, SAMPLING) == "R410"
    assert engine.generate(asked, SAMPLING) == expected
    planted.set("killed")
    assert code_of(engine.generate, asked, SAMPLING) == "R410"
    planted.set("")
    assert engine.generate(asked, SAMPLING) == expected
    planted.set("hangs")
    process = process_of(engine)
    process.settings = replace(process.settings, timeout=2.0)
    before = time.monotonic()
    assert code_of(engine.generate, asked, SAMPLING) == "R410"
    assert time.monotonic() - before < 60
    assert process.process.poll() is not None
    planted.set("raises")
    assert code_of(engine.generate, asked, SAMPLING) == "R411"


def test_too_little_memory_for_keys_and_values_says_so(writer):
    settings = replace(SETTINGS, vllm=replace(VLLM, cache_gb=0.0001))
    with make_engine(writer, settings) as engine, pytest.raises(RolloutError) as caught:
        engine.sync_weights(1)
    assert (caught.value.code, "rollout.vllm.cache_gb" in caught.value.note) == ("R411", True)


def test_an_untied_head_and_merged_adapters_are_synced(tokenizer, some_prompts):
    pytest.importorskip("peft")
    untied = build_untied(tokenizer, 3)
    with make_engine(untied, SETTINGS) as engine:
        engine.sync_weights(1)
        assert same_as_shared(engine, untied, some_prompts)
        change(untied)
        engine.sync_weights(2)
        assert same_as_shared(engine, untied, some_prompts)
    adapted = add_adapters(load_vlm("vistill/assets/student"), LoraSettings(), 0, "student")
    with make_engine(adapted, SETTINGS) as engine:
        engine.sync_weights(1)
        with torch.no_grad():
            for parameter in adapter_parameters(adapted.model).values():
                parameter.add_(0.05)
        engine.sync_weights(2)
        assert process_of(engine).serial == 2
        assert same_as_shared(engine, adapted, some_prompts)


def plan_of(tokenizer, teacher, engine, **changes):
    student, train = load_vlm("vistill/assets/student"), diagram_prompts("train", 8, 0)
    return Plan(
        models=Models(student, load_vlm("vistill/assets/teacher").freeze(), 590),
        objective=VAOPD(),
        train_prompts=with_content_hashes(train),
        eval_prompts=diagram_prompts("val", 3, 0),
        train=TrainSettings(prompts_per_step=2, steps=20, lr=1e-3),
        rollout=replace(
            SETTINGS, engine=engine, per_prompt=2, max_new_tokens=16, all_truncated="go_on"
        ),
        save=SaveSettings(every=5, keep=1),
        evaluation=EvalSettings(every=10, limit=3, max_new_tokens=8, blind=False, greedy=False),
        seed=5,
        num_steps=20,
        fingerprint="test",
        **changes,
    )


def test_twenty_steps_of_va_opd_are_those_of_our_engine_and_resume_to_the_same_bits(
    tokenizer, teacher, tmp_path
):
    """With a sync at every step, evaluations in between, and the canary."""
    results, processes = {}, set(vllm_engine.PROCESSES)
    for name, stops in {"shared": (None,), "vllm": (7, None)}.items():
        folder = RunFolder(tmp_path / name)
        for stop in stops:
            plan = plan_of(tokenizer, teacher, name, stop_after=stop)
            run(prepare_run(plan, folder), folder)
        lines = [(folder.path / f"{x}.jsonl").read_text() for x in ("metrics", "evaluations")]
        results[name] = weights_hash(plan.models.student), *lines
    assert results["vllm"] == results["shared"]
    assert len(results["vllm"][1].splitlines()) == 20
    assert set(vllm_engine.PROCESSES) == processes
