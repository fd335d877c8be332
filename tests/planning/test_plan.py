"""`vistill plan`: every recipe has one, it is true to the measured run, and its fixes work."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_llava import build_llava
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vistill.cli.main import entry
from vistill.config import load_recipe
from vistill.data.counting import count_training_rows
from vistill.data.loading import load_train_and_eval
from vistill.data.settings import DataSettings
from vistill.errors import ConfigError, ModelError, StorageError
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import add_adapters
from vistill.models.families.base import Family
from vistill.planning.cost import BANDWIDTH_SHARE
from vistill.planning.gpus import GPUS, PROFILES, find_gpu
from vistill.planning.host_bytes import LOCKED_FACTOR, host_bytes
from vistill.planning.memory import GIB
from vistill.planning.run_plan import Sizes
from vistill.planning.shapes import MODELS, shipped_shapes
from vistill.planning.table import format_plan, plan_dict
from vistill.recipe_files import shipped_recipes
from vistill.studies.plan import PlanOptions, check_fits, plan_stages

RECIPE = "va_opd_qwen3vl_8b_to_2b.yaml"
COLUMNS = ["data.columns.prompt=question", "data.columns.answer=answer", "data.eval="]
BENCHMARK = Path(__file__).parents[2] / "benchmarks/results/gpu.json"


def plan_of(recipe, *words, **options):
    (plan,) = plan_stages(recipe, words, PlanOptions(**options)).values()
    return plan


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_has_a_plan(recipe):
    for name, plan in plan_stages(recipe, (), PlanOptions()).items():
        text = format_plan(plan, name)
        assert plan.cost.steps is not None or "--rows" in text
        lines = [line for line in text.splitlines() if "NOT CONFIRMED" not in line]
        table = [line for line in lines if not line.startswith(("Seconds", "run"))]
        assert max(map(len, table)) <= 110
        values = json.loads(json.dumps(plan_dict(plan)))
        assert values["phases"]["learn"]["total"] > 0
        assert all(phase["total"] > 0 for phase in values["phases"].values())


def test_every_model_of_a_shipped_recipe_has_a_shape_with_its_source():
    shapes = shipped_shapes()
    for recipe in shipped_recipes():
        for plan in plan_stages(recipe, (), PlanOptions()).values():
            for shape in (plan.student, plan.teacher):
                assert shape is None or shape.name.startswith("vistill:") or shape.name in shapes


#: The GPU for the memory that recipes name.
GPU_OF = {"24": "4090", "80": "H100", "180": "B200"}


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_a_recipe_fits_on_the_gpu_that_it_says_it_is_for(recipe):
    """Those of VGS said 80 GB and needed 92 GiB, and that of its teacher 178 GiB."""
    named = re.search(
        r"for one GPU with (\d+) GB", shipped_recipes()[recipe].read_text(), re.IGNORECASE
    )
    assert named or "qwen3vl" not in recipe, "recipes of real sizes name their GPU"
    if named:
        plans = plan_stages(recipe, (), PlanOptions(gpu=GPU_OF[named[1]]))
        assert [name for name, plan in plans.items() if not plan.fits] == []


def test_the_shipped_recipe_fits_on_80_gb():
    plan = plan_of(RECIPE)
    assert plan.fits
    assert plan.budget_problem is None
    assert plan.peak.total < plan.memory.capacity
    # one response of full length at a time, and one prompt
    split = plan.memory.split()
    assert split.parts([4096] * 4) == [[0], [1], [2], [3]]
    assert split.micro_batches([17_000] * 2) == [[0], [1]]
    # counted for every response, the copies of weights made it too large
    held = plan.memory.measurement.held
    copies = held.weights / 750
    wrong = replace(
        held,
        weights=0.0,
        response=held.response + copies,
        prompt_token=held.prompt_token + copies,
    )
    wrongly = replace(plan.memory.measurement, held=wrong)
    with pytest.raises(ConfigError, match="C104"):
        wrongly.choose_split(plan.memory.budget(), 4096, Path(), plan.memory.limit())


@pytest.mark.parametrize(
    ("recipe", "item", "tokens", "copies"),
    [(RECIPE, "va_opd 4x4x512", 512, 1), ("opd_qwen3vl_8b_to_2b.yaml", "opd 4x4x2048", 2048, 1)],
)
def test_the_peak_is_that_of_the_measured_step(recipe, item, tokens, copies):
    """The step of the benchmark: one prompt with four responses, parts of 2,048 tokens."""
    measured = json.loads(BENCHMARK.read_text())["items"]["step"]["values"][item]
    plan = plan_of(
        recipe,
        "train.prompts_per_step=4",
        f"rollout.max_new_tokens={tokens}",
        sizes=Sizes(response_tokens=tokens),
    )
    learn = next(p for p in plan.phases if p.name == "learn")
    # when it was measured, the prompts and each part held copies of weights of their own
    total = learn.total + copies * learn.kinds["weight copies"]
    assert total / GIB == pytest.approx(measured["peak_gib"], rel=0.15)
    seconds, measured_seconds = plan.cost.step_seconds(), measured["second"]
    for phase in ("score", "learn"):
        assert seconds[phase] == pytest.approx(measured_seconds[phase], rel=0.5)


#: What a student needs on the GPU in a step, the teacher apart.
OF_THE_STUDENT = ("weights", "gradients", "moments", "held activations", "weight copies")


@pytest.mark.parametrize("targets", ["[language]", "[language,vision]"])
def test_a_lora_step_needs_at_most_045_of_full_training(targets):
    """Counted bytes of the 2B, one prompt and one response of full length at a time."""
    words = ["train.micro_batch=1"]
    full = plan_of(RECIPE, *words).memory.learn().kinds
    lora = plan_of(RECIPE, *words, "student.train=lora", f"student.lora.targets={targets}")
    kinds = lora.memory.learn().kinds
    assert sum(kinds[k] for k in OF_THE_STUDENT) <= 0.45 * sum(full[k] for k in OF_THE_STUDENT)
    assert lora.memory.checkpoint_bytes() < 0.02 * plan_of(RECIPE).memory.checkpoint_bytes()
    assert 1.0 < lora.cost.backward_share() < 1.05


def test_gradient_checkpointing_holds_less_and_computes_each_layer_once_more():
    words = ["train.micro_batch=1", "rollout.max_new_tokens=1024"]
    plain, again = (
        plan_of(RECIPE, *words, f"train.gradient_checkpointing={x}") for x in ("false", "true")
    )
    less, more = (p.memory.learn().kinds["held activations"] for p in (again, plain))
    assert less <= 0.2 * more
    forward = plain.cost.one_pass("student", "full", 0.0).flops
    before, after = (p.cost.passes()[-1].flops for p in (plain, again))
    assert after - before == pytest.approx(forward)
    assert plain.cost.step_seconds()["learn"] < again.cost.step_seconds()["learn"]


def test_a_recipe_that_does_not_fit_is_told_of_gradient_checkpointing():
    plan = plan_of("va_opd_lora_qwen3vl_8b_to_2b.yaml", "rollout.max_new_tokens=4096", gpu="4090")
    assert not plan.fits
    assert "train.gradient_checkpointing" in plan.settings_that_fit()


def test_copies_of_the_student_hold_what_is_trained():
    whole, frozen = (
        plan_of("visual_opsd_qwen3vl_2b.yaml", f"train.freeze=[{x}]").memory for x in ("", "head")
    )
    assert whole.resident()["reference and EMA"] == 4 * whole.student.parameters.total
    # the head of the 2B is its input embedding
    assert frozen.student.is_tied
    saved = 4 * frozen.student.head_weights
    less = whole.resident()["reference and EMA"] - frozen.resident()["reference and EMA"]
    assert less == saved
    assert whole.resident()["moments"] - frozen.resident()["moments"] == 2 * saved
    assert frozen.head_gradient() == 0 < whole.head_gradient()
    assert frozen.checkpoint_bytes() == whole.checkpoint_bytes() - 2 * saved


@pytest.mark.parametrize(("settings", "moments", "weights"), [
    ("train.optimizer=adamw_8bit", 2 + 8 / 256, 4),
    ("student.precision=bf16", 12, 2),
    ("student.precision=bf16_stochastic", 8, 2),
    ("student.precision=bf16_stochastic train.optimizer=adamw_8bit", 2 + 8 / 256, 2),
])  # fmt: skip
def test_optimizers_and_precisions_are_counted(settings, moments, weights):
    memory = plan_of(RECIPE, *settings.split()).memory
    number = memory.student.parameters.total
    assert memory.resident()["moments"] == pytest.approx(moments * number)
    assert memory.resident()["weights"] == weights * number
    assert memory.learn().kinds["gradients"] == weights * number
    assert memory.checkpoint_bytes() == pytest.approx((moments + weights) * number)
    assert memory.learn().kinds["weight copies"] == (
        0 if weights == 2 else pytest.approx(3.0e9, rel=0.25)
    )


def test_adapters_of_the_2b_are_those_of_a_model_without_data():
    """Weights, gradients and moments of the published size, from tensors on the meta device."""
    entry = json.loads((MODELS / "qwen3_vl_2b.json").read_text())
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**entry["config"]))
    model.tie_weights()
    full = sum(p.numel() for p in model.parameters())
    vlm = SimpleNamespace(model=model, family=SimpleNamespace(parts=parts_on_meta))
    add_adapters(vlm, LoraSettings(rank=16, targets=("language", "vision")), 0, "base")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    words = ["student.train=lora", "student.lora.targets=[language,vision]"]
    memory = plan_of(RECIPE, *words).memory
    assert memory.trained == trained
    assert memory.resident()["weights"] == 2 * full + 4 * trained
    assert memory.resident()["moments"] == 8 * trained
    # full training: float32 weights, gradients and two moments
    assert 2 * full + (4 + 4 + 8) * trained <= 0.45 * 16 * full


def parts_on_meta(model):
    """The parts of a model, as its family gives them."""
    return Family.parts(SimpleNamespace(decoder=lambda m: m.get_decoder()), model)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_quantised_teacher_needs_less(precision):
    plain, small = (plan_of(RECIPE, *w) for w in ([], [f"teacher.precision={precision}"]))
    linear, bits = plain.teacher.linear_weights, {"int8": 8, "nf4": 4.5}[precision]
    saved = plain.memory.teacher_bytes(True) - small.memory.teacher_bytes(True)
    assert saved == linear * (2 - bits / 8)


def test_the_recipe_for_24_gb_fits_on_24_gb():
    assert plan_of("va_opd_lora_qwen3vl_8b_to_2b.yaml", gpu="4090").fits
    assert plan_of("va_opd_lora_qwen3vl_8b_to_2b.yaml", profile="24gb").fits


def test_the_numbers_of_a_step_follow_from_its_sizes():
    plan = plan_of(RECIPE, sizes=Sizes(prompt_tokens=750, response_tokens=1000, rows=2101))
    costs = {p.name: p for p in plan.cost.passes()}
    assert list(costs) == [
        "rollout",
        "teacher.full",
        "teacher.pixelated",
        "student.full, backward",
    ]
    assert costs["teacher.full"].prompt_tokens == 16 * 750
    assert costs["teacher.full"].response_tokens == 64 * 1000
    teacher = 2 * plan.teacher.linear_weights * (16 * 750 + 64 * 1000)
    assert teacher < costs["teacher.pixelated"].flops < costs["teacher.full"].flops
    assert costs["teacher.full"].flops < 1.6 * teacher
    assert plan.cost.steps == 656
    assert plan.memory.checkpoint_bytes() == 12 * plan.student.parameters.total


def test_text_only_views_thoughts_and_copies_of_the_student_are_counted():
    blind = {p.name: p for p in plan_of("vgs_qwen3vl_8b_to_2b.yaml").cost.passes()}
    assert blind["teacher.text_only"].flops < blind["teacher.full"].flops
    thoughts = plan_of("visual_opsd_qwen3vl_2b.yaml")
    (privileged,) = [p for p in thoughts.cost.passes() if p.name.startswith("ema")]
    assert privileged.prompt_tokens > 16 * thoughts.work.prompt_tokens
    resident = thoughts.memory.resident()
    assert resident["reference and EMA"] == resident["weights"]
    assert thoughts.memory.checkpoint_bytes() == 16 * thoughts.student.parameters.total


def test_decoding_reads_weights_in_their_own_precision():
    def seconds(*words):
        plan = plan_of(RECIPE, *words)
        slow = replace(plan, gpu=replace(plan.gpu, bandwidth=1e9))  # bound by the weights
        return slow.cost.decoding_seconds(1, 1, 64, 64)

    full, lora = seconds(), seconds("student.train=lora")
    assert lora == pytest.approx(full / 2, rel=0.01)
    linear = shipped_shapes()["Qwen/Qwen3-VL-2B-Instruct"].linear_weights
    saved = 64 * linear * (2 - 4.5 / 8) / (BANDWIDTH_SHARE * 1e9)
    nf4 = seconds("student.train=lora", "student.precision=nf4")
    assert lora - nf4 == pytest.approx(saved, rel=0.01)


def test_the_largest_of_several_offloaded_teachers_is_that_of_most_bytes():
    large, small = "Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"
    words = (
        "teacher.model=", f"teachers.large.model={large}", "teachers.large.precision=nf4",
        f"teachers.small.model={small}", "teachers.small.precision=fp32",
        "teachers.small.others=true",
    )  # fmt: skip
    memory = plan_of(RECIPE, *words, "train.offload_teacher=true").memory
    shapes = {name: shipped_shapes()[name] for name in (large, small)}
    heads = 2 * shapes[large].head_weights + 4 * shapes[small].head_weights
    body = 4 * (shapes[small].parameters.total - shapes[small].head_weights)
    assert memory.teacher_bytes(reads=False) == heads
    assert memory.teacher_bytes(reads=True) == heads + body
    alone = [w for w in words if ".large." not in w]
    of_small = plan_of(RECIPE, *alone, "train.offload_teacher=true").memory
    assert memory.reading_bytes("teacher", "full") >= of_small.reading_bytes("teacher", "full")


def test_threads_that_encode_ahead_hold_the_views_of_two_steps_in_locked_memory():
    within, ahead = (
        host_bytes(plan_of(RECIPE, f"train.workers={n}").memory)["views"] for n in (0, 1)
    )
    assert ahead == 2 * LOCKED_FACTOR * within


def test_an_offloaded_teacher_is_on_the_device_only_while_it_reads():
    there, away = (
        {p.name: p.kinds["teacher"] for p in plan_of(RECIPE, f"train.offload_teacher={x}").phases}
        for x in ("false", "true")
    )
    assert away["score"] == there["score"] == 2 * 8_767_123_696
    assert away["learn"] == away["rollout"] == 2 * 151_936 * 4096
    assert host_bytes(plan_of(RECIPE, "train.offload_teacher=true").memory)["teacher"] > 0


@pytest.mark.parametrize("gpu", ["4090", "L40S", "H100"])
@pytest.mark.parametrize("recipe", [RECIPE, "visual_opsd_qwen3vl_2b.yaml"])
@pytest.mark.parametrize("extra", ["", "train.memory=1", "train.micro_batch=16"])
def test_a_fix_of_a_plan_that_does_not_fit_fits(recipe, gpu, extra):
    words = [extra] if extra else []
    plan = plan_of(recipe, *words, gpu=gpu)
    if plan.fits:
        return
    with pytest.raises(ConfigError) as caught:
        check_fits({"run": plan}, PlanOptions(gpu=gpu, disk=1e6))
    assert caught.value.code == "C130"
    for fix in caught.value.fix.split("   or   "):
        pasted, on = shlex.split(fix), gpu
        if pasted[0] == "--gpu":
            on, pasted = pasted[1], pasted[2:]
        assert plan_of(recipe, *words, *pasted, gpu=on).fits


def test_a_fix_drops_first_what_changes_what_is_learned():
    """Responses keep their length: checkpointing, which changes no number, is dropped last."""
    settings = plan_of(RECIPE, gpu="4090").settings_that_fit()
    assert settings == {
        "train.gradient_checkpointing": True,
        "teacher.precision": "int8",
        "student.train": "lora",
    }


@pytest.mark.parametrize(
    ("recipe", "words", "fix"),
    [
        # it was `--gpu 5090 rollout.max_new_tokens=256 student.train=lora`: a smaller GPU
        ("grpo_vgs_teacher_qwen3vl_8b.yaml", ["train.gradient_checkpointing=false"],
         "student.train=lora   or   --gpu B200 train.gradient_checkpointing=true"),
        # it was `rollout.max_new_tokens=512 student.train=lora   or   --gpu H200`
        (RECIPE, ["teacher.model=Qwen/Qwen3-VL-32B-Instruct"],
         "train.gradient_checkpointing=true teacher.precision=int8   or   --gpu H200"),
    ],
)  # fmt: skip
def test_a_fix_names_a_larger_gpu_and_first_what_changes_the_run_least(recipe, words, fix):
    plan = plan_of(recipe, *words)
    with pytest.raises(ConfigError) as caught:
        check_fits({"run": plan}, PlanOptions(disk=1e6))
    assert caught.value.fix == fix
    key = fix.split("   or")[0].split()[-1].split("=")[0]
    assert caught.value.note == f"{key} changes what the run learns"


def test_a_disk_that_is_too_small_is_refused_with_settings_that_fit():
    plan = plan_of(RECIPE)
    needed = plan.cost.disk_bytes()["all"] / 1e9
    check_fits({"run": plan}, PlanOptions(disk=1.01 * needed))
    with pytest.raises(StorageError) as caught:
        check_fits({"run": plan}, PlanOptions(disk=60.0))
    assert caught.value.code == "C131"
    settings, other = caught.value.fix.split("   or   ")
    check_fits({"run": plan_of(RECIPE, *shlex.split(settings))}, PlanOptions(disk=60.0))
    check_fits({"run": plan}, PlanOptions(disk=float(shlex.split(other)[1])))


def test_a_profile_overlays_the_recipe_and_settings_win_over_it():
    plan = plan_of(RECIPE, profile="48gb")
    assert plan.gpu is GPUS["L40S"]
    assert plan.recipe.train.offload_teacher
    assert plan.recipe.rollout.rows_per_call == 8
    plan = plan_of(RECIPE, "rollout.rows_per_call=3", profile="48gb", gpu="A6000")
    assert (plan.recipe.rollout.rows_per_call, plan.gpu.name) == (3, "A6000")
    at_80 = plan_of(RECIPE, profile="80gb")
    assert at_80.fits
    assert not any(phase.note for phase in at_80.phases)


def test_a_profile_changes_no_response_and_no_update():
    free = {"train.offload_teacher", "train.gradient_checkpointing"}
    free |= {"rollout.rows_per_call", "eval.rows_per_call"}
    for profile in PROFILES.values():
        assert {word.split("=")[0] for word in profile.settings} <= free


def test_names_are_read_in_any_case_and_wrong_ones_refused():
    assert find_gpu("rtx 4090") is find_gpu("NVIDIA 4090") is GPUS["4090"]
    for options, fix in (({"gpu": "H20"}, "--gpu H200"), ({"profile": "81gb"}, "--profile 80gb")):
        with pytest.raises(ConfigError) as caught:
            plan_of(RECIPE, **options)
        assert (caught.value.code, caught.value.fix) == ("C132", fix)
        option, value = caught.value.fix.split()
        plan_of(RECIPE, **{option.removeprefix("--"): value})


def test_the_shape_of_another_model_comes_from_its_folder(tokenizer, tmp_path):
    build_llava(tokenizer, 0).model.config.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError) as caught:
        plan_of(RECIPE, "teacher.model=some/other")
    assert caught.value.code == "C132"
    folder = (tmp_path / "other",)
    plan = plan_of(RECIPE, "teacher.model=some/other", configs=folder)
    assert plan.teacher.name == "some/other"
    assert plan.teacher.parameters.total > 0
    assert plan_of(RECIPE, f"teacher.model={folder[0]}").teacher.parameters == (
        plan.teacher.parameters
    )
    with pytest.raises(ConfigError) as caught:
        plan_of(RECIPE, configs=folder)
    assert caught.value.code == "C132"
    assert plan_of(RECIPE, shlex.split(caught.value.fix)[0]).student.model_type == "llava"
    (folder[0] / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        plan_of(RECIPE, "teacher.model=some/other", configs=folder)
    assert caught.value.code == "C132"
    with pytest.raises(ModelError, match="M103"):
        plan_of(RECIPE, "teacher.model=nowhere")


def test_an_unconfirmed_shape_is_marked():
    plan = plan_of(RECIPE, "teacher.model=Qwen/Qwen3-VL-32B-Instruct")
    assert "NOT CONFIRMED" in format_plan(plan, "run")
    assert plan_dict(plan)["models"]["teacher"]["confirmed"] is False


def run_verb(words, capsys):
    with pytest.raises(SystemExit) as stop:
        entry(words)
    shown = capsys.readouterr()
    return stop.value.code, shown.out, shown.err


def test_the_verb_prints_a_table_and_json_and_exits_by_the_verdict(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["plan", RECIPE, "--disk", "1000", "--price", "2"]
    code, out, _ = run_verb(words, capsys)
    assert code == 0
    assert "money:" in out
    assert "--profile 24gb (4090): does not fit" in out
    code, out, err = run_verb([*words, "--gpu", "4090", "--json"], capsys)
    assert code == 2
    assert "C130" in err
    plan = json.loads(out)["run"]
    assert plan["fits"] is False
    assert plan["money"] == pytest.approx(2 * sum(plan["seconds"].values()) / 3600)
    code, out, _ = run_verb([*words, "--gpus", "8", "--json"], capsys)
    assert json.loads(out)["run"]["money"] == pytest.approx(
        8 * plan_of(RECIPE, price=2).cost.money()
    )
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_reads_the_student_of_another_one_is_planned_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plan = plan_of("paper_vgs.yaml", stage="vgs_2b")
    assert plan.teacher.name == "Qwen/Qwen3-VL-8B-Instruct"


def test_a_stage_is_planned_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_verb(["plan", "demo.yaml", "--stage", "va_opd", "--json"], capsys)
    assert code == 0
    assert list(json.loads(out)) == ["va_opd"]
    code, _, err = run_verb(["plan", "demo.yaml", "--stage", "vgs"], capsys)
    assert code == 2
    assert "--stage opd" in err


def test_the_rows_of_a_file_are_counted_as_a_run_counts_them(tmp_path):
    """`plan` gave no hours for the user's own file unless `--rows` stated them."""
    rows = [{"question": f"{n}?", "images": ["a.png"], "answer": "1"} for n in range(40)]
    rows[3] = {"question": "no picture", "answer": "1"}
    rows[4] = {"images": ["a.png"], "answer": "1"}
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n{broken\n")
    words = [f"data.train={file}", "data.text_only=drop", "data.max_bad_share=1", *COLUMNS]
    assert plan_of(RECIPE, *words, "data.holdout=10").rows == 28
    assert plan_of(RECIPE, *words, f"data.eval={file}").rows == 38
    assert plan_of(RECIPE, *words, "data.text_only=plain", "data.holdout=0").rows == 39
    assert plan_of(RECIPE, *words, "data.limit=20", "data.holdout=5").rows == 15
    assert plan_of(RECIPE, *words, sizes=Sizes(rows=7)).rows == 7
    assert "hours" in format_plan(plan_of(RECIPE, *words), "run")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    settings = load_recipe(RECIPE, [*words, "data.holdout=10"]).data
    loaded, _ = load_train_and_eval(settings)
    assert len(loaded.prompts) == 28


def test_the_rows_of_each_data_set_are_counted(tmp_path):
    """A mixture of local files gave no hours."""
    words = ["data.train=diagrams", "data.columns.prompt=question", "data.columns.answer=answer"]
    for name, count in {"a": 40, "b": 25}.items():
        row = {"question": "?", "images": ["a.png"], "answer": "1"}
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * count)
        words.append(f"data.sets.{name}.train={tmp_path / name}.jsonl")
    words += ["data.eval=", "data.holdout=0", "data.sets.b.holdout=5"]
    plan = plan_of(RECIPE, *words)
    assert (plan.rows_of_set("a"), plan.rows_of_set("b")) == (40, 20)
    assert plan.cost.steps is not None
    assert "hours" in format_plan(plan, "run")
    plan = plan_of(RECIPE, *words, "data.sets.b.train=nowhere.jsonl")
    assert plan.cost.steps is None
    assert "nowhere.jsonl does not exist" in format_plan(plan, "run")


