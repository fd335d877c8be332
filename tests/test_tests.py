"""Rules for the tests: few replaced private names, a reason for each, both tiers complete."""

import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from conftest import COLLECTED

TESTS = Path(__file__).parent
MOST_REPLACEMENTS = 55
REPLACES = re.compile(r"\.setattr\(|mock\.patch|patch\.object\(")
#: Owners of public names: Python, the operating system, other packages.
FOREIGN = re.compile(
    r"""\.setattr\(\s*(?:
        (?:sys|os|re|time|shutil|subprocess|socket|signal|Path|Image|jaxtyping|gpu|F|Node|torch)[.,]
        |type\(os\.environ\)|"builtins\.|"huggingface_hub\.|"torch\.cuda\.|teacher\.model\.|place,\s|name,\sstr\(
        |processors\.(?:AutoProcessor|importlib)|vlm\.family\.processor,|vlm\.model\.model,)""",
    re.VERBOSE,
)


def replacements(file):
    """(line number, line, has a reason) of every name of vistill that a test replaces."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if not REPLACES.search(line):
            continue
        joined = (
            " ".join(part.strip() for part in lines[number : number + 3])
            if line.rstrip().endswith("(")
            else line
        )
        if not FOREIGN.search(joined.replace("( ", "(")):
            yield number + 1, line.strip(), has_reason(lines, number)


def has_reason(lines, number):
    """Whether the line or its block has a comment, or the helper around it has a docstring."""
    above = number - 1
    while REPLACES.search(lines[above]) or lines[above].strip().startswith(("for ", "with ")):
        above -= 1
    if "  # " in lines[number] or lines[above].strip().startswith("#"):
        return True
    indent = len(lines[number]) - len(lines[number].lstrip())
    outer = (
        i for i in range(number, -1, -1) if re.match(rf" {{0,{max(0, indent - 1)}}}def ", lines[i])
    )
    start = next(outer)
    end = next(i for i in range(start, number + 1) if lines[i].rstrip().endswith(":"))
    is_test = lines[start].strip().startswith("def test_")
    return not is_test and lines[end + 1].strip().startswith('"""')


def test_tests_replace_few_names_of_the_package_and_give_a_reason():
    replaced = [
        (str(file.relative_to(TESTS)), *one)
        for file in sorted(TESTS.rglob("*.py"))
        for one in replacements(file)
    ]
    assert 0 < len(replaced) <= MOST_REPLACEMENTS, "\n".join(map(str, replaced))
    without = [f"{name}:{number}: {line}" for name, number, line, reason in replaced if not reason]
    assert not without, "no reason is given:\n" + "\n".join(without)


RESUME = "training/test_loop.py::test_stopping_at_any_step_and_resuming_gives_the_same_bits"
#: Kinds of tests that the first tier must have, and how the name of such a test begins.
KINDS = {
    "numbers computed by hand": "golden/test_golden_numbers.py",
    "every method by hand": "golden/test_golden_methods.py",
    "every method against a slow reference": "objectives/test_dense_references.py",
    "properties of losses and signals": "objectives/test_properties.py",
    "rows of logits": "objectives/test_rows.py",
    "extraction of answers": "answers/test_docs.py",
    "loading of rows": "data/test_loading.py",
    "procedural diagrams": "data/test_diagrams.py",
    "order of rows": "data/test_loading.py::test_every_row_occurs_once_per_epoch",
    "configuration": "cli/test_config.py",
    "the schema of recipes": "cli/test_schema.py",
    "registries": "registry/test_registry.py",
    "a run with a plug-in": "registry/test_plugin_runs.py",
    "errors and messages": "cli/test_explain.py",
    "a mistake of each code": "faults/test_mistakes.py",
    "journal": "training/test_journal.py",
    "checkpoint": "training/test_checkpoint.py",
    "resume with weights and optimizer": RESUME + "[va_opd",
    "resume with a moving average": RESUME + "[visual_opsd",
    "resume with a method's memory": RESUME + "[vgs_with_memory",
    "resume with stored responses": RESUME + "[gkd",
    "resume after a signal": "training/test_loop.py::test_a_signal_saves_the_last_complete_step",
    "replay of a step": "training/test_journal.py::test_steps_are_recomputed_to_the_last_bit",
    "a row that becomes bad": "faults/test_bad_rows.py",
    "updates that are not finite": "training/test_finite.py",
    "the canary": "training/test_canary.py::test_a_reader_that_ignores_the_image_stops_the_run",
    "train, eval and report on the command line": "end_to_end/test_verbs.py",
    "distill from Python": "training/test_build.py",
    "runs of several methods": (
        "training/test_finite.py::test_a_nan_in_any_pass_skips_the_step_of_every_method"
    ),
    "evaluation": "evaluation/test_evaluation.py",
    "a report": "report/test_report.py",
    "what a run shows": "display/test_run_display.py",
    "a study of several arms": "studies/test_arms.py",
    "rollout engines": "rollouts/test_contract.py",
    "scoring": "invariants/test_scoring.py",
    "the reader's own forward pass": "models/test_families.py",
    "views": "views/test_views.py",
    "injection into the report": "faults/test_injection.py",
}


