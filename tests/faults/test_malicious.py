"""Hostile recipes, rows, models and checkpoints run no code, open no connection, never hang."""

import json
import os
import pickle
import shutil

import pytest
from PIL import Image
from published import publish_checkpoint

from vistill.config import load_recipe
from vistill.data.loading import load_source
from vistill.data.settings import Columns, DataSettings
from vistill.errors import ConfigError, DataError, ModelError, StorageError
from vistill.models.loading import load_vlm
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import (
    MANIFEST,
    TrainedObjects,
    newest_checkpoint,
)
from vistill.training.optim import make_optimizer
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings

BASE = (
    "run: runs/x\nmethod: va_opd\nstudent: {model: a}\nteacher: {model: b}\n"
    "data: {train: diagrams}\n"
)


class Payload:
    """Creates its marker when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "MARKER"
    yield path
    assert not path.exists(), "the payload ran"


RECIPES = {
    "python object": BASE + "seed: !!python/object/apply:os.mkdir ['{marker}']\n",
    "python name": BASE + "seed: !!python/name:os.system\n",
    "python module": BASE + "seed: !!python/module:antigravity\n",
    "unknown tag": BASE + "seed: !vendor/run '{marker}'\n",
    "aliases": BASE.replace("run: runs/x", "run: &a runs/x") + "seed: *a\n",
    "billion laughs": BASE + "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
    "merge key": BASE + "save: {{<<: {{every: 1}}}}\n",
    "remote code": BASE + "trust_remote_code: true\n",
    "remote code of the student": BASE.replace("{model: a}", "{model: a, trust_remote_code: true}"),
    "plugins": BASE + "external_plugins: [evil.py]\n",
    "a plug-in": BASE + "plugins: [evil.py]\n",
    "a method of a file": BASE.replace("method: va_opd", "method: evil.py"),
    "a method of a module of the working folder": BASE.replace(
        "method: va_opd", "method: 'evil:Method'"
    ),
    "a method of the standard library": BASE.replace("method: va_opd", "method: 'os:mkdir'"),
    "an engine of a file": BASE + "rollout: {{engine: evil.py}}\n",
    "an engine of a module": BASE + "rollout: {{engine: 'evil:engine'}}\n",
    "a checker of a module": BASE + "eval: {{checker: 'evil:engine'}}\n",
    "a thought source of a module": BASE + "views: {{thought: 'evil:engine'}}\n",
    "a reward of a module": BASE + "reward: {{extra: {{'evil:engine': 1.0}}}}\n",
    "deep": BASE + "seed: " + "[" * 3000 + "]" * 3000 + "\n",
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_hostile_recipe_is_refused(name, tmp_path, marker, monkeypatch):
    """Also if a file with that name is in the same folder, where Python would import it."""
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(
        RECIPES[name].replace("{marker}", str(marker)).replace("{{", "{").replace("}}", "}")
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(file)
    assert caught.value.code in {"C001", "C002", "C003", "C102", "C105"}
    assert len(caught.value.render().splitlines()) <= 12


def test_a_hostile_run_folder_executes_no_plug_in(tmp_path, marker, monkeypatch):
    """The lock names a plug-in file of the folder: the error names it, nothing executes it."""
    import vistill
    from vistill.cli.target import recipe_for

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    code = {
        "methods.evil": {"from": "file run/evil.py; rm -rf x", "sha256": "0"},
        "methods.p": {"from": "package p; rm x 1", "sha256": ""},
    }
    (run / "run.lock.json").write_text(json.dumps({"code": code}))
    tree = {
        "run": "run",
        "student": {"model": "a"},
        "teacher": {"model": "b"},
        "data": {"train": "diagrams"},
    }
    for method in ("evil", "p"):
        (run / "recipe.json").write_text(
            json.dumps({**tree, "method": method, method: {}, "eval": {"final_limit": None}})
        )
        with pytest.raises(ConfigError) as caught:
            vistill.replay(run)
        assert caught.value.code == "C102"
        assert (
            "rm" not in caught.value.fix
            or "'run/evil.py; rm -rf x'" in caught.value.fix
            or '["' in caught.value.fix
        )
        with pytest.raises(ConfigError):
            load_recipe(run / "recipe.json")
        assert recipe_for("run", [], "eval").method == "sft"


def test_an_override_with_a_tag_is_refused(tmp_path, marker):
    file = tmp_path / "recipe.yaml"
    file.write_text(BASE)
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, [f"seed=!!python/object/apply:os.mkdir ['{marker}']"])
    assert caught.value.code == "C005"


ROWS = {
    "traversal": ("../secret.png", "D206"),
    "traversal inside": ("a/../../secret.png", "D206"),
    "absolute": ("/etc/passwd", "D206"),
    "url": ("http://127.0.0.1:9/x.png", "D205"),
    "file url": ("file:///etc/passwd", "D205"),
    "ftp": ("ftp://127.0.0.1/x.png", "D205"),
    "data url": ("data:image/png;base64,AAAA", "D205"),
    "device": ("/dev/zero", "D206"),
    "link out": ("link.png", "D206"),
    "pipe": ("pipe.png", "D201"),
    "folder": ("folder.png", "D201"),
    "not a picture": ("script.png", "D202"),
    "svg": ("picture.svg", "D202"),
    "null byte": ("a\0b.png", "D206"),
    "long name": ("x" * 5000 + ".png", "D206"),
}


@pytest.fixture
def folder(tmp_path):
    """A data folder with an image outside the image folder, and hostile entries inside it."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "data" / "secret.png")
    (data / "images" / "link.png").symlink_to(data / "secret.png")
    os.mkfifo(data / "images" / "pipe.png")
    (data / "images" / "folder.png").mkdir()
    (data / "images" / "script.png").write_text("#!/bin/sh\nmkdir MARKER\n")
    (data / "images" / "picture.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    )
    return data


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.timeout(20)
def test_a_hostile_image_is_refused_and_never_opened(name, folder):
    path, code = ROWS[name]
    file = folder / "rows.jsonl"
    file.write_text(json.dumps({"question": "What?", "images": path, "answer": "1"}) + "\n")
    columns = Columns(prompt="question", images="images", answer="answer")
    settings = DataSettings(
        train=str(file), images=str(folder / "images"), columns=columns, max_bad_share=0.0
    )
    with pytest.raises(DataError) as caught:
        load_source(str(file), settings, "train", None)
    assert caught.value.code == code, caught.value
    assert len(caught.value.render().splitlines()) <= 12


def edit_json(folder, name, change):
    """Change values in a JSON file of a model folder."""
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | change))


