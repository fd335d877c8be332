"""Input is never executed: checked on the package's source and with a hostile hub repository."""

import ast
import csv
import dataclasses
import importlib.util
import json
import re
import shutil

import pytest
from conftest import REPO
from payloads import FORMULAS

from vistill.config import Recipe, load_recipe, settings_types
from vistill.errors import ConfigError, ModelError
from vistill.report.csv_file import safe_cell, write_csv

PACKAGE = REPO / "vistill"
MODULES = {
    str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))
}
UNPICKLERS = {
    "pickle",
    "dill",
    "marshal",
    "shelve",
    "cloudpickle",
    "joblib",
    "runpy",
    "code",
    "codeop",
    "imp",
}
#: Modules that may start a process, always with a list of arguments.
PROCESSES = {
    "studies/processes.py",
    "answers/worker_process.py",
    # the interpreter that an environment variable names, never a recipe
    "rollouts/vllm_checks.py",
    "rollouts/vllm_process.py",
    "rollouts/vllm_environment.py",
}
#: Modules that may import a computed name: the registry, and packages that import their own names
#: on first use.
IMPORTERS = {"plugins.py", "__init__.py"}
#: Modules that may load plug-in files: commands and functions that take them as an argument.
PLUGIN_LOADERS = {
    "cli/main.py",
    "cli/compare.py",
    "cli/eval_verb.py",
    "cli/init_verb.py",
    "cli/plan.py",
    "cli/reproduce.py",
    "cli/judge.py",
    "cli/try_student.py",
    "api.py",
    "config.py",
    "studies/replay.py",
}
#: Modules that may execute a file: a plug-in that the user gave.
EXECUTERS = {"plugins.py"}
#: The module that writes tables, without formulas, and the one that reads them.
CSV_WRITER, CSV_READER = "report/csv_file.py", "data/text_files.py"
#: Reads the tables that another program wrote.
HARNESS_READER = "evaluation/harness/read.py"
#: Modules that may read the environment, by name (or pass it whole to a child process).
ENVIRONMENT = {
    "answers/worker_process.py",
    "cli/doctor.py",
    "cli/live.py",
    "cli/main.py",
    "cli/messages.py",
    "cli/try_student.py",
    "display/live_line.py",
    "display/run_display.py",
    "studies/chaos.py",
    "studies/processes.py",
    "evaluation/benchmarks/judge_server.py",
    "faults.py",
    "redaction.py",
    "rollouts/server_checks.py",
    "rollouts/server_client.py",
    "rollouts/vllm_checks.py",
    "rollouts/vllm_process.py",
    "runs/hub.py",
    "runs/model_not_found.py",
    "runs/start_cache.py",
    "runtime.py",
    "training/determinism.py",
}


def dotted_name(node):
    """The dotted name of an expression, such as `torch.load`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keywords(call):
    return {
        k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in call.keywords
    }


def find_unsafe_call(call, module):
    """Reasons why a call may execute input."""
    name, arguments = dotted_name(call.func), keywords(call)
    last = name.rsplit(".", 1)[-1]
    banned = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "torch.load",
        "yaml.unsafe_load",
        "yaml.full_load",
    }
    if name in banned or last in {
        "broadcast_object_list",
        "all_gather_object",
        "scatter_object_list",
        "gather_object",
        "send_object_list",
    }:
        yield name
    if "shell" in arguments or last in {"execv", "execve", "execvp", "spawnv", "posix_spawn"}:
        yield f"{name} by a shell"
    if arguments.get("allow_pickle", False) or arguments.get("weights_only", True) is not True:
        yield f"{name} unpickles"
    if arguments.get("trust_remote_code", False) is not False:
        yield f"{name} trusts remote code"
    if name == "yaml.load" and [dotted_name(a) for a in call.args[1:]] != ["StrictLoader"]:
        yield "yaml.load without the strict loader"
    if (
        last == "import_module"
        and module not in IMPORTERS
        and not (call.args and isinstance(call.args[0], ast.Constant))
    ):
        yield "an import by a computed name"
    if last in {
        "exec_module",
        "spec_from_file_location",
        "spec_from_loader",
        "run_path",
        "run_module",
        "load_module",
    } and (module not in EXECUTERS):
        yield f"{name} executes a file"
    if last == "execute_file" and module != "registry.py":
        yield "executes a plug-in behind the registry's back"
    if last == "load_plugins" and module not in PLUGIN_LOADERS:
        yield "loads plug-ins"


def find_unsafe_code(text, module):
    """Everything in a module's source that could execute input."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {
                (getattr(node, "module", None) or "").split(".")[0],
                *(a.name.split(".")[0] for a in node.names),
            }
            yield from (f"imports {name}" for name in names & UNPICKLERS)
            if "subprocess" in names and module not in PROCESSES:
                yield "imports subprocess"
            if "csv" in names and module not in {CSV_WRITER, CSV_READER, HARNESS_READER}:
                yield "imports csv"
        if isinstance(node, ast.Call):
            yield from find_unsafe_call(node, module)
            if dotted_name(node.func).lower().endswith("writer") and module in {
                CSV_READER,
                HARNESS_READER,
            }:
                yield "writes csv"
        if (
            isinstance(node, ast.Attribute)
            and dotted_name(node) in ("os.environ", "os.getenv", "os.environb")
            and module not in ENVIRONMENT
        ):
            yield "reads the environment"


