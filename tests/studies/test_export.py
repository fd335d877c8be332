"""`vistill export`: a folder that transformers loads alone, its card, and bad input."""

import contextlib
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from finished_run import STUDENT, finished_run
from terminal_emulator import FakeTerminal
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vistill import Run
from vistill.cli.main import entry
from vistill.cli.messages import print_result
from vistill.errors import ConfigError, ModelError, StorageError
from vistill.export import export_model, find_bases, find_source, usage_commands
from vistill.models.export import write_model
from vistill.models.loading import load_vlm
from vistill.types import LoadedImage, Prompt


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run, and its export."""
    run = finished_run(tmp_path_factory.mktemp("runs") / "mine")
    return run, Run(run).export()


def run_verb(capsys, *words):
    """Exit code, stdout and stderr of a verb."""
    code = 0
    try:
        entry([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def question():
    from PIL import Image

    picture = Image.linear_gradient("L").resize((80, 48)).convert("RGB")
    return Prompt("p", (LoadedImage(picture), "What is x?"))


def test_transformers_loads_the_folder_and_its_logits_are_those_of_the_student(exported):
    run, result = exported
    assert result.folder == run.with_name("mine-export")
    model = AutoModelForImageTextToText.from_pretrained(result.folder)
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    ours = load_vlm(run / "student", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16  # as the student was saved
    state, saved = model.state_dict(), ours.model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    prompt = ours.encode(question())
    inputs = ours.family.generation_inputs([prompt], ours.pad_id)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, ours.model(**inputs).logits)
    assert tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x?"}]}]
    texts = [t.apply_chat_template(messages, tokenize=False) for t in (tokenizer, ours.tokenizer)]
    assert texts[0] == texts[1]
    assert model.generation_config.eos_token_id == ours.model.generation_config.eos_token_id


@pytest.mark.more
def test_auto_processor_reads_a_prompt_as_training_did(exported):
    pytest.importorskip("torchvision", reason="AutoProcessor of Qwen3-VL needs torchvision")
    from transformers import AutoProcessor

    run, result = exported
    assert "AutoProcessor reads a prompt with a picture as training" in str(result)
    ours = load_vlm(run / "student")
    expected = ours.encode(question())
    picture = question().images[0].load()
    processor = AutoProcessor.from_pretrained(result.folder)
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert type(processor.video_processor).__name__ == "Qwen3VLVideoProcessor"
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is x?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    read = processor.apply_chat_template(
        [{"role": "user", "content": content}], return_tensors="pt", **options
    )
    assert tuple(read["input_ids"][0].tolist()) == expected.ids
    assert torch.equal(read["image_grid_thw"], expected.pixels["image_grid_thw"])
    # torchvision and Pillow round a resized value to neighbouring grey levels
    difference = (read["pixel_values"] - expected.pixels["pixel_values"]).abs()
    assert float(difference.max()) <= 2 / 255 + 1e-6


def test_the_folder_has_every_file_and_nothing_is_left_behind(exported):
    run, result = exported
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    }
    assert {path.name for path in run.parent.iterdir()} == {"mine", "mine-export"}
    assert (result.folder / "model.safetensors").stat().st_mode & 0o044  # others may read it


@pytest.mark.more
def test_a_precision_is_converted_and_named(exported, tmp_path):
    run, _ = exported
    result = export_model(run, tmp_path / "full", dtype="fp32")
    config = json.loads((result.folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "float32" in (result.folder / "README.md").read_text()


@pytest.mark.more
def test_large_weights_are_sharded(exported, tmp_path):
    run, _ = exported
    folder = tmp_path / "many"
    folder.mkdir()
    write_model(str(run / "student"), folder, shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    whole = load_vlm(run / "student", dtype=torch.bfloat16).model.state_dict()
    read = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(read[name], whole[name]) for name in whole)


def test_the_card_states_the_run(exported):
    _, result = exported
    text = (result.folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["library_name"] == "transformers"
    assert meta["pipeline_tag"] == "image-text-to-text"
    assert "va_opd" in meta["tags"]
    assert "base_model" not in meta  # a shipped model has no place on the hub
    for fact in (
        '`{"high_share": 0.3}`',
        "`vistill:student`",
        "`vistill:teacher`",
        "1,200 rows",
        "400 rows",
        "run 42, evaluation 0, diagrams 0",
        "| accuracy, T = 1 | 25.0 % [20.0, 30.0] | 66.0 % [60.0, 70.0] | 400 |",
        "| accuracy, greedy | 50.0 % [40.0, 60.0] | 50.0 % [40.0, 60.0] | 128 |",
        "| accuracy, image pixelated | 10.0 % | 10.0 % | 64 |",
        "8,000 tokens",
        "vistill train r.yaml",
        "checkpoint-000002",
        "transformers",
        "licences",
    ):
        assert fact in body, fact
    hashes = re.findall(r"content `([0-9a-f]{32})`", body)
    assert len(set(hashes)) == 2
    assert "hf_abc" not in text
    assert "hf_token=***" in text
    assert "Each question has 1 response, top_p" in body
    assert "processor" not in body.split("## Limits")[1]  # what its files need is no limit
    assert "api_key=EMPTY" in text  # the placeholder of a local server is no secret


@pytest.mark.more
def test_a_card_holds_what_data_and_settings_say_as_text(tmp_path):
    nasty = "`|\n# heading <script>\x1b[31m"
    run = finished_run(tmp_path / "r", data={"train": "diagrams", "system": nasty})
    text = (export_model(run).folder / "README.md").read_text()
    assert "\x1b" not in text
    assert "\n# heading" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `data`")]
    assert len(rows) == 1
    assert rows[0].count("|") == 3


@pytest.mark.more
def test_a_hub_base_and_data_set_are_in_the_front_matter_and_home_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = finished_run(tmp_path / "r")
    for name in ("recipe.json", "run.lock.json"):
        tree = json.loads((run / name).read_text())
        recipe = tree.get("recipe", tree)
        recipe["student"]["model"] = "Qwen/Qwen3-VL-2B-Instruct"
        recipe["data"]["train"] = "hf:owner/rows[train]"
        if "command" in tree:
            tree["command"] = f"vistill train {tmp_path}/r.yaml"
        (run / name).write_text(json.dumps(tree))
    text = (export_model(run).folder / "README.md").read_text()
    meta = yaml.safe_load(text.split("---\n", 2)[1])
    assert meta["base_model"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert meta["datasets"] == ["owner/rows"]
    assert "vistill train ~/r.yaml" in text
    assert str(tmp_path) not in text


@pytest.mark.more
def test_any_model_folder_and_any_checkpoint_can_be_exported(tmp_path):
    run = finished_run(tmp_path / "r", finished=False)
    result = export_model(run / "checkpoint-000002" / "student", tmp_path / "a")
    assert "| checkpoint | checkpoint-000002 |" in (result.folder / "README.md").read_text()
    plain = export_model("vistill:student", tmp_path / "b").folder
    assert "exported by vistill from `vistill:student`" in (plain / "README.md").read_text()


def test_the_bases_of_a_run_that_continued_another_run_are_all_named(tmp_path):
    first = finished_run(tmp_path / "first")
    second = finished_run(tmp_path / "second", student=STUDENT)
    for name in ("recipe.json",):
        tree = json.loads((second / name).read_text())
        tree["student"]["model"] = str(first)
        (second / name).write_text(json.dumps(tree))
    bases = find_bases(find_source(str(second)))
    assert bases == [str(first / "checkpoint-000002" / "student"), str(STUDENT)]


def test_an_existing_folder_is_refused_with_a_free_name(exported, capsys):
    run, result = exported
    before = sorted(p.stat().st_mtime_ns for p in result.folder.iterdir())
    code, _, err = run_verb(capsys, "export", run)
    assert code == 6
    assert "error[S608]" in err
    assert f"fix   --to {result.folder}-2" in err
    assert sorted(p.stat().st_mtime_ns for p in result.folder.iterdir()) == before


def test_an_unfinished_run_is_refused_with_its_newest_checkpoint(tmp_path, capsys):
    run = finished_run(tmp_path / "r", finished=False)
    code, _, err = run_verb(capsys, "export", run)
    assert code == 6
    assert "error[S605]" in err
    assert f"fix   {run}/checkpoint-000002/student   in place of {run}" in err
    assert not run.with_name("r-export").exists()


def test_a_model_that_does_not_exist_is_named_in_words_of_the_verb(tmp_path, capsys):
    code, _, err = run_verb(capsys, "export", "vistill:studnt")
    assert code == 4
    assert "fix   vistill:student   in place of vistill:studnt" in err
    assert "student.model" not in err


def test_a_student_without_a_processor_is_refused_before_its_weights(tmp_path):
    run = finished_run(tmp_path / "r")
    (run / "student" / "preprocessor_config.json").unlink()
    (run / "student" / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ModelError) as caught:
        export_model(run)
    assert caught.value.code == "M120"
    assert str(STUDENT / "preprocessor_config.json") in caught.value.fix
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


@pytest.mark.more
def test_a_failure_while_writing_leaves_nothing(tmp_path):
    run = finished_run(tmp_path / "r")
    (run / "student" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError) as caught:
        export_model(run)
    assert caught.value.code == "M107"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"push": "noslash"}, {"push": "a/b c"}])
def test_options_are_checked_first(tmp_path, options):
    with pytest.raises(ConfigError) as caught:
        export_model(tmp_path / "missing", **options)
    assert caught.value.code == "C002"


@pytest.mark.more
def test_too_little_space_is_said_before_anything_is_written(exported, tmp_path, monkeypatch):
    run, _ = exported
    full = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(StorageError) as caught:
        export_model(run, tmp_path / "x")
    assert caught.value.code == "S601"
    assert list(tmp_path.iterdir()) == []


class StandInHub:
    """What an upload calls, on this machine."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def whoami(self):
        return {"name": "owner"}

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.error is not None:
            raise self.error
        self.calls.append(("create", repo_id, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, folder_path))


