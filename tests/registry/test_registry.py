"""What a recipe can name: built-in names, plug-in files, packages.

A name in a recipe alone executes nothing.
"""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import REPO

from vistill import plugins
from vistill.config import load_recipe, method_schemas
from vistill.errors import ConfigError
from vistill.registry import KINDS, Shipped, load_plugins, methods, views
from vistill.types import View

pytestmark = pytest.mark.usefixtures("clean_registry")

METHOD = '''
from dataclasses import dataclass
from vistill.objectives import OPD
from vistill.ranges import ranged
from vistill.registry import methods

@methods.register("mine")
@dataclass(frozen=True)
class Mine(OPD):
    """The first line."""

    share: float = ranged(0.3, 0, 1)
    """A share."""
    several: bool = False
    """Ask for siblings."""

    @property
    def requirements(self):
        from vistill.batch import Need, Requirements
        return Requirements(needs={Need.SIBLINGS} if self.several else set())
'''
RECIPE = (
    "run: runs/x\nmethod: mine\nstudent: {model: a}\nteacher: {model: b}\ndata: {train: diagrams}\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a plug-in file and a recipe that names its method."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def refused(code, action, *words):
    with pytest.raises(ConfigError) as caught:
        action()
    assert caught.value.code == code, caught.value.render()
    for word in words:
        assert word in caught.value.render()
    return caught.value


def install(site, name, requires="vistill", entry="", **files):
    """A package as pip leaves it in site-packages: its files, and a dist-info that lists them."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    needed = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needed}")
    (info / "entry_points.txt").write_text(entry)
    paths = {path.replace("__", "/", 1) + ".py": text for path, text in files.items()}
    for path, text in paths.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    listed = [*paths, f"{info.name}/METADATA", f"{info.name}/entry_points.txt"]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in listed))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages."""
    place = tmp_path / "site-packages"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    known = set(sys.modules)
    yield place
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in ("pack", "other", "evil"):
            del sys.modules[name]


COUNT = "from pathlib import Path\nf = Path('COUNT')\nf.write_text(f.read_text() + 'x')\n"
MARK = "from pathlib import Path\nPath('MARKER').touch()\n"
PLAIN = METHOD.replace('@methods.register("mine")\n', "")


# built-in names


def test_every_builtin_name_can_be_imported_is_of_its_kind_and_has_a_first_line():
    for registry in KINDS.values():
        for name, thing in Shipped(registry).items():
            assert registry.objection(thing) == "", (registry.kind, name)
            assert registry.summary(registry.entry(name)), (registry.kind, name)
    assert set(views.builtin) == set(View)
    assert set(methods.builtin) == set(
        json.loads(Path(REPO / "vistill/schema/methods.json").read_text())
    )


def test_a_method_may_not_be_called_like_a_key_of_the_recipe(folder):
    load_plugins([folder / "mine.py"])
    (folder / "train.py").write_text(METHOD.replace('"mine"', '"train"'))
    load_plugins([folder / "train.py"])
    (folder / "r.yaml").write_text(RECIPE.replace("method: mine", "method: train"))
    refused("C106", lambda: load_recipe("r.yaml"), 'a recipe has a key "train"')


# files


def test_a_recipe_alone_executes_no_file(folder):
    (folder / "mine.py").write_text(MARK + METHOD)
    for method in (
        "mine",
        "mine.py",
        "mine:Mine",
        "./mine:Mine",
        "os:system",
        "json:tool",
        "evil.mine:Mine",
    ):
        (folder / "r.yaml").write_text(RECIPE.replace("method: mine", f"method: '{method}'"))
        refused("C102", lambda: load_recipe("r.yaml"), "--plugin")
    assert not (folder / "MARKER").exists()
    load_recipe("r.yaml", {"method": "mine"}, plugins=["mine.py"])
    assert (folder / "MARKER").exists()


def test_no_setting_variable_or_neighbour_loads_a_file(folder, monkeypatch):
    for name in ("VISTILL_PLUGIN", "VISTILL_PLUGINS", "PLUGIN"):
        monkeypatch.setenv(name, str(folder / "mine.py"))
    for key in ("plugin", "plugins", "data.plugins"):
        refused("C001", lambda key=key: load_recipe("r.yaml", {"method": "opd", key: ["mine.py"]}))
    refused("C102", lambda: load_recipe("r.yaml"))


def test_a_method_of_a_file_has_knobs_that_are_validated_like_ours(folder):
    def load(**knobs):
        overrides = {f"mine.{k}": v for k, v in knobs.items()}
        return load_recipe("r.yaml", overrides, plugins=["mine.py"])

    assert load(share=0.5).knobs == {"share": 0.5}
    error = refused("C001", lambda: load(sare=0.5), 'unknown key "mine.sare"')
    assert error.fix.startswith("vistill.train(RECIPE, {'mine.share': 0.5})")
    refused("C002", lambda: load(share=2), "mine.share", "vistill explain mine.share")
    refused("C002", lambda: load(share="much"), "mine.share")
    schema = method_schemas()["mine"]
    assert schema["properties"]["share"] == {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.3,
        "description": "A share.",
    }


def test_what_a_method_needs_is_asked_of_its_knobs_before_anything_is_loaded(folder):
    words = {"rollout.per_prompt": 1}
    assert load_recipe("r.yaml", words, plugins=["mine.py"])
    refused("C103", lambda: load_recipe("r.yaml", words | {"mine.several": True}), "siblings")
    refused("C101", lambda: load_recipe("r.yaml", {"teacher.model": ""}), "needs a teacher")


FAULTY = {
    "syntax": ("def x(:\n", "mine.py:1"),
    "import": ("import nothing_of_that_name\n", "mine.py:1"),
    "no subclass": (
        "from vistill.registry import methods\n@methods.register('mine')\nclass A: pass\n",
        "no subclass of vistill.batch.Objective",
    ),
    "abstract": (
        "from vistill.batch import Objective\nfrom vistill.registry import methods\n"
        "@methods.register('mine')\nclass A(Objective):\n    def terms(self): ...\n",
        "it does not define passes, signals",
    ),
    "taken": (METHOD.replace('"mine"', '"opd"'), "vistill has one of that name"),
    "no name": (METHOD.replace('"mine"', '"My Method"'), "lower-case"),
    "old hooks": (
        METHOD.replace("    @property\n    def requirements(self):", "    def needs(self):"),
        "Mine.needs is a field of Requirements now",
    ),
    "updates without effect": (
        METHOD.split("    @property")[0] + "    updates: int = 2\n", "Mine.updates has no effect"
    ),
    "view": (
        "from vistill.registry import views\n@views.register('v')\ndef v(prompt): ...\n",
        "it is called with (prompt, context)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAULTY))
def test_a_faulty_plug_in_says_what_is_wrong_and_leaves_nothing_behind(name, folder):
    text, word = FAULTY[name]
    (folder / "mine.py").write_text(text)
    error = refused("C106", lambda: load_plugins(["mine.py"]), word)
    assert len(error.render().splitlines()) <= 12
    assert "mine" not in methods
    assert not plugins.FILES
    (folder / "mine.py").write_text(METHOD)
    load_plugins(["mine.py"])
    assert "mine" in methods


KNOBS = {
    "no default": (
        "    share: float = ranged(0.3, 0, 1)\n", "    share: float = field(kw_only=True)\n",
        "the knob share has no default",
    ),
    "a tuple": (
        "    several: bool = False\n", "    several: tuple[int, ...] = ()\n",
        "is no bool, int, float",
    ),
    "refused defaults": (
        "    @property\n",
        "    def __post_init__(self):\n        raise ValueError('no')\n\n    @property\n",
        "ValueError: no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(KNOBS))
def test_a_method_whose_knobs_cannot_be_in_a_recipe_is_refused(name, folder):
    old, new, word = KNOBS[name]
    assert old in METHOD
    (folder / "mine.py").write_text(
        METHOD.replace(old, new).replace("import dataclass", "import dataclass, field")
    )
    refused("C106", lambda: load_recipe("r.yaml", plugins=["mine.py"]), word)


def test_knobs_that_the_class_itself_refuses_are_refused_with_its_words(folder):
    check = (
        "    def __post_init__(self):\n        if self.share == 0.4:\n"
        "            raise ValueError('0.4 is odd')\n\n    @property"
    )
    (folder / "mine.py").write_text(METHOD.replace("    @property", check))
    assert load_recipe("r.yaml", plugins=["mine.py"])
    refused("C002", lambda: load_recipe("r.yaml", {"mine.share": 0.4}), "0.4 is odd")


def test_a_file_is_executed_once_and_again_only_when_it_changed(folder):
    (folder / "COUNT").write_text("")
    (folder / "mine.py").write_text(METHOD + COUNT)
    load_plugins(["mine.py"])
    load_plugins([folder / "mine.py", "mine.py"])
    assert (folder / "COUNT").read_text() == "x"
    first = methods.source_hash("mine")
    (folder / "mine.py").write_text(METHOD.replace("0.3", "0.4") + COUNT)
    load_plugins(["mine.py"])
    assert (folder / "COUNT").read_text() == "xx"
    assert method_schemas()["mine"]["properties"]["share"]["default"] == 0.4
    assert methods.source_hash("mine") != first
    assert not (folder / "__pycache__").exists()


def test_two_plug_ins_of_one_name_are_refused(folder):
    (folder / "other.py").write_text(METHOD)
    load_plugins(["mine.py"])
    refused("C106", lambda: load_plugins(["other.py"]), "file mine.py has registered that name")
    assert str(methods.entry("mine").origin) == "file mine.py"


def test_a_missing_file_is_refused():
    refused("C106", lambda: load_plugins(["gone.py"]), "gone.py cannot be read")


# packages

ENTRY = "[vistill.methods]\nmine = pack.methods:Mine\n"


def test_an_entry_point_gives_a_method_with_its_page(site, folder):
    install(site, "pack", entry=ENTRY, pack____init__="", pack__methods=PLAIN)
    (site / "pack" / "mine.md").write_text("The page\n\nof the method.\n")
    recipe = load_recipe("r.yaml", {"mine.share": 0.1})
    assert recipe.knobs == {"share": 0.1}
    assert str(methods.entry("mine").origin) == "package pack 1.0"
    assert method_schemas()["mine"]["x-page"] == "The page\n\nof the method."


def test_a_class_of_an_installed_package_can_be_named_with_its_module(site, folder):
    install(site, "pack", pack____init__="", pack__methods=PLAIN)
    (folder / "r.yaml").write_text(RECIPE.replace("method: mine", "method: pack.methods:Mine"))
    recipe = load_recipe("r.yaml", ["pack.methods:Mine.share=0.1"])
    assert (recipe.method, recipe.knobs) == ("pack.methods:Mine", {"share": 0.1})
    (folder / "r.yaml").write_text(
        (folder / "r.yaml").read_text() + "'pack.methods:Mine': {share: 0.2}\n"
    )
    assert load_recipe("r.yaml").knobs == {"share": 0.2}


@pytest.mark.parametrize(
    "name",
    ["other.methods:Mine", "evil:Mine", "json.tool:main", "vistill.batch:Objective",
     "pack.gone:Mine", "pack"],
)  # fmt: skip
def test_what_no_package_for_vistill_installed_is_never_imported(name, site, folder, monkeypatch):
    """A package that does not require vistill, a working-folder file, Python's, vistill itself."""
    mark = MARK + PLAIN
    install(site, "other", requires="torch", other____init__="", other__methods=mark)
    install(site, "pack", pack____init__="", pack__methods=PLAIN)
    (folder / "evil.py").write_text(mark)
    (folder / "pack").mkdir()
    (folder / "pack" / "gone.py").write_text(mark)
    monkeypatch.syspath_prepend(folder)  # as `python -m` does
    (folder / "r.yaml").write_text(RECIPE.replace("method: mine", f"method: '{name}'"))
    refused("C102", lambda: load_recipe("r.yaml"))
    assert not (folder / "MARKER").exists()


def test_a_file_of_the_working_folder_does_not_stand_in_for_an_installed_module(
    site, folder, monkeypatch
):
    install(site, "pack", pack____init__="", pack__methods=PLAIN)
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text(MARK)
    (folder / "pack" / "methods.py").write_text(MARK + PLAIN)
    monkeypatch.syspath_prepend(folder)
    (folder / "r.yaml").write_text(RECIPE.replace("method: mine", "method: pack.methods:Mine"))
    refused("C102", lambda: load_recipe("r.yaml"))
    assert not (folder / "MARKER").exists()


def test_an_editable_installation_counts_by_what_it_says_is_its_own(site, folder, monkeypatch):
    project = folder / "project"
    (project / "src" / "pack").mkdir(parents=True)
    (project / "src" / "pack" / "__init__.py").write_text(PLAIN)
    (project / "src" / "evil.py").write_text(PLAIN)
    install(site, "pack")
    info = site / "pack-1.0.dist-info"
    (info / "direct_url.json").write_text(
        json.dumps({"dir_info": {"editable": True}, "url": project.as_uri()})
    )
    (info / "top_level.txt").write_text("pack\n")
    monkeypatch.syspath_prepend(project / "src")
    for name, is_accepted in (("pack:Mine", True), ("evil:Mine", False)):
        (folder / "r.yaml").write_text(RECIPE.replace("method: mine", f"method: {name}"))
        if is_accepted:
            assert load_recipe("r.yaml").method == name
        else:
            refused("C102", lambda: load_recipe("r.yaml"))


def test_a_package_that_cannot_be_imported_says_so_and_does_not_break_the_others(site, folder):
    install(
        site, "pack", entry=ENTRY, pack____init__="", pack__methods="import nothing_of_that_name\n"
    )
    from vistill.cli.names import names_table

    refused("C106", lambda: load_recipe("r.yaml"), "package pack 1.0", "nothing_of_that_name")
    line = next(line for line in names_table("methods").splitlines() if line.startswith("mine "))
    assert "error[C106]" in line
    assert load_recipe("r.yaml", {"method": "opd"}).method == "opd"


def test_a_file_and_a_package_of_one_name_are_refused(site, folder):
    install(site, "pack", entry=ENTRY, pack____init__="", pack__methods=PLAIN)
    refused(
        "C106",
        lambda: load_recipe("r.yaml", plugins=["mine.py"]),
        "file mine.py and package pack 1.0",
    )


def test_the_hash_of_a_package_covers_the_modules_that_the_method_imports(site, folder):
    uses = PLAIN + "from . import near\nfrom pack.sub.deep import thing\n"
    install(
        site,
        "pack",
        entry=ENTRY,
        pack____init__="",
        pack__methods=uses,
        pack__near="import json\n",
        pack__far="X = 1\n",
    )
    (site / "pack" / "sub").mkdir()
    (site / "pack" / "sub" / "__init__.py").write_text("")
    (site / "pack" / "sub" / "deep.py").write_text("def thing(): pass\n")
    first = methods.source_hash("mine")
    (site / "pack" / "far.py").write_text("X = 2\n")
    assert methods.source_hash("mine") == first
    for path in ("near.py", "sub/deep.py", "sub/__init__.py", "methods.py", "__init__.py"):
        before = methods.source_hash("mine")
        (site / "pack" / path).write_text((site / "pack" / path).read_text() + "# changed\n")
        assert methods.source_hash("mine") != before, path


# listing


def test_list_has_one_line_per_name_with_where_it_comes_from(folder, site):
    from vistill.cli.names import kinds_table, names_table

    theirs = ENTRY.replace("mine =", "theirs =")  # as in an environment with a plug-in package
    install(site, "pack", entry=theirs, pack____init__="", pack__methods=PLAIN)
    load_plugins(["mine.py"])
    assert {line.split()[0] for line in kinds_table().splitlines()[: len(KINDS)]} == set(KINDS)
    for kind, registry in KINDS.items():
        lines = names_table(kind).splitlines()
        assert [line.split()[0] for line in lines] == registry.names()
        origins = [str(entry.origin) for entry in registry.entries()]
        assert all(origin in line for origin, line in zip(origins, lines, strict=True))
    assert "package pack 1.0" in names_table("methods")
    assert re.search("file mine.py +The first line.", names_table("methods"))
    refused("C105", lambda: names_table("method"), "vistill list methods")


def test_list_prints_the_shipped_recipes_with_their_first_line():
    from vistill.cli.names import kinds_table, names_table

    lines = names_table("recipes").splitlines()
    names = sorted(file.name for file in (REPO / "recipes").glob("*.yaml"))
    assert [line.split()[0] for line in lines] == names
    assert all(len(line.split()) > 4 and "#" not in line for line in lines)
    assert f"recipes   {len(names)}" in kinds_table()
    refused("C105", lambda: names_table("recipe"), "vistill list recipes")


def test_the_list_of_kinds_says_only_what_holds():
    from vistill.cli.main import app
    from vistill.cli.names import NAMED_BY

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    words = NAMED_BY["studies"].replace(",", "").split()
    assert {"demo", "methods", "train"} == verbs & set(words)


@pytest.mark.parametrize("kind", list(KINDS))
def test_messages_have_the_article_of_the_kind(kind):
    text = KINDS[kind].unknown("nothing_of_that_name").render()
    article = "an" if kind == "engines" else "a"
    assert f"{article} {KINDS[kind].one} of your own" in text


def test_lists_of_builtin_names_import_no_torch(site):
    import os
    import subprocess

    install(site, "pack", entry=ENTRY, pack____init__="", pack__methods="import torch\n" + PLAIN)
    code = textwrap.dedent("""
        import sys
        from vistill import lookup
        lookup.points_of = lambda group, path: ()  # without the installed plug-ins
        from vistill.cli.names import kinds_table, names_table
        from vistill.registry import KINDS
        for registry in KINDS.values(): registry._points = lambda: []  # packages may be installed
        kinds_table()
        for kind in KINDS: names_table(kind)
        assert not {"torch", "transformers"} & set(sys.modules)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