@pytest.fixture
def collected(pytestconfig):
    """(id, markers) of every test, as collected before `-m` selects some."""
    tests = pytestconfig.stash[COLLECTED]
    files = {name.partition("::")[0] for name, _ in tests}
    if not files >= {str(file.relative_to(TESTS)) for file in TESTS.rglob("test_*.py")}:
        pytest.skip("only some files were collected; `make test` collects all")
    return tests


def holds(expression, markers):
    """Whether a test with these markers is selected: pytest's expressions are Python's."""
    names = set(re.findall(r"\w+", expression)) - {"and", "or", "not"}
    return eval(expression, {}, {name: name in markers for name in names})


def expressions():
    """The marker expression of each target of the Makefile, its variables filled in."""
    text = (TESTS.parent / "Makefile").read_text(encoding="utf-8")
    elsewhere = re.search(r"^ELSEWHERE := (.*)$", text, re.MULTILINE).group(1)
    return {
        name: re.search(rf'^{name}: .*\n\t.*-m "(.*)"$', text, re.MULTILINE)
        .group(1)
        .replace("$(ELSEWHERE)", elsewhere)
        for name in ("test", "test-rest")
    }


def test_the_first_tier_holds_a_test_of_every_kind(collected):
    first = [name for name, markers in collected if holds(expressions()["test"], markers)]
    missing = [
        kind for kind, begin in KINDS.items() if not any(name.startswith(begin) for name in first)
    ]
    assert not missing, missing


def test_every_test_is_in_one_tier(collected):
    """Tests for a GPU, Triton and TRL are in no tier: they have their own commands."""
    for name, markers in collected:
        tiers = [
            target for target, expression in expressions().items() if holds(expression, markers)
        ]
        expected = 0 if markers & {"oracle", "gpu", "triton"} else 1
        assert len(tiers) == expected, (name, tiers)


def test_no_marker_is_unknown_and_none_is_unused():
    """`--strict-markers` refuses an unknown marker. No test needs a GPU today."""
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    options = project["tool"]["pytest"]["ini_options"]
    assert "--strict-markers" in options["addopts"]
    known = {line.split(":")[0] for line in options["markers"]}
    text = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    used = set(re.findall(r"pytest\.mark\.(\w+)", text)) - {
        "parametrize",
        "usefixtures",
        "filterwarnings",
        "skipif",
        "timeout",
    }
    assert used | {"gpu"} == known


def test_no_mutant_is_stale_and_the_stored_results_belong_to_the_list(monkeypatch):
    repository = TESTS.parent
    monkeypatch.syspath_prepend(repository / "benchmarks")
    mutants = importlib.import_module("mutants").MUTANTS
    assert len(mutants) >= 50
    for mutant in mutants:
        text = (repository / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, (
            f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}"
        )
        assert mutant.new != mutant.old
        for name in mutant.tests:
            file, _, test = name.partition("::")
            assert (repository / file).exists(), name
            assert not test or f"def {test}(" in (repository / file).read_text(), name
    results = json.loads(
        (repository / "benchmarks" / "results" / "mutants.json").read_text(encoding="utf-8")
    )
    edits = [(record["file"], record["old"], record["new"]) for record in results["records"]]
    assert edits == [(mutant.file, mutant.old, mutant.new) for mutant in mutants], (
        "run `make mutants`"
    )
    assert results["killed"] >= 0.95 * len(mutants)
