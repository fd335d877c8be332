"""A response_source with a valid recipe on it, and a user who reads a message, pastes its fix behind the same command, and tries again."""

import contextlib
import io
import json
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass, field

from conftest import REPO
from PIL import Image

from vistill.cli.main import entry

ASSETS = REPO / "vistill" / "assets"
ROWS = 8
RECIPE = """\
run: runs/x
student: {model: 'vistill:student'}
teacher: {model: 'vistill:teacher'}
method: va_opd
data:
  train: data/rows.jsonl
rollout: {per_prompt: 2, max_new_tokens: 8}
train: {prompts_per_step: 2, steps: 1, lr: 1e-4}
save: {keep_best: none}
eval: {every: 0}
"""
#: What can be pasted behind a command as it stands; words in capitals are for the user to fill in.
OVERRIDE = r"[a-z_][\w.]*=(?![A-Z_]{3,}(?:\W|$))[^\s,]*"
PASTE = re.compile(
    rf"--accept [\w.,]+|{OVERRIDE}(?: {OVERRIDE})*|vistill [a-z]+(?: [^\s]+)*|pip install .+"
)


@dataclass
class Outcome:
    """What a user sees of a command."""

    status: int
    shown: str
    error: dict = field(default_factory=dict)

    @property
    def code(self):
        return self.error.get("code")

    def pastes(self):
        """The alternatives of the fix that can be pasted."""
        return PASTE.findall(self.error["fix"])


class Desk:
    """A folder with models, pictures, rows and a recipe; commands run in it."""

    def __init__(self, folder):
        self.folder, self.command, self.words = folder, "check", []
        (folder / "data" / "images").mkdir(parents=True)
        for number in range(ROWS):
            picture = Image.new("RGB", (64, 64), (30 * number, 120, 200))
            picture.paste((255, 255, 255), (8, 8 + 4 * number, 40, 24 + 4 * number))
            picture.save(folder / "data" / "images" / f"fig_{number}.png")
        self.rows = [
            {"question": f"How many bars has figure {n}?", "images": [f"images/fig_{n}.png"], "answer": str(n), "response": f"{n} bars"}
            for n in range(ROWS)
        ]  # fmt: skip
        self.save()
        self.recipe()

    def save(self, name="rows.jsonl", rows=None):
        """Write the rows."""
        text = "".join(json.dumps(row) + "\n" for row in (self.rows if rows is None else rows))
        (self.folder / "data" / name).write_text(text)

    def recipe(self, old="", new="", more=""):
        """Write the recipe, one thing changed."""
        assert old in RECIPE
        (self.folder / "r.yaml").write_text(
            RECIPE.replace(old, new, 1) + more if old else RECIPE + more
        )

    def models(self, *names):
        """Local copies of the shipped models, and what the recipe calls them."""
        for name in names:
            shutil.copytree(
                ASSETS / (name if (ASSETS / name).is_dir() else "teacher"),
                self.folder / "models" / name,
            )
        self.words += [
            f"{name}.model=models/{name}" for name in names if name in ("student", "teacher")
        ]

    def edit(self, model, file, **changes):
        """Change values in a JSON file of a model; `a__b` is b inside a."""
        path = self.folder / "models" / model / file
        tree = json.loads(path.read_text())
        for key, value in changes.items():
            group, _, last = key.rpartition("__")
            (tree[group] if group else tree)[last] = value
        path.write_text(json.dumps(tree))

    def attempt(self, *pasted):
        """Run the command, with something pasted behind it."""
        return run([self.command, "r.yaml", *self.words, *pasted], self.folder)

    def paste(self, text):
        """A fix: words behind the same command, or a command of its own."""
        words = shlex.split(text)
        return run(words[1:], self.folder) if words[0] == "vistill" else self.attempt(*words)


def run(words, folder):
    """The real entry in this process, as if typed in a folder."""
    twin = folder / "error.json"
    twin.unlink(missing_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            entry([str(word) for word in words])
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
    error = json.loads(twin.read_text()) if twin.exists() else {}
    return Outcome(status, err.getvalue(), error)


def examine(outcome, code):
    """The message: right code, at most twelve lines, each with something to say, and the same for machines."""
    assert outcome.code == code, outcome.shown or outcome
    shown = outcome.shown.strip("\n").splitlines()
    start = next(i for i, line in enumerate(shown) if line.startswith(f"error[{code}]: "))
    lines = shown[start:]
    assert len(lines) <= 12, outcome.shown
    assert all(re.search(r"\w", line) for line in lines), outcome.shown
    assert "Traceback" not in outcome.shown
    assert outcome.status == int(outcome.error["exit_code"]) != 0
    for part in ("what", "why", "fix"):
        assert outcome.error[part], f"{code} has no {part}"
        assert outcome.error[part].splitlines()[0] in outcome.shown
    assert not re.search(r"(?:/tmp|/work|/home)/\S*assets", outcome.shown), (
        "a shipped model is named by its path"
    )


def mend(response_source, first, tries=4):
    """Paste fixes until the command passes; no code comes twice."""
    seen, outcome = [], first
    while outcome.status and len(seen) < tries:
        assert outcome.code not in seen, f"{seen}, then again:\n{outcome.shown}"
        assert outcome.code, outcome.shown
        seen.append(outcome.code)
        assert outcome.pastes(), f"nothing to paste:\n{outcome.shown}"
        words = shlex.split(outcome.pastes()[0])
        if words[0] == "vistill":
            return response_source.paste(outcome.pastes()[0])
        response_source.words += words
        outcome = response_source.attempt()
    assert outcome.status == 0, f"after {seen}:\n{outcome.shown}"
    return outcome


def is_installable(text):
    """Whether `pip install ...` names this package with an extra it has, and no file that is not there."""
    words = shlex.split(text)
    name, extra = re.fullmatch(r"(\w+)\[(\w+)\]", words[2]).groups()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return name == project["name"] and extra in project["optional-dependencies"] and len(words) == 3


def lock_weights(patch):
    """Whoever loads weights fails: what can be known without them must be said before."""

    def refuse(*arguments, **options):
        raise AssertionError("weights were loaded before the mistake was named")

    patch.setattr("vistill.training.checks.models.load_weights", refuse)