@pytest.mark.parametrize("module", list(MODULES))
def test_no_module_executes_input(module):
    assert list(find_unsafe_code(MODULES[module], module)) == []


@pytest.mark.parametrize("call", ["csv.writer(f)", "csv.DictWriter(f, names)"])
def test_the_module_that_reads_tables_writes_none(call):
    assert list(find_unsafe_code(f"import csv\n{call}", CSV_READER)) == ["writes csv"]
    assert list(find_unsafe_code("import csv\ncsv.reader(f)", CSV_READER)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from dill import loads", "import subprocess", "import csv", "eval('1')",
        "exec(x)", "compile(x, y, z)", "torch.load(f)", "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=False)", "dist.broadcast_object_list(x)", "yaml.load(x)",
        "yaml.load(x, yaml.Loader)", "yaml.unsafe_load(x)", "np.load(f, allow_pickle=True)",
        "load(f, weights_only=False)", "A.from_pretrained(n, trust_remote_code=True)",
        "A.from_pretrained(n, trust_remote_code=recipe.trust)", "os.system(x)",
        "os.environ.items()", "os.execv(a, b)", "import_module(a + b)", "import_module(name)",
        "spec.loader.exec_module(m)", "importlib.util.spec_from_file_location(a, b)",
        "runpy.run_path(x)", "load_plugins(recipe.plugins)", "plugins.execute_file(x)",
    ],
)  # fmt: skip
def test_the_search_finds_each_unsafe_pattern(text):
    assert list(find_unsafe_code(text, "x.py"))


def test_few_modules_use_the_whole_environment():
    """Others read it by name. Whole, it goes to child processes and the redaction."""
    whole = re.compile(r"os\.environ(?!\.get\(|\.setdefault\(|\.pop\(|\[)")
    modules = {module for module, text in MODULES.items() if whole.search(text)}
    assert modules <= {"studies/processes.py", "rollouts/vllm_process.py", "redaction.py"}


def test_every_loader_sets_trust_remote_code_to_false():
    """Without it, `AutoX.from_pretrained` asks a question at the terminal."""
    for module, text in MODULES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and re.fullmatch(
                r"Auto\w+\.(from_pretrained|from_config)", dotted_name(node.func)
            ):
                given = keywords(node)
                assert given.get("trust_remote_code") is False or dotted_name(node.func).endswith(
                    "from_config"
                ), (
                    module,
                    node.lineno,
                )


BASE = (
    "run: runs/x\nmethod: va_opd\nstudent: {model: a}\nteacher: {model: b}\n"
    "data: {train: diagrams}\n"
)
GROUPS = [
    "",
    *(f.name for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.default_factory)),
    "student",
    "va_opd",
]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("key", ["trust_remote_code", "auto_map", "code_revision", "plugins"])
def test_no_recipe_can_enable_remote_code(group, key, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(BASE)
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, [f"{group}.{key}=true".lstrip(".")])
    assert caught.value.code == "C001"


def test_no_settings_class_has_a_field_for_code():
    fields = {
        f"{kind.__name__}.{f.name}"
        for kind in settings_types(Recipe)
        for f in dataclasses.fields(kind)
    }
    assert not [
        name for name in fields if re.search(r"trust|remote|plugin|auto_map|module|import", name)
    ]


