"""Inputs of a start, and the contents of a run folder before, between and after starts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import build_model
from doubles import with_family
from PIL import Image
from training.test_build import OPTIONS, distill_run, raises_code

import vistill
from vistill.cli.target import recipe_for
from vistill.config import build_recipe
from vistill.data.decoding import decode_image, flatten_on_white
from vistill.data.diagrams import diagram_prompts
from vistill.data.images import FileImage
from vistill.data.rows import with_hashes
from vistill.data.settings import DataSettings
from vistill.data.stored_prompts import read_prompts, with_content_hashes, write_prompts
from vistill.errors import DataError, StorageError
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.studies.check import check
from vistill.studies.replay import replay
from vistill.training import results
from vistill.training.checks.data import check_prompts
from vistill.training.checks.prompt_lengths import find_overlong_prompts
from vistill.training.provided_inputs import matches_source
from vistill.training.replay import format_replay
from vistill.training.run_lock import has_old_warmup
from vistill.training.settings import ScheduleSettings, TrainSettings
from vistill.types import LoadedImage, Prompt
from vistill.views import ViewContext

CONSTANT = ScheduleSettings("constant", 0.0)
STEPS = {n: TrainSettings(prompts_per_step=2, steps=n, lr=1e-3, schedule=CONSTANT) for n in (3, 5)}
RED_IMAGE = Image.new("RGB", (24, 16), "red")


def palette_image(colours, transparent=None):
    image = Image.new("P", (24, 16), 1)
    image.putpalette([*colours, *[0] * (768 - len(colours))])
    image.paste(0, (0, 0, 8, 8))
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def store_and_read(tmp_path, *prompts):
    write_prompts(with_content_hashes(prompts), tmp_path / "rows.jsonl")
    return read_prompts(f"prompts:{tmp_path / 'rows.jsonl'}")


# prompts of the caller


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"id": 7}, "D104"),
        ({"answer": 7}, "D104"),
        ({"choices": (1, 2)}, "D104"),
        ({"parts": ("half \udc80",)}, "D104"),
        ({"parts": (RED_IMAGE, "what?")}, "D202"),
        ({"thoughts": (RED_IMAGE,)}, "D202"),
        ({"parts": ("what? <|im_end|>",)}, "D103"),
    ],
)
def test_prompts_of_the_caller_are_checked_like_rows_of_a_file(fields, code):
    prompt = Prompt(**({"id": "a", "parts": ("what?",)} | fields))
    with raises_code(code, DataError):
        check_prompts([prompt])


def test_an_image_in_memory_beyond_the_limits_is_refused_with_its_row():
    with raises_code("D202", DataError) as caught:
        with_content_hashes([Prompt("thin", (LoadedImage(Image.new("RGB", (1000, 2))), "what?"))])
    assert caught.value.where == "thin"


def test_an_unknown_option_of_distill_is_refused(tokenizer, teacher, tmp_path):
    with raises_code("C001") as caught:
        distill_run(tokenizer, teacher, tmp_path, eval=OPTIONS["evaluation"])
    assert "evaluation" in caught.value.fix


@pytest.mark.parametrize(
    "settings", [{"clip_norm": float("inf")}, {"lr": float("inf")}, {"eps": float("nan")}]
)
def test_a_setting_that_is_not_finite_is_refused(settings):
    with raises_code("C002"):
        TrainSettings(**settings)


def test_overrides_apply_to_a_recipe_object(tmp_path):
    overrides = ["train.lr=0.5", f"data.train={tmp_path / 'none.jsonl'}"]
    with raises_code("D102", DataError):  # the first check after the recipe is locked
        vistill.train(small_recipe(tmp_path), overrides)
    lock = json.loads((tmp_path / "r" / "run.lock.json").read_text())
    assert lock["recipe"]["train"]["lr"] == 0.5


def small_recipe(tmp_path):
    tree = {"run": str(tmp_path / "r"), "method": "opd", "student": {"model": "vistill:student"}}
    return build_recipe(tree | {"teacher": {"model": "vistill:teacher"}})


# stored prompts


def test_palette_images_with_the_same_indices_are_different_images(tmp_path):
    first, second = palette_image([255, 0, 0, 0, 255, 0]), palette_image([0, 0, 255, 9, 9, 9])
    a, b = store_and_read(
        tmp_path, Prompt("a", (LoadedImage(first), "?")), Prompt("b", (LoadedImage(second), "?"))
    )
    assert a.question_key != b.question_key
    for prompt, image in ((a, first), (b, second)):
        assert prompt.images[0].load().convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "text", ["line\u2028end", "next\x85line", "form\x0cfeed", "half a\r\nline"]
)
def test_a_question_may_contain_any_line_separator(tmp_path, text):
    (back,) = store_and_read(tmp_path, Prompt("a", (text,)))
    assert back.text == text


def test_a_stored_prompt_that_was_changed_is_refused(tmp_path):
    store_and_read(tmp_path, Prompt("a", (LoadedImage(RED_IMAGE), "how many?"), answer="3"))
    file = tmp_path / "rows.jsonl"
    for before, after in (("how many?", "how much?"), ('"3"', '"4"')):
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))
        with raises_code("D102", DataError):
            read_prompts(f"prompts:{file}")
        file.write_text(text)
    read_prompts(f"prompts:{file}")


def test_a_stored_image_that_was_changed_is_refused_when_it_is_read(tmp_path):
    (prompt,) = store_and_read(tmp_path, Prompt("a", (LoadedImage(RED_IMAGE), "?")))
    (file,) = (tmp_path / "images").glob("*.png")
    Image.new("RGB", RED_IMAGE.size, "blue").save(file)
    with raises_code("D208", DataError):
        prompt.images[0].load()
    file.write_bytes(file.read_bytes()[:40])
    with raises_code("D202", DataError):
        prompt.images[0].load()


def test_an_image_is_stored_atomically(tmp_path, monkeypatch):
    prompts = with_content_hashes([Prompt("a", (LoadedImage(RED_IMAGE), "?"))])

    def write_part(path, data, write=Path.write_bytes):
        write(path, data[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_part)
        with pytest.raises(KeyboardInterrupt):
            write_prompts(prompts, tmp_path / "rows.jsonl")
    write_prompts(prompts, tmp_path / "rows.jsonl")
    (back,) = read_prompts(f"prompts:{tmp_path / 'rows.jsonl'}")
    assert back.images[0].load().tobytes() == RED_IMAGE.tobytes()


def test_hashes_of_a_changed_prompt_are_computed_again():
    (first,) = with_content_hashes([Prompt("a", (LoadedImage(RED_IMAGE), "how many?"), answer="3")])
    assert with_content_hashes([first]) == [first]
    for change in ({"answer": "4"}, {"parts": ("why?",)}, {"thoughts": (LoadedImage(RED_IMAGE),)}):
        (other,) = with_content_hashes([replace(first, **change)])
        assert other.content not in ("", first.content)


# transparent pictures


def test_transparent_pixels_become_white_in_every_mode_and_view(teacher, tmp_path):
    drawn = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (4, 4, 12, 12))
    white = Image.new("RGB", (32, 32), "white")
    white.paste((0, 0, 0), (4, 4, 12, 12))
    drawn.save(tmp_path / "drawn.png")
    (prompt,) = with_content_hashes([Prompt("a", (LoadedImage(drawn), "?"))])
    file = with_hashes(Prompt("b", (FileImage(tmp_path / "drawn.png"), "?")))
    for shown in (
        prompt.images[0].load(),
        file.images[0].load(),
        flatten_on_white(drawn),
        flatten_on_white(drawn.convert("LA")),
    ):
        assert shown.convert("RGB").tobytes() == white.tobytes()
    seen = [
        teacher.encode(Prompt("x", (LoadedImage(p), "?"))).pixels["pixel_values"]
        for p in (drawn, white)
    ]
    assert seen[0].equal(seen[1])


def test_a_transparent_palette_colour_becomes_white_and_an_opaque_image_stays():
    shown = flatten_on_white(palette_image([0, 0, 0, 0, 255, 0], transparent=0))
    assert (shown.mode, shown.getpixel((0, 0)), shown.getpixel((20, 12))) == (
        "RGB",
        (255, 255, 255),
        (0, 255, 0),
    )
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.new(mode, (8, 8)) if mode == "I;16" else RED_IMAGE.convert(mode)
        assert flatten_on_white(image) is image


def test_a_transparent_file_is_decoded_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode_image((tmp_path / "clear.png").read_bytes(), "here").convert("RGB").getpixel(
        (1, 1)
    ) == (255, 255, 255)


# lengths


def test_the_length_of_a_prompt_is_known_without_the_image_processor(teacher, prompts):
    expected = [(len(e.ids), e.num_image_tokens) for e in map(teacher.encode, prompts)]
    assert [teacher.lengths(p) for p in prompts] == expected
    without = with_family(teacher, pixels=lambda self, images: pytest.fail("images are processed"))
    with pytest.raises(pytest.fail.Exception):
        without.encode(prompts[0])
    assert find_overlong_prompts(without, ViewContext(), prompts, 10_000) == []


# starts


def distill_until_failure(tokenizer, teacher, out, step, **options):
    """A run whose progress callback fails after a step, before any checkpoint."""

    def fail(record):
        if record.get("step") == step and "loss" in record:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        distill_run(tokenizer, teacher, out, progress=fail, **options)


@pytest.mark.more
def test_a_student_trained_without_a_checkpoint_cannot_start_the_run_again(
    tokenizer, teacher, tmp_path
):
    student, save = build_model(tokenizer, 0), replace(OPTIONS["save"], every=0)
    distill_until_failure(tokenizer, teacher, tmp_path, 2, student=student, save=save)
    with raises_code("C202"):
        distill_run(tokenizer, teacher, tmp_path, student=student, save=save)
    distill_run(tokenizer, teacher, tmp_path, save=save)  # a new student


@pytest.mark.more
def test_a_model_stored_by_a_failed_start_is_not_used(tokenizer, teacher, tmp_path):
    run = tmp_path / "run"
    student = build_model(tokenizer, 0)
    # left by an earlier start that failed before its first step
    (run / "start" / "teacher").mkdir(parents=True)
    vistill.models.save.save_vlm(teacher, tmp_path / "teacher")
    from_folder = replace(teacher, source=str(tmp_path / "teacher"))
    distill_run(tokenizer, from_folder, run, student=student)
    distill_run(tokenizer, from_folder, run, student=student)


def test_a_model_of_the_hub_is_named_and_not_stored_again(
    tokenizer, teacher, tiny_folder, tmp_path, monkeypatch
):
    cached = tmp_path / "cache" / "models--Tiny--Student"
    shutil.copytree(tiny_folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    for name in (
        "huggingface_hub.constants.HF_HUB_CACHE",
        "huggingface_hub.constants.HUGGINGFACE_HUB_CACHE",
    ):
        monkeypatch.setattr(name, str(tmp_path / "cache"))
    loaded = replace(vistill.load(str(tiny_folder), device="cpu"), source="Tiny/Student")
    changed = build_model(tokenizer, 3)
    assert matches_source(loaded)
    assert not matches_source(replace(loaded, model=changed.model))
    assert not matches_source(replace(loaded, source="Tiny/Nowhere"))


@pytest.mark.more
def test_continuing_a_finished_run_removes_its_result(tokenizer, teacher, tmp_path):
    student = build_model(tokenizer, 0)
    distill_run(tokenizer, teacher, tmp_path, student=student, train=STEPS[3])
    assert (tmp_path / "student").is_symlink()
    distill_until_failure(
        tokenizer, teacher, tmp_path, 4, student=student, train=STEPS[5], accept=["train.steps"]
    )
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "student").is_symlink()
    with raises_code("S605", StorageError) as caught:
        resolve_model(str(tmp_path))
    assert str(tmp_path / "checkpoint-000003" / "student") in caught.value.fix
    distill_run(tokenizer, teacher, tmp_path, student=student, train=STEPS[5])
    assert (tmp_path / "student").readlink() == Path("checkpoint-000005/student")


@pytest.mark.more
@pytest.mark.parametrize("links", [True, False])
def test_a_user_folder_named_student_is_kept(tokenizer, teacher, tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(
            Path,
            "symlink_to",
            lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no links here")),
        )
    user_file = tmp_path / "student" / "model.safetensors"
    user_file.parent.mkdir()
    user_file.write_text("precious")
    distill_run(tokenizer, teacher, tmp_path)
    assert user_file.read_text() == "precious"
    user_file.unlink()
    user_file.parent.rmdir()
    for steps in STEPS:
        distill_run(tokenizer, teacher, tmp_path, train=STEPS[steps], accept=["train.steps"])
        assert (tmp_path / "student").is_symlink() == links
        assert (tmp_path / "student" / results.COPIED).exists() != links
        weights = (tmp_path / "student" / "model.safetensors").read_bytes()
        assert (
            weights
            == (tmp_path / f"checkpoint-{steps:06d}" / "student" / "model.safetensors").read_bytes()
        )


def test_an_evaluation_never_writes_over_a_training_run(tokenizer, teacher, tmp_path):
    run = tmp_path / "run"
    distill_run(tokenizer, teacher, run)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    tree = {"run": str(run), "method": "sft", "student": {"model": "vistill:student"}}
    with raises_code("C201") as caught:
        vistill.evaluate(build_recipe(tree))
    assert caught.value.fix == f"run={run}-eval"
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_a_lock_that_cannot_be_opened_gives_an_error(tmp_path):
    (tmp_path / ".owner").mkdir()  # opening it for writing fails, as in a read-only folder
    with raises_code("S601", StorageError), RunFolder(tmp_path).locked():
        pass


@pytest.mark.more
def test_a_masked_setting_must_be_given_again(tokenizer, teacher, tmp_path):
    masked = replace(DataSettings(), system="see https://me:secret99@host/x")
    distill_run(tokenizer, teacher, tmp_path, data=masked)
    distill_run(tokenizer, teacher, tmp_path, data=masked)
    assert "secret99" not in (tmp_path / "recipe.json").read_text()
    with raises_code("S605", StorageError) as caught:
        recipe_for(str(tmp_path), [], "eval")
    assert "data.system=VALUE" in caught.value.fix
    assert recipe_for(str(tmp_path), ["data.system=see"], "eval").data.system == "see"
    with raises_code("S605", StorageError):
        replay(tmp_path)


@pytest.mark.more
def test_replay_takes_a_path_as_text(tokenizer, teacher, tmp_path):
    distill_run(tokenizer, teacher, tmp_path)
    assert vistill.replay(str(tmp_path))[0].same


@pytest.mark.more
def test_eval_of_a_run_uses_final_limit_unless_limit_is_set(tokenizer, teacher, tmp_path):
    distill_run(tokenizer, teacher, tmp_path)

    def limit(*overrides):
        return recipe_for(str(tmp_path), list(overrides), "eval").eval.limit

    assert limit() is None
    assert limit("eval.final_limit=4") == 4
    assert limit("eval.final_limit=4", "eval.limit=3") == 3


# the chosen checkpoint


@pytest.mark.more
@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"samples": 2}, {"temperature": 0.5}, {"max_new_tokens": 4}]
)
def test_evaluations_of_another_protocol_are_not_compared(tokenizer, teacher, tmp_path, change):
    evaluation = replace(
        OPTIONS["evaluation"], every=1, limit=2, max_new_tokens=5, greedy=False, blind=False
    )
    options = {
        "student": build_model(tokenizer, 0),
        "eval_prompts": diagram_prompts("val", 3, 0),
        "evaluation": evaluation,
    }
    distill_run(tokenizer, teacher, tmp_path, train=STEPS[3], **options)
    log = tmp_path / "evaluations.jsonl"
    records = [
        json.loads(line) | {"selection/accuracy": 1.0} for line in log.read_text().splitlines()
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    options["evaluation"] = replace(evaluation, **change)
    distill_run(tokenizer, teacher, tmp_path, train=STEPS[5], accept=["train.steps"], **options)
    assert json.loads((tmp_path / "result.json").read_text())["best"]["step"] == 5


# check and replay


def test_check_refuses_what_train_refuses_in_a_folder_of_an_earlier_version(tmp_path):
    tree = {"run": str(tmp_path / "r"), "student": {"model": "vistill:student"}, "method": "opd"}
    tree |= {
        "teacher": {"model": "vistill:teacher"},
        "data": {"diagrams": {"train": 32, "eval": 4}},
    }
    tree |= {"train": {"steps": 7, "schedule": {"warmup": 0.5}}}
    (tmp_path / "r").mkdir()
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    assert check(str(tmp_path / "recipe.yaml"), fast=True)["run"][1].summary.endswith("new")
    (tmp_path / "r" / "run.lock.json").write_text(
        json.dumps({"recipe": build_recipe(tree).to_dict()})
    )
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 1}\n')
    with raises_code("C201") as caught:
        check(str(tmp_path / "recipe.yaml"), fast=True)
    assert "warmed up" in caught.value.what


@pytest.mark.more
@pytest.mark.parametrize("fast", [True, False])
def test_check_takes_the_recipe_of_a_distill_folder(tokenizer, teacher, tmp_path, fast):
    run = tmp_path / "run"
    distill_run(tokenizer, teacher, run)  # both models are stored in the folder, under {run}
    results = check(str(run / "recipe.json"), fast=fast)["run"]
    assert any(
        line.what == "data" and line.summary.startswith("4 training rows") for line in results
    )


@pytest.mark.more
def test_a_metric_that_an_earlier_version_did_not_log_is_no_difference(
    tokenizer, teacher, tmp_path
):
    distill_run(tokenizer, teacher, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("coefficient/reverse_kl")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    replayed, _ = replay(tmp_path, 3)
    assert replayed.same


@pytest.mark.more
def test_a_replay_names_the_earlier_version_that_logged_other_values(tokenizer, teacher, tmp_path):
    distill_run(tokenizer, teacher, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("coefficient/reverse_kl")
        line["lr"] *= 1.25
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    replayed, step = replay(tmp_path, 3)
    assert replayed.from_older_version == [3]
    assert "only that version gives the same values" in format_replay(replayed, step)


def test_without_a_warmup_an_earlier_version_never_exceeded_the_peak():
    train = {"steps": None, "schedule": {"warmup": 0.0}}
    assert not has_old_warmup({}, {"train": train})
    assert has_old_warmup({}, {"train": {**train, "schedule": {"warmup": 0.05}}})