@pytest.mark.parametrize(("words", "reason"), [
    ("data.train=nowhere.jsonl", "nowhere.jsonl does not exist"),
    ("data.train=hf:owner/name", "the data is not on this machine"),
    ("data.columns.prompt=zebra", 'column "zebra" not in'),
])  # fmt: skip
def test_a_plan_says_why_rows_are_not_counted(words, reason, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"question": "?", "images": ["a.png"], "answer": "1"}) + "\n")
    plan = plan_of(RECIPE, f"data.train={file}", *COLUMNS, words)
    assert plan.cost.steps is None
    assert reason in format_plan(plan, "run")


def test_lines_of_a_large_file_are_counted(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("{}\n" * 50)
    assert count_training_rows(DataSettings(train=str(file), holdout=10), max_read=10) == 40


def test_a_plan_counts_the_responses_that_benchmarks_ask_during_the_run():
    words = ["eval.tasks=[mathverse,vsp_maze]", "eval.task_limit=64", "train.steps=100",
             "eval.every=50", "eval.max_new_tokens=512"]  # fmt: skip
    bare, plain = plan_of(RECIPE, *words[1:]), plan_of(RECIPE, *words)
    values = plan_dict(plain)
    assert values["benchmarks"]["mathverse"]["responses"] == 64
    assert values["benchmarks"]["mathverse"]["limit"] == 512
    assert values["evaluations"] == 3
    more = plan_of(RECIPE, *words, "eval.task_protocol=vgs", "eval.task_blind=true")
    assert plan_dict(more)["benchmarks"]["mathverse"]["responses"] == 64 * 17 * 3
    whole = plan_of(RECIPE, *words, "eval.task_limit=null", "eval.task_protocol=visual_opsd")
    assert plan_dict(whole)["benchmarks"]["mathverse"]["responses"] == 3940
    assert plan_dict(whole)["benchmarks"]["vsp_maze"]["responses"] < 600
    signals = plan_of(RECIPE, *words, "eval.signals=true", "eval.task_blind=true")
    assert plan_dict(signals)["benchmarks"]["mathverse"]["readings"] == 64 * (3 + 1 + 1)
    costs = [plan.cost.evaluation_seconds() for plan in (bare, plain, signals, more)]
    assert costs == sorted(costs)
    assert len(set(costs)) == 4
    assert "benchmarks of 3 evaluations: 384 responses" in format_plan(plain, "run")
    assert "benchmarks of" not in format_plan(bare, "run")
    never = plan_of(RECIPE, *words, "eval.every=0")
    assert plan_dict(never)["benchmarks"] == {}


def test_a_plan_names_a_benchmark_that_does_not_exist():
    with pytest.raises(ConfigError) as caught:
        plan_dict(plan_of(RECIPE, "eval.tasks=[mathvers]"))
    assert (caught.value.code, caught.value.fix) == ("C105", "'eval.tasks=[mathverse]'")
