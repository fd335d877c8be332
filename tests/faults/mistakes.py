"""A folder with a valid recipe, and a user who reads a message, pastes its fix and tries again."""

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
#: A fix that can be pasted after a command as it is; the user fills in words in capitals.
OVERRIDE = r"[a-z_][\w.]*=(?![A-Z_]{3,}(?:\W|$))[^\s,]*"
PASTE = re.compile(
    rf"--accept [\w.,]+|{OVERRIDE}(?: {OVERRIDE})*|vistill [a-z]+(?: [^\s]+)*|pip install .+"
)


@dataclass
class Outcome:
    """What a user sees of a command: exit status, text, and the error as JSON."""

    status: int
    shown: str
    error: dict = field(default_factory=dict)

    @property
    def code(self):
        return self.error.get("code")

    def pasteable_fixes(self):
        """The alternatives of the fix that can be pasted."""
        return PASTE.findall(self.error["fix"])


class Workspace:
    """A folder with models, images, rows and a recipe; commands run in it."""

    def __init__(self, folder):
        self.folder, self.command, self.arguments = folder, "check", []
        (folder / "data" / "images").mkdir(parents=True)
        for number in range(ROWS):
            image = Image.new("RGB", (64, 64), (30 * number, 120, 200))
            image.paste((255, 255, 255), (8, 8 + 4 * number, 40, 24 + 4 * number))
            image.save(folder / "data" / "images" / f"fig_{number}.png")
        self.rows = [
            {
                "question": f"How many bars has figure {n}?",
                "images": [f"images/fig_{n}.png"],
                "answer": str(n),
                "response": f"{n} bars",
            }
            for n in range(ROWS)
        ]
        self.save()
        self.recipe()

    def save(self, name="rows.jsonl", rows=None):
        """Write the rows."""
        text = "".join(json.dumps(row) + "\n" for row in (self.rows if rows is None else rows))
        (self.folder / "data" / name).write_text(text)

    def recipe(self, old="", new="", more=""):
        """Write the recipe with one change."""
        assert old in RECIPE
        (self.folder / "r.yaml").write_text(
            RECIPE.replace(old, new, 1) + more if old else RECIPE + more
        )

    def models(self, *names):
        """Copy included models to the folder, and let the recipe use them."""
        for name in names:
            shutil.copytree(
                ASSETS / (name if (ASSETS / name).is_dir() else "teacher"),
                self.folder / "models" / name,
            )
        self.arguments += [
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
        """Run the command, with pasted words after it."""
        return run([self.command, "r.yaml", *self.arguments, *pasted], self.folder)

    def paste(self, text):
        """Apply a fix: words after the same command, or another command."""
        words = shlex.split(text)
        return run(words[1:], self.folder) if words[0] == "vistill" else self.attempt(*words)


def run(words, folder):
    """Run the command line in this process, as if typed in a folder."""
    error_file = folder / "error.json"
    error_file.unlink(missing_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            entry([str(word) for word in words])
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
    error = json.loads(error_file.read_text()) if error_file.exists() else {}
    return Outcome(status, err.getvalue(), error)


def check_message(outcome, code):
    """Check a message: its code, at most twelve lines, none empty, the same content as JSON."""
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
        "an included model is named by its path"
    )


def apply_fixes(workspace, first, tries=4):
    """Paste fixes until the command passes; fail if a code repeats."""
    seen, outcome = [], first
    while outcome.status and len(seen) < tries:
        assert outcome.code not in seen, f"{seen}, then again:\n{outcome.shown}"
        assert outcome.code, outcome.shown
        seen.append(outcome.code)
        assert outcome.pasteable_fixes(), f"nothing to paste:\n{outcome.shown}"
        words = shlex.split(outcome.pasteable_fixes()[0])
        if words[0] == "vistill":
            return workspace.paste(outcome.pasteable_fixes()[0])
        workspace.arguments += words
        outcome = workspace.attempt()
    assert outcome.status == 0, f"after {seen}:\n{outcome.shown}"
    return outcome


def is_installable(text):
    """Whether `pip install ...` names this package with one of its extras."""
    words = shlex.split(text)
    name, extra = re.fullmatch(r"(\w+)\[(\w+)\]", words[2]).groups()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return name == project["name"] and extra in project["optional-dependencies"] and len(words) == 3


def forbid_loading_weights(patch):
    """Make loading weights fail: the mistake must be reported before."""

    def refuse(*arguments, **options):
        raise AssertionError("weights were loaded before the mistake was reported")

    patch.setattr("vistill.models.loading.AutoModelForImageTextToText.from_pretrained", refuse)
