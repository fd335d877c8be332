"""What a start takes from outside, and what a run folder holds before, after and between the starts of a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import build_model
from PIL import Image
from training.test_build import OPTIONS, distilled, refused

import vistill
from vistill.cli.target import recipe_for
from vistill.config import build_recipe
from vistill.data.diagrams import diagram_prompts
from vistill.data.images import FileImage, decode_image, flatten_on_white
from vistill.data.rows import with_hashes
from vistill.data.settings import DataSettings
from vistill.data.stored_prompts import read_prompts, with_content_hashes, write_prompts
from vistill.errors import DataError, StorageError
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.studies.check import check
from vistill.studies.replay import replay_run
from vistill.training import results
from vistill.training.checks.data import check_prompts
from vistill.training.checks.models import find_overlong_prompts
from vistill.training.provided_inputs import matches_source
from vistill.training.settings import ScheduleSettings, TrainSettings
from vistill.types import LoadedImage, Prompt
from vistill.views import ViewContext

CONSTANT = ScheduleSettings("constant", 0.0)
STEPS = {n: TrainSettings(prompts_per_step=2, steps=n, lr=1e-3, schedule=CONSTANT) for n in (3, 5)}
RED = Image.new("RGB", (24, 16), "red")


def palette(colours, transparent=None):
    picture = Image.new("P", (24, 16), 1)
    picture.putpalette([*colours, *[0] * (768 - len(colours))])
    picture.paste(0, (0, 0, 8, 8))
    if transparent is not None:
        picture.info["transparency"] = transparent
    return picture


def there_and_back(tmp_path, *prompts):
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
        ({"parts": (RED, "what?")}, "D202"),
        ({"thoughts": (RED,)}, "D202"),
        ({"parts": ("what? <|im_end|>",)}, "D103"),
    ],
)
def test_a_prompt_of_the_caller_holds_what_a_row_of_a_file_must_hold(fields, code):
    prompt = Prompt(**({"id": "a", "parts": ("what?",)} | fields))
    with refused(code, DataError):
        check_prompts([prompt])


def test_a_picture_in_memory_that_no_processor_takes_is_refused_with_its_row():
    with refused("D202", DataError) as caught:
        with_content_hashes([Prompt("thin", (LoadedImage(Image.new("RGB", (1000, 2))), "what?"))])
    assert caught.value.where == "thin"


def test_an_option_that_distill_does_not_have_is_refused(tokenizer, teacher, tmp_path):
    with refused("C001") as caught:
        distilled(tokenizer, teacher, tmp_path, eval=OPTIONS["evaluation"])
    assert "evaluation" in caught.value.fix


@pytest.mark.parametrize(
    "settings", [{"clip_norm": float("inf")}, {"lr": float("inf")}, {"eps": float("nan")}]
)
def test_a_number_that_a_run_folder_cannot_hold_is_refused(settings):
    with refused("C002"):
        TrainSettings(**settings)


def test_settings_given_next_to_a_recipe_object_count(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        vistill.api, "lock_recipe", lambda folder, recipe, accept: seen.append(recipe) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        vistill.train(small_recipe(tmp_path), ["train.lr=0.5"])
    assert seen[0].train.lr == 0.5


def small_recipe(tmp_path):
    tree = {"run": str(tmp_path / "r"), "method": "opd", "student": {"model": "vistill:student"}}
    return build_recipe(tree | {"teacher": {"model": "vistill:teacher"}})


# stored prompts


def test_palette_pictures_with_the_same_indices_are_two_pictures(tmp_path):
    first, second = palette([255, 0, 0, 0, 255, 0]), palette([0, 0, 255, 9, 9, 9])
    a, b = there_and_back(
        tmp_path, Prompt("a", (LoadedImage(first), "?")), Prompt("b", (LoadedImage(second), "?"))
    )
    assert a.question_key != b.question_key
    for prompt, picture in ((a, first), (b, second)):
        assert prompt.images[0].load().convert("RGB").tobytes() == picture.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "text", ["line\u2028end", "next\x85line", "form\x0cfeed", "half a\r\nline"]
)
def test_a_question_may_hold_any_line_separator(tmp_path, text):
    (back,) = there_and_back(tmp_path, Prompt("a", (text,)))
    assert back.text == text


def test_a_stored_prompt_that_was_changed_is_refused(tmp_path):
    there_and_back(tmp_path, Prompt("a", (LoadedImage(RED), "how many?"), answer="3"))
    file = tmp_path / "rows.jsonl"
    for before, after in (("how many?", "how much?"), ('"3"', '"4"')):
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))
        with refused("D102", DataError):
            read_prompts(f"prompts:{file}")
        file.write_text(text)
    read_prompts(f"prompts:{file}")


def test_a_stored_picture_that_was_changed_is_refused_when_it_is_read(tmp_path):
    (prompt,) = there_and_back(tmp_path, Prompt("a", (LoadedImage(RED), "?")))
    (file,) = (tmp_path / "images").glob("*.png")
    Image.new("RGB", RED.size, "blue").save(file)
    with refused("D208", DataError):
        prompt.images[0].load()
    file.write_bytes(file.read_bytes()[:40])
    with refused("D202", DataError):
        prompt.images[0].load()


def test_a_picture_is_stored_whole_or_not_at_all(tmp_path, monkeypatch):
    prompts = with_content_hashes([Prompt("a", (LoadedImage(RED), "?"))])

    def killed(path, data, whole=Path.write_bytes):
        whole(path, data[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            write_prompts(prompts, tmp_path / "rows.jsonl")
    write_prompts(prompts, tmp_path / "rows.jsonl")
    (back,) = read_prompts(f"prompts:{tmp_path / 'rows.jsonl'}")
    assert back.images[0].load().tobytes() == RED.tobytes()


def test_hashes_of_a_prompt_that_was_changed_in_the_program_are_made_anew():
    (first,) = with_content_hashes([Prompt("a", (LoadedImage(RED), "how many?"), answer="3")])
    assert with_content_hashes([first]) == [first]
    for change in ({"answer": "4"}, {"parts": ("why?",)}, {"thoughts": (LoadedImage(RED),)}):
        (other,) = with_content_hashes([replace(first, **change)])
        assert other.content not in ("", first.content)


# transparent pictures


def test_transparent_pixels_lie_on_white_in_every_mode_and_view(teacher, tmp_path):
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


def test_a_transparent_colour_of_a_palette_is_white_too_and_an_opaque_picture_stays_as_it_is():
    shown = flatten_on_white(palette([0, 0, 0, 0, 255, 0], transparent=0))
    assert (shown.mode, shown.getpixel((0, 0)), shown.getpixel((20, 12))) == (
        "RGB",
        (255, 255, 255),
        (0, 255, 0),
    )
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        picture = Image.new(mode, (8, 8)) if mode == "I;16" else RED.convert(mode)
        assert flatten_on_white(picture) is picture


def test_a_transparent_file_is_decoded_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode_image((tmp_path / "clear.png").read_bytes(), "here").convert("RGB").getpixel(
        (1, 1)
    ) == (255, 255, 255)


# lengths


def test_the_length_of_a_prompt_is_known_without_the_image_processor(teacher, prompts, monkeypatch):
    told = [(len(e.ids), e.num_image_tokens) for e in map(teacher.encode, prompts)]
    assert [teacher.lengths(p) for p in prompts] == told
    monkeypatch.setattr(
        type(teacher.family), "pixels", lambda self, images: pytest.fail("pictures are processed")
    )
    assert find_overlong_prompts(teacher, ViewContext(), prompts, 10_000) == []


# starts


def stopped_at(tokenizer, teacher, out, step, **options):
    """A run whose progress callback fails after a step, before any checkpoint."""

    def fail(record):
        if record.get("step") == step and "loss" in record:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        distilled(tokenizer, teacher, out, progress=fail, **options)


def test_a_student_that_was_trained_without_a_checkpoint_does_not_begin_the_run_anew(
    tokenizer, teacher, tmp_path
):
    student, save = build_model(tokenizer, 0), replace(OPTIONS["save"], every=0)
    stopped_at(tokenizer, teacher, tmp_path, 2, student=student, save=save)
    with refused("C202"):
        distilled(tokenizer, teacher, tmp_path, student=student, save=save)
    distilled(tokenizer, teacher, tmp_path, save=save)  # loaded again


def test_a_stored_model_of_a_start_that_failed_is_not_taken_for_the_runs_own(
    tokenizer, teacher, tmp_path
):
    run = tmp_path / "run"
    student = build_model(tokenizer, 0)
    (run / "start" / "teacher").mkdir(
        parents=True
    )  # as an earlier start left it, which failed before its first step
    vistill.models.save.save_vlm(teacher, tmp_path / "teacher")
    from_folder = replace(teacher, source=str(tmp_path / "teacher"))
    distilled(tokenizer, from_folder, run, student=student)
    distilled(tokenizer, from_folder, run, student=student)


def test_a_model_of_the_hub_is_named_and_not_stored_again(
    tokenizer, teacher, tiny_folder, tmp_path, monkeypatch
):
    place = tmp_path / "cache" / "models--Tiny--Student"
    shutil.copytree(tiny_folder, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
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


def test_the_result_of_a_run_that_goes_on_is_no_longer_there(tokenizer, teacher, tmp_path):
    student = build_model(tokenizer, 0)
    distilled(tokenizer, teacher, tmp_path, student=student, train=STEPS[3])
    assert (tmp_path / "student").is_symlink()
    stopped_at(
        tokenizer, teacher, tmp_path, 4, student=student, train=STEPS[5], accept=["train.steps"]
    )
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "student").is_symlink()
    with refused("S605", StorageError) as caught:
        resolve_model(str(tmp_path))
    assert str(tmp_path / "checkpoint-000003" / "student") in caught.value.fix
    distilled(tokenizer, teacher, tmp_path, student=student, train=STEPS[5])
    assert (tmp_path / "student").readlink() == Path("checkpoint-000005/student")


@pytest.mark.parametrize("links", [True, False])
def test_a_folder_of_the_user_called_student_is_left_alone(
    tokenizer, teacher, tmp_path, monkeypatch, links
):
    if not links:
        monkeypatch.setattr(
            Path,
            "symlink_to",
            lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no links here")),
        )
    mine = tmp_path / "student" / "model.safetensors"
    mine.parent.mkdir()
    mine.write_text("precious")
    distilled(tokenizer, teacher, tmp_path)
    assert mine.read_text() == "precious"
    mine.unlink()
    mine.parent.rmdir()
    for steps in STEPS:
        distilled(tokenizer, teacher, tmp_path, train=STEPS[steps], accept=["train.steps"])
        assert (tmp_path / "student").is_symlink() == links
        assert (tmp_path / "student" / results.COPIED).exists() != links
        weights = (tmp_path / "student" / "model.safetensors").read_bytes()
        assert (
            weights
            == (tmp_path / f"checkpoint-{steps:06d}" / "student" / "model.safetensors").read_bytes()
        )


def test_an_evaluation_never_writes_over_a_training_run(tokenizer, teacher, tmp_path):
    run = tmp_path / "run"
    distilled(tokenizer, teacher, run)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    tree = {"run": str(run), "method": "sft", "student": {"model": "vistill:student"}}
    with refused("C201") as caught:
        vistill.evaluate(build_recipe(tree))
    assert caught.value.fix == f"run={run}-eval"
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_a_lock_that_cannot_be_opened_ends_in_a_message(tmp_path):
    (tmp_path / ".owner").mkdir()  # as with a read-only folder: opening it for writing is refused
    with refused("S601", StorageError), RunFolder(tmp_path).locked():
        pass


def test_a_setting_that_was_masked_is_never_taken_for_what_it_was(tokenizer, teacher, tmp_path):
    hidden = replace(DataSettings(), system="see https://me:secret99@host/x")
    distilled(tokenizer, teacher, tmp_path, data=hidden)
    distilled(tokenizer, teacher, tmp_path, data=hidden)
    assert "secret99" not in (tmp_path / "recipe.json").read_text()
    with refused("S605", StorageError) as caught:
        recipe_for(str(tmp_path), [], "eval")
    assert "data.system=VALUE" in caught.value.fix
    assert recipe_for(str(tmp_path), ["data.system=see"], "eval").data.system == "see"
    with refused("S605", StorageError):
        replay_run(tmp_path)


def test_a_run_is_replayed_by_its_path_as_text_as_the_message_says(tokenizer, teacher, tmp_path):
    distilled(tokenizer, teacher, tmp_path)
    assert vistill.replay(str(tmp_path))[0].same


def test_a_limit_of_the_last_evaluation_counts_where_a_run_is_judged(tokenizer, teacher, tmp_path):
    distilled(tokenizer, teacher, tmp_path)
    limit = lambda *words: recipe_for(str(tmp_path), list(words), "eval").eval.limit
    assert (limit(), limit("eval.final_limit=4"), limit("eval.final_limit=4", "eval.limit=3")) == (
        None,
        4,
        3,
    )


# the chosen checkpoint


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"samples": 2}, {"temperature": 0.5}, {"max_new_tokens": 4}]
)
def test_evaluations_of_another_protocol_are_never_compared(tokenizer, teacher, tmp_path, change):
    judged = replace(
        OPTIONS["evaluation"], every=1, limit=2, max_new_tokens=5, greedy=False, blind=False
    )
    options = {
        "student": build_model(tokenizer, 0),
        "eval_prompts": diagram_prompts("val", 3, 0),
        "evaluation": judged,
    }
    distilled(tokenizer, teacher, tmp_path, train=STEPS[3], **options)
    log = tmp_path / "evaluations.jsonl"
    records = [
        json.loads(line) | {"selection/accuracy": 1.0} for line in log.read_text().splitlines()
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    options["evaluation"] = replace(judged, **change)
    distilled(tokenizer, teacher, tmp_path, train=STEPS[5], accept=["train.steps"], **options)
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
    with refused("C201") as caught:
        check(str(tmp_path / "recipe.yaml"), fast=True)
    assert "warmed up" in caught.value.what


@pytest.mark.parametrize("fast", [True, False])
def test_check_takes_the_recipe_of_a_distill_folder(tokenizer, teacher, tmp_path, fast):
    run = tmp_path / "run"
    distilled(tokenizer, teacher, run)  # both models are stored in the folder, under {run}
    found = check(str(run / "recipe.json"), fast=fast)["run"]
    assert any(line.what == "data" and line.summary.startswith("4 training rows") for line in found)


def test_a_value_that_an_earlier_version_did_not_log_is_no_difference(tokenizer, teacher, tmp_path):
    distilled(tokenizer, teacher, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("coefficient/reverse_kl")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    replayed, _ = replay_run(tmp_path, 3)
    assert replayed.same