def remote_code(folder, marker):
    (folder / "modeling_evil.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n"
    )
    auto = {"AutoConfig": "modeling_evil.Evil", "AutoModelForImageTextToText": "modeling_evil.Evil"}
    edit_json(folder, "config.json", {"auto_map": auto})


def remote_family(folder, marker):
    remote_code(folder, marker)
    edit_json(folder, "config.json", {"model_type": "evil"})


def remote_tokenizer(folder, marker):
    (folder / "tokenization_evil.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n"
    )
    edit_json(
        folder,
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": [None, "tokenization_evil.Evil"]}},
    )


def remote_processor(folder, marker):
    (folder / "processing_evil.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n"
    )
    edit_json(
        folder,
        "preprocessor_config.json",
        {"auto_map": {"AutoImageProcessor": "processing_evil.Evil"}},
    )


def pickled_weights(folder, marker):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))


def pickle_under_a_safe_name(folder, marker):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))


def cut_weights(folder, marker):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def index_leading_out(folder, marker):
    (folder / "model.safetensors").unlink()
    names = {"model.language_model.embed_tokens.weight": "../../../../etc/passwd"}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )


MODELS = [
    remote_code,
    remote_family,
    remote_tokenizer,
    remote_processor,
    pickled_weights,
    pickle_under_a_safe_name,
    cut_weights,
    index_leading_out,
]


@pytest.mark.parametrize("attack", MODELS, ids=lambda f: f.__name__)
def test_a_hostile_model_folder_runs_no_code(attack, tiny_folder, tmp_path, marker, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    attack(folder, marker)
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked a question"))
    try:
        load_vlm(folder)
    except ModelError:
        return
    assert attack in {remote_code, remote_tokenizer, remote_processor}, (
        "loaded as if nothing were wrong"
    )


def test_a_chat_template_cannot_reach_python(tiny_folder, tmp_path, marker):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    attack = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        "{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}"
    ).replace("MARKER", str(marker))
    (folder / "chat_template.jinja").write_text(attack)
    from vistill.types import Prompt

    with pytest.raises(Exception, match=r"unsafe|undefined|access"):
        load_vlm(folder).encode(Prompt("p", ("hello",)))


@pytest.fixture
def run_folder(tmp_path, student):
    """A run folder with one checkpoint."""
    folder = RunFolder(tmp_path / "run")
    publish_checkpoint(
        folder,
        TrainedObjects(student, make_optimizer(student.model, TrainSettings()), RunState(step=1)),
        "x",
        keep=1,
    )
    return folder


def add_pickles(checkpoint, marker):
    (checkpoint / "rng.bin").write_bytes(pickle.dumps(Payload(marker)))
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Payload(marker)))


def manifest_leading_out(checkpoint, marker):
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    secret = checkpoint.parent.parent / "secret"
    secret.write_text("x")
    manifest["files"].append(["../../secret", 1, "0" * 32])
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def linked_weights(checkpoint, marker):
    file = checkpoint / "optimizer.safetensors"
    elsewhere = checkpoint.parent / "elsewhere"
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)


def manifest_of_another_kind(checkpoint, marker):
    (checkpoint / MANIFEST).write_text("[1, 2, 3]")


@pytest.mark.parametrize(
    "attack",
    [manifest_leading_out, linked_weights, manifest_of_another_kind],
    ids=lambda f: f.__name__,
)
def test_a_hostile_checkpoint_is_rejected_with_its_reason(attack, run_folder, marker):
    attack(run_folder.checkpoint(1), marker)
    with pytest.raises(StorageError) as caught:
        newest_checkpoint(run_folder)
    assert caught.value.code == "S604"
    assert "rejected checkpoint-000001" in run_folder.events.read_text()


def test_files_that_are_not_in_the_manifest_are_never_read(run_folder, marker, student):
    from vistill.training.checkpoint import restore_checkpoint

    add_pickles(run_folder.checkpoint(1), marker)
    checkpoint = newest_checkpoint(run_folder)
    assert checkpoint is not None
    restore_checkpoint(checkpoint, student, make_optimizer(student.model, TrainSettings()))