def hub_repository(cache, tiny_folder, marker, change):
    """Write a hostile model with code to a cache of the hub."""
    commit = "0" * 40
    snapshot = cache / "models--stranger--model" / "snapshots" / commit
    shutil.copytree(tiny_folder, snapshot)
    refs = cache / "models--stranger--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    (snapshot / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n")
    for name, more in change.items():
        file = snapshot / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | more))


AUTO = dict.fromkeys(
    (
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageTextToText",
        "AutoTokenizer",
        "AutoProcessor",
        "AutoImageProcessor",
    ),
    "evil.Evil",
)
CHANGES = {
    "config": ({"config.json": {"auto_map": AUTO}}, True),
    "another family": ({"config.json": {"auto_map": AUTO, "model_type": "evil"}}, False),
    "tokenizer": (
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}},
        True,
    ),
    "image processor": (
        {"preprocessor_config.json": {"auto_map": AUTO, "image_processor_type": "Evil"}},
        True,
    ),
    "generation": (
        {"generation_config.json": {"auto_map": AUTO, "custom_generate": "evil.py"}},
        True,
    ),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_code_in_a_hub_repository_is_never_run(name, tiny_folder, tmp_path, monkeypatch):
    from vistill.models.loading import load_vlm

    change, loads = CHANGES[name]
    marker = tmp_path / "MARKER"
    hub_repository(tmp_path / "cache", tiny_folder, marker, change)
    for place in (
        "huggingface_hub.constants.HF_HUB_CACHE",
        "huggingface_hub.constants.HUGGINGFACE_HUB_CACHE",
    ):
        monkeypatch.setattr(place, str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked a question"))
    monkeypatch.chdir(tmp_path)
    if loads:
        assert load_vlm("stranger/model").source == "stranger/model"
    else:
        with pytest.raises(ModelError):
            load_vlm("stranger/model")
    assert not marker.exists()


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_text_in_a_table_is_a_formula(formula, tmp_path):
    assert safe_cell(formula) == f"'{formula}"
    write_csv(tmp_path / "a.csv", ["run", formula], [{"run": formula, formula: formula}])
    with (tmp_path / "a.csv").open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert len(rows) == 2
    assert all(
        not text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for row in rows for text in row
    )


def test_numbers_in_a_table_remain_numbers(tmp_path):
    write_csv(
        tmp_path / "a.csv",
        ["a", "b", "c", "d"],
        [{"a": -1.5, "b": 3, "c": None, "d": "text"}, {"a": float("nan")}],
    )
    assert (tmp_path / "a.csv").read_text().split("\n")[1] == "-1.5,3,,text"


def test_the_tables_of_demo_and_methods_contain_no_formula(tmp_path):
    from vistill.studies.demo import write_comparison
    from vistill.studies.methods import COLUMNS, write_methods_csv

    for formula in ("=1+1", "\r=1+1", "@SUM(1)"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "evaluations.jsonl").write_text(
            json.dumps({"step": 1, "note": formula, formula: -0.5}) + "\n"
        )
        write_comparison([tmp_path / "run"], tmp_path / "a.csv")
        write_methods_csv([{key: formula for key, _, _ in COLUMNS}], tmp_path / "b.csv")
        for name in ("a.csv", "b.csv"):
            with (tmp_path / name).open(newline="") as handle:
                assert all(
                    not text.startswith(("=", "+", "@", "\r"))
                    for row in csv.reader(handle)
                    for text in row
                ), name


def test_the_audit_reports_only_what_it_audited():
    spec = importlib.util.spec_from_file_location("audit", REPO / ".ci" / "audit.py")
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    hole = {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    fine, unknown = (
        {"name": "a", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    )
    assert audit.verdict(None, "no route") == (
        0,
        "advisories not reachable: not audited (no route)",
    )
    assert audit.verdict({"dependencies": [unknown]}) == (
        0,
        "advisories not reachable: not audited (not found)",
    )
    assert audit.verdict({"dependencies": [fine, unknown]}) == (
        0,
        "1 of 2 packages audited, 0 advisories",
    )
    status, text = audit.verdict({"dependencies": [fine, hole, unknown]})
    assert status == 1
    assert text == "b 1: PYSEC-1, fixed in ['2']\n2 of 3 packages audited, 1 advisories"