@pytest.mark.more
def test_a_push_uploads_the_complete_folder_to_a_private_repository(exported, tmp_path):
    run, _ = exported
    hub = StandInHub()
    result = export_model(run, tmp_path / "x", push="owner/name", hub=hub)
    assert hub.calls == [
        ("create", "owner/name", True),
        ("upload", "owner/name", str(tmp_path / "x")),
    ]
    assert "https://huggingface.co/owner/name" in str(result)


@pytest.mark.more
def test_a_refused_push_keeps_the_folder_and_names_the_command(exported, tmp_path):
    run, _ = exported
    hub = StandInHub(OSError("403 Forbidden: no write access"))
    with pytest.raises(StorageError) as caught:
        export_model(run, tmp_path / "x", push="owner/name", hub=hub)
    assert caught.value.code == "S609"
    assert "403" in caught.value.why
    assert caught.value.fix == f"hf upload owner/name {tmp_path}/x --private"
    assert (tmp_path / "x" / "config.json").is_file()


def test_a_push_without_network_or_login_is_refused_before_the_weights(
    exported, tmp_path, monkeypatch, capsys
):
    run, _ = exported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run_verb(capsys, "export", run, "--to", tmp_path / "x", "--push", "a/b")
    assert code == 6
    assert "error[S609]" in err
    assert "HF_HUB_OFFLINE" in err
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(StorageError) as caught:
        export_model(run, tmp_path / "x", push="a/b")
    assert "no token" in caught.value.why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answers", [False, True])
