"""A user who reads a fix, pastes it in bash, and looks at what comes next.

bash parses the line as it stands. `vistill` is a function that records its words; they then run in
this process. Other programs run as they are, `pip`, `git` and `hf` are only recorded.
"""

import ast
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_sites import PROGRAMS, sites_on_stack

from vistill import faults
from vistill.cli import main
from vistill.errors import VistillError
from vistill.registry import forget_plugins

RECORDED = ("vistill", "pip", "git", "hf")
SHIMS = "".join(
    f'{name}() {{ printf \'%s\\0\' $(($# + 1)) {name} "$@" >> "$CALLS"; }}\n' for name in RECORDED
)
SHIMS += 'python() { "$PYTHON" "$@"; }\n'
#: Words for which the user puts a value.
PLACEHOLDER = re.compile(
    r"KEY=VALUE|hf:OWNER/NAME\[SPLIT\]|\bOWNER/NAME\b|\b(?:FOLDER_OR_HUB_ID|OTHER_FOLDER|RUN_FOLDER|FOLDER|COLUMN|"
    r"FILE(?:\.jsonl|\.yaml|\.py)?|NEW|RECIPE|TARGET|VALUE|TEXT|PACKAGE|SMALLER|LARGER|OTHER)\b"
)
#: An expression of Python.
PYTHON = re.compile(r"(?:\w+ = )?vistill\.|plugins=\[")
#: What stands in front of a command that only shows something.
LOOKING = re.compile(r"(?:shown|tested) by$")
#: Programs that act elsewhere: here only the form of the command is checked.
ELSEWHERE = ("git", "hf", "pip", "unset", "export")
SHELL_WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|\\.|[^\s'\"\\])+")
SETTING = re.compile(r"[A-Za-z_][\w.]*(?::[\w.]+)?=", re.ASCII)
OPTIONS = ("--gpu", "--profile", "--config", "--disk", "--accept", "--stage", "--plugin", "--step",
           "--image", "--ask", "--before", "--teacher",
           "--temperature", "--to", "--dtype", "--push", "--out", "--preview",
           "--html", "--tasks", "--suite", "--protocol", "--data", "--retry-errors")  # fmt: skip


@dataclass
class Step:
    """Something to paste: words after the command, in place of others, or a command."""

    text: str
    is_command: bool = False
    wrong: str = ""
    only_looks: bool = False
    is_python: bool = False

    @property
    def placeholders(self):
        return PLACEHOLDER.findall(self.text)


def settings_in(segment):
    """Groups of settings and options that stand next to each other in a text."""
    groups, last, takes_value = [], -2, False
    for match in SHELL_WORD.finditer(segment):
        word = match.group().rstrip(",;") or match.group()
        is_setting = SETTING.match(word.lstrip("'\"")) or word in OPTIONS or takes_value
        if not is_setting:
            takes_value = False
            continue
        if match.start() == last + 1 and groups:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
        takes_value = word in OPTIONS
        last = match.end() if word == match.group() else -2
    return groups


def alternatives(fix):
    """The alternatives of a fix, each a list of steps; empty for an instruction to a person.

    Three spaces or a line break separate what is pasted from words. A command begins a part, or
    follows a colon.
    """
    choices, chained, before = [], False, ""
    segments = re.split(r" {3,}|\n", fix)
    for segment, after in zip(segments, [*segments[1:], ""], strict=True):
        command = re.match(
            rf"(?:.*?: )?((?:{'|'.join(PROGRAMS)}|unset|export|hf|\S+/python[\d.]*)\s.*)", segment
        )
        if segment.startswith("in place of "):
            if not choices[-1][-1].is_python:
                choices[-1][-1].wrong = segment.removeprefix("in place of ")
            continue
        if segment == "and then":
            chained = True
            continue
        if segment.startswith(("and ", "(")):
            continue
        if PYTHON.match(segment):
            steps = [Step(segment, is_python=True)]
        elif command:
            looks = LOOKING.search(before) is not None
            steps = [Step(command[1], is_command=True, only_looks=looks)]
        else:
            steps = [Step(text) for text in settings_in(segment)]
        is_file = re.fullmatch(r"'?[\w./-][^:;,]*\.(yaml|toml|json)'?", segment)
        if not steps and (is_file or after.startswith("in place of ")):
            steps = [Step(segment)]  # another word, in place of one of the command
        for step in steps:
            if chained:
                choices[-1].append(step)
            else:
                choices.append([step])
            chained = False
        before = segment
    return choices


@dataclass
class Outcome:
    """What a command ended with."""

    error: VistillError | None = None
    sites: list = field(default_factory=list)
    raised_by: str = ""
    crash: str = ""
    shown: str = ""

    @property
    def code(self):
        return self.error.code if self.error is not None else ""

    @property
    def identity(self):
        """The code and the place that raised it: the same twice is a circle."""
        return (self.code, self.raised_by)


@contextlib.contextmanager
def recorded_errors():
    """The errors that are constructed inside, each with the sites that gave it its fix."""
    recorded, plain = [], VistillError.__init__

    def record(self, *arguments, **named):
        plain(self, *arguments, **named)
        recorded.append((self, sites_on_stack()))

    with pytest.MonkeyPatch.context() as patch:
        # the only place through which every error goes, also those that are kept as text
        patch.setattr(VistillError, "__init__", record)
        yield recorded


def sites_behind(error, recorded):
    """The sites of an error, and of those that lent it their fix."""
    chain = []
    waiting = [error]
    while waiting:  # an error can be its own cause: `raise error from error`
        one = waiting.pop(0)
        if one is not None and one not in chain:
            chain.append(one)
            waiting += [one.__cause__, one.__context__]
    own = [sites for one in chain for other, sites in recorded if other is one]
    lent = [
        s for other, s in recorded if other is not error and other.fix and other.fix in error.fix
    ]
    return [site for sites in (*own, *lent) for site in sites]


class Place:
    """A working folder with awkward names, and the command that is typed there."""

    def __init__(self, folder):
        self.folder = folder / "Ordner ü (1) & it's"
        self.folder.mkdir(parents=True)
        self.line = ""
        self.once = {}
        """Environment of the first command only: it simulates a cause that passes."""
        self.patches = []
        """Functions of a MonkeyPatch that simulate the cause for the first command."""
        self.raises = None
        """A function that gives the error, where no command can: it runs in place of the first."""

    def write(self, name, text, encoding="utf-8"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    def type(self, line):
        """Type a line: what bash makes of it, and what the commands then do."""
        once, patches, raises = self.once, self.patches, self.raises
        self.once, self.patches, self.raises = {}, [], None
        with pytest.MonkeyPatch.context() as patch:
            for name, value in once.items():
                patch.setenv(name, value)
            for plant in patches:
                plant(patch)
            return caught_here(raises, self) if raises else self.run(line)

    def run(self, line):
        """Run a line in bash, and the recorded commands of vistill here."""
        calls = self.folder.parent / "calls"
        calls.write_bytes(b"")
        environment = {**os.environ, "CALLS": str(calls), "PYTHON": sys.executable}
        done = subprocess.run(
            ["bash", "-c", SHIMS + line], cwd=self.folder, env=environment, capture_output=True
        )
        shown = (done.stdout + done.stderr).decode(errors="replace")
        assert "syntax error" not in shown, f"{line}\n{shown}"
        assert "not found" not in shown, f"{line}\n{shown}"
        assert "No such file" not in shown, f"{line}\n{shown}"
        outcome = Outcome(shown=shown)
        for words in read_calls(calls.read_bytes()):
            if words[0] == "vistill":
                outcome = run_here(words[1:], self.folder)
            else:
                check_recorded(words)
        return outcome


def read_calls(data):
    """The words of every recorded call."""
    parts = data.decode().split("\0")[:-1]
    while parts:
        count = int(parts[0])
        yield parts[1 : count + 1]
        parts = parts[count + 1 :]


def check_recorded(words):
    """A recorded command has the form that its program takes."""
    program, verb, *rest = words
    if program == "pip":
        from packaging.requirements import Requirement

        assert verb == "install", words
        assert [Requirement(word) for word in rest if not word.startswith("-")], words
    elif program == "git":
        assert verb == "-C", words
        assert Path(rest[0]).is_dir(), words
        assert rest[1:] == ["lfs", "pull"], words
    elif verb == "auth":
        assert rest == ["login"], words
    elif verb == "upload":
        assert Path(rest[1]).name, words
        assert (rest[0].count("/"), rest[2:]) == (1, ["--private"]), words
    else:
        assert verb == "download", words
        assert rest[-1].count("/") == 1, words


def caught_here(function, place):
    """The error that a function raises or returns, in the folder of a place."""
    with recorded_errors() as recorded, contextlib.chdir(place.folder):
        try:
            error = function(place)
        except VistillError as raised:
            error = raised
    return with_sites(Outcome(), error, recorded)


def with_sites(outcome, error, recorded):
    """The outcome with an error and the sites behind it."""
    outcome.error, outcome.sites = error, sites_behind(error, recorded)
    outcome.raised_by = outcome.sites[0].name if outcome.sites else ""
    return outcome


def run_here(words, folder):
    """Run the command line in this process, as if typed in a folder."""
    shown, outcome = io.StringIO(), Outcome()
    file = folder.parent / "error.json"
    file.unlink(missing_ok=True)
    with (
        recorded_errors() as recorded,
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
    ):
        patch.setattr(sys, "argv", ["vistill", *words])
        if not isinstance(sys.stdin, io.StringIO):  # a situation can have one of its own
            patch.setattr(sys, "stdin", io.StringIO("What is shown?\n"))
        patch.setenv("VISTILL_ERROR_JSON", str(file))
        try:
            main.entry(list(words))
        except SystemExit as stop:
            outcome.crash = "" if file.exists() or not stop.code else f"exit {stop.code}"
        finally:
            forget_plugins()
            faults._visits.clear()
    outcome.shown = shown.getvalue()
    assert not outcome.crash, f"{words}: {outcome.crash}\n{outcome.shown}"
    if not file.exists():
        return outcome
    record_of_error = json.loads(file.read_text())
    errors = [error for error, _ in recorded if error.to_dict() == record_of_error]
    return with_sites(outcome, errors[-1], recorded)


def filled(text, values):
    """A text with values of the user for its placeholders, quoted for the shell."""

    def value(match):
        return match[0] if match[0] not in values else shlex.quote(str(values[match[0]]))

    return PLACEHOLDER.sub(value, text)


def exchanged(line, right, wrong):
    """The line with some words exchanged, as a user does who sees `X   in place of Y`."""
    spans = [(m.start(), m.end(), shlex.split(m.group())) for m in SHELL_WORD.finditer(line)]
    target = shlex.split(wrong)
    for start in range(len(spans)):
        words = [span[2][0] if span[2] else "" for span in spans[start : start + len(target)]]
        same = words == target
        is_key = len(target) == 1 and words and words[0].startswith(f"{target[0]}=")
        if same or is_key:
            first, last = spans[start][0], spans[start + len(target) - 1][1]
            return f"{line[:first]}{right}{line[last:]}"
    return None


def paste(place, steps, fill):
    """Apply the steps of one alternative; None where the user would have to know more."""
    outcome = None
    for step in steps:
        if step.is_python:
            return run_python(step.text, place.folder)
        text = filled(step.text, fill)
        if PLACEHOLDER.search(text):
            return None
        if step.is_command:
            outcome = place.type(text)
            if re.match(r"vistill (?!init|explain|list)", text):
                place.line = text
            if step.only_looks:
                assert outcome.shown, f"{text} shows nothing"
                return outcome
            if text.startswith(ELSEWHERE):
                return outcome
            if not text.startswith("vistill"):
                outcome = None  # then the same command again
            continue
        wrong = filled(step.wrong, fill)
        line = exchanged(place.line, text, wrong) if wrong else f"{place.line} {text}"
        if line is None:
            line = change_recipe(place, text, wrong)
        place.line = line
        outcome = place.type(line)
    return place.type(place.line) if outcome is None else outcome


def run_python(text, folder):
    """Run Python as printed; with dots or words in capitals, check its names and keywords."""
    import vistill

    tree = ast.parse(text)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = eval(compile(ast.Expression(call.func), "fix", "eval"), {"vistill": vistill})
        taken = inspect.signature(function).parameters
        free = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        assert all(k.arg in taken or free for k in call.keywords), text
    if "..." not in text and not re.search(
        r"\b[A-Z_]{2,}\b(?!\[)", re.sub(r"vistill\.\w+", "", text)
    ):
        with contextlib.chdir(folder):
            exec(text, {"vistill": vistill})
    return Outcome()


def change_recipe(place, text, wrong):
    """Exchange a key in the recipe, as a user does whose file has the wrong one."""
    (word,) = shlex.split(text)
    key, _, value = word.partition("=")
    recipe = place.folder / shlex.split(place.line)[2]
    content = recipe.read_text()
    last = wrong.rpartition(".")[2]
    assert re.search(rf"\b{last}: ", content), (text, wrong, content)
    if "=" not in word:  # the name alone
        recipe.write_text(content.replace(f"{last}:", f"{word}:"))
        return place.line
    recipe.write_text(
        re.sub(rf"\b{last}: *[^,}}\n]+", f"{key.rpartition('.')[2]}: {value}", content)
    )
    return place.line
