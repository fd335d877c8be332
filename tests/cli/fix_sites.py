"""Every text of a fix in the package, all_sites in its syntax tree.

A *site* is a call that is given a `fix`: the constructor of an error, or a function with a
parameter of that name. A *text* is one form that the fix of a site can have: a branch of a
condition, a value of a variable. Text that the program fills in is a gap, which matches anything.
"""

import ast
import re
import sys
import traceback
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import vistill
from vistill.errors import VistillError

PACKAGE = Path(vistill.__file__).parent
GAP = "\0"
CODE = re.compile(r"[A-Z]\d{3}")
#: Programs that a fix can name, at the begin of a command.
PROGRAMS = ("vistill", "pip", "git", "iconv", "gunzip", "zstd", "bunzip2", "xz", "unzip", "sed",
            "python", "expand", "tail", "hf", "unset", "export", "magick", "heif-convert", "dwebp",
            "cp")  # fmt: skip
#: What looks like something to paste: a setting, an option, or a program with arguments.
COMMAND_LIKE = re.compile(
    rf"(?<![\w./-])[a-z_][\w.:]*=(?!=)|(?<!\S)--[a-z]+|(?:^|(?<=[\s:]))(?:{'|'.join(PROGRAMS)}) "
    rf"|(?<!from )vistill\.|{GAP}"
)


@dataclass(frozen=True)
class Text:
    """One form of the fix of a site."""

    site: "Site"
    template: str

    @property
    def name(self):
        return f"{self.site.name}: {self.template.replace(GAP, '…')!r}"

    @property
    def is_prose(self):
        """Whether it is an instruction to a person, without anything to paste."""
        return not COMMAND_LIKE.search(self.template)

    def matches(self, fix):
        """Whether a printed fix has, or contains, this form."""
        pattern = ".*".join(map(re.escape, self.template.split(GAP)))
        return re.search(pattern, fix, re.DOTALL) is not None


@dataclass(eq=False)
class Site:
    """A call that is given a fix."""

    file: str
    first: int
    last: int
    function: str
    codes: tuple[str, ...]
    templates: list[str] = field(default_factory=list)

    @property
    def name(self):
        return f"{self.file}:{self.function}"

    @cached_property
    def texts(self):
        return [Text(self, template) for template in dict.fromkeys(self.templates)]


def error_classes():
    """Names of the classes of errors."""
    return {kind.__name__ for kind in [VistillError, *VistillError.__subclasses__()]}


@cache
def trees():
    """The syntax tree of every module, by its path in the package."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def places_of_fix():
    """For every function with a parameter `fix`: the index of it among positional arguments."""
    places = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in node.args.args if a.arg not in ("self", "cls")]
                if "fix" in [*names, *(a.arg for a in node.args.kwonlyargs)]:
                    places[node.name] = names.index("fix") if "fix" in names else None
    return places


def called_name(call):
    """The last name of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def fix_argument(call, places):
    """The expression of the fix that a call is given; None without one."""
    name = called_name(call)
    given = next((k.value for k in call.keywords if k.arg == "fix"), None)
    if given is not None and (name in error_classes() or name in places):
        return given
    index = places.get(name)
    return call.args[index] if index is not None and len(call.args) > index else None


def rewords_another_error(call, fix):
    """Whether a function is given the fix of an error: its text is that of the error's own site."""
    is_taken = isinstance(fix, ast.Attribute) and fix.attr in ("fix", "note")
    return is_taken and called_name(call) not in error_classes()


class Templates:
    """The forms of an expression: its text, with gaps where the program fills something in."""

    def __init__(self, function, tree):
        self.function, self.tree, self.open = function, tree, []

    def of(self, node):
        """The forms of an expression."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.IfExp | ast.BoolOp):
            parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            return [text for part in parts for text in self.of(part)]
        if isinstance(node, ast.JoinedStr):
            return self.joined([self.piece(part) for part in node.values])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.joined([self.of(node.left), self.of(node.right)])
        if isinstance(node, ast.Name):
            return self.of_name(node.id)
        return [GAP]

    def piece(self, part):
        if isinstance(part, ast.Constant):
            return [part.value]
        return [GAP]

    def joined(self, pieces):
        texts = [""]
        for piece in pieces:
            texts = [text + more for text in texts for more in piece or [GAP]]
        return [re.sub(f"{GAP}+", GAP, text) for text in texts]

    def of_name(self, name):
        """The values that are assigned to a variable of the function, or to a constant."""
        if name in self.open:
            return [GAP]
        if self.function is not None and name in {a.arg for a in self.function.args.args}:
            return []  # the texts are those of the callers
        self.open.append(name)
        values = [
            value
            for scope in (self.function, self.tree)
            if scope is not None
            for value in assigned(scope, name, deep=scope is self.function)
        ]
        texts = [text for value in values for text in self.of(value)]
        self.open.pop()
        return texts or [GAP]


def assigned(scope, name, deep):
    """The expressions that are assigned to a name."""
    for node in ast.walk(scope) if deep else scope.body:
        if isinstance(node, ast.AugAssign) and getattr(node.target, "id", "") == name:
            yield node.value
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if getattr(target, "id", "") == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=True):
                    if getattr(one, "id", "") == name:
                        yield value


@cache
def sites():
    """Every site of the package."""
    all_sites, places = [], places_of_fix()
    for file, tree in trees().items():
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            fix = fix_argument(call, places)
            if fix is None or rewords_another_error(call, fix):
                continue
            around = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
            inner = max(around, key=lambda f: f.lineno, default=None)
            codes = tuple(
                a.value
                for a in call.args
                if isinstance(a, ast.Constant) and CODE.fullmatch(str(a.value))
            )
            templates = Templates(inner, tree).of(fix)
            name = inner.name if inner else "module"
            all_sites.append(Site(file, call.lineno, call.end_lineno or 0, name, codes, templates))
    return all_sites


def sites_on_stack():
    """The sites whose calls are running, the innermost first."""
    running = []
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        path = Path(frame.f_code.co_filename)
        if PACKAGE not in path.parents:
            continue
        file = path.relative_to(PACKAGE).as_posix()
        around = [s for s in sites() if s.file == file and s.first <= line <= s.last]
        if around:
            running.append(min(around, key=lambda s: s.last - s.first))
    return running


if __name__ == "__main__":
    total = [text for site in sites() for text in site.texts]
    for text in total:
        print("PROSE" if text.is_prose else "     ", ",".join(text.site.codes), text.name)
    prose = sum(text.is_prose for text in total)
    print(f"{len(sites())} sites, {len(total)} texts, {prose} of them prose")