def test_a_push_to_a_hub_that_does_not_answer_names_the_upload_for_later(
    exported, tmp_path, answers
):
    from types import SimpleNamespace

    from huggingface_hub.errors import HfHubHTTPError

    class Hub:
        def whoami(self):
            if not answers:
                raise HfHubHTTPError.__bases__[0]("[Errno -2] Name or service not known")
            reply = SimpleNamespace(headers={}, request=None)
            raise HfHubHTTPError("401 Unauthorized", response=reply)

    run, _ = exported
    with pytest.raises(StorageError) as caught:
        export_model(run, tmp_path / "x", push="a/b", hub=Hub())
    export, _, upload = caught.value.fix.partition("   and, with a network,   ")
    if answers:
        assert export == "hf auth login"
        return
    assert "does not answer" in caught.value.why
    assert export == f"vistill export {run} --to {tmp_path}/x"
    assert upload == f"hf upload a/b {tmp_path}/x --private"


@pytest.mark.parametrize("name", ["no/such/folder", "owner/model"])
def test_a_missing_model_is_said_at_once(tmp_path, monkeypatch, name):
    from vistill.runs import hub

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # no test asks a real hub
    monkeypatch.setattr(hub, "hub_answers", asked.append)
    with (
        pytest.raises(ModelError) as caught,
        pytest.warns(match="does not answer")
        if (name == "owner/model")
        else contextlib.nullcontext(),
    ):
        export_model(name, tmp_path / "x")
    assert caught.value.code == "M103"
    assert len(asked) == (name == "owner/model")


def test_the_card_has_no_path_of_the_run_and_plain_words(tmp_path):
    from vistill.report.model_card import warning

    after = {"unparsed_share": 0.5}
    text = "Warning: 50.0 % of the responses contain no answer and count as wrong."
    assert warning(after) == [text]


def test_the_printed_commands_are_shell_and_python(tmp_path, capsys):
    import ast
    import shlex

    text = usage_commands(tmp_path / "a folder's name")
    program = text.split("<<'EOF'\n")[1].split("\nEOF\n")[0]
    ast.parse(program)
    serve = next(line for line in text.splitlines() if line.startswith("vllm"))
    assert shlex.split(serve)[2] == str(tmp_path / "a folder's name")
    assert "lmms_eval" in text
    assert "MMStar" in text


def test_the_printed_comments_and_program_fit_80_columns():
    text = usage_commands(Path("runs/va_opd-export"))
    lines = [line for line in text.splitlines() if not line.startswith(("vllm", "python"))]
    assert max(map(len, lines)) < 80


def test_notes_of_an_export_break_between_words_on_a_terminal(exported):
    _, result = exported
    note = "a note that is longer than forty columns, so that it needs two rows"
    shown = dataclasses.replace(
        result, folder=Path("out"), model=dataclasses.replace(result.model, notes=(note,))
    )
    terminal = FakeTerminal(40)
    with contextlib.redirect_stdout(terminal):
        print_result(shown.summary())
    at = terminal.rows.index("note     a note that is longer than")
    assert terminal.rows[at + 1] == "         forty columns, so that it needs"
