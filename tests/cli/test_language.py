"""Retired names and words come back nowhere; the words of CONTRIBUTING.md and the glossary hold.

Every text file in git is searched, except the changelog, which quotes the past, and this file.
"""

import ast
import re
import subprocess

import pytest
from conftest import REPO

#: A name or word, as a pattern, and what to write instead. Case is ignored unless the pattern says
#: `(?-i:...)`. The boundaries below also split snake_case.
WORD_START, WORD_END = r"(?<![A-Za-z])", r"(?![A-Za-z])"
RETIRED = {
    # names
    r"(?-i:Desk)": "ResponseSource",
    r"(?-i:Cast)(?=[\](),.:|`\"'])": "Models",
    r"(?-i:Witness)|witness(?:es)?": "ReaderProbe, probe",
    r"rosters?": "row_lock",
    r"climb(?:s|ed)?": "run_halving",
    r"ladders?": "MemoryRetry, oom",
    r"outward": "redaction",
    r"resting|rested": "offload, offloaded",
    r"one_each|OneEach": "decode_attention, DecodeAttention",
    r"plainly": "hf_reference, or a precise adverb",
    r"forget_other_futures": "drop_after",
    r"TEACHER_TOLD": "TEACHER_WITH_LOG_PROBS",
    r"refuse_bent|bent": "require_linear_head",
    r"heed(?:s|ed)?": "update, check",
    r"hear|hears": "check_reader",
    r"sings?": "run_canary",
    r"beside_trl|next_to_(?:trainers|mistakes|table)|test_house": "compare_trl, compare_trainers",
    # words
    r"rooms?": "package",
    r"houses?": "project, repository",
    r"doors?": "entry point",
    r"(?:re-)?rais(?:e|es|ed|ing) (?:(?:a|an|the|its|both|each|tiny|of) )*"
    r"(?:models?|teachers?|students?|bases?|vision)(?!['_(.])": "train a model",
    r"re-raised|raised (?:from|with|by)(?= (?:nothing|scratch|noise|wrong))": "train",
    r"mend(?:s|ed|ing)?": "fix",
    r"beside": "next to, with",
    r"whoever|whomever|nobody|somebody|everybody": "name the actor: reader, user, process",
    r"without a word": "without a message",
    r"h(?:eld|old|olds|olding) (?:\w+ ){0,4}?against": "compare with",
    r"thereby|afresh|lest": "so, again",
    r"weak-eyed|weak_eyed|fluent": "poor vision",
    r"(?:nats|bits|flops|gflops?|bytes|mib|gib|s|ms|seconds|tokens|rollouts|responses|siblings|rows)"
    r" an? (?:token|step|row|rollout|prompt|update|response|question|stage|phase|method)": "per",
    r"tokens a second": "tokens per second",
}
PATTERN = re.compile(
    "|".join(f"(?P<w{i}>{WORD_START}(?:{p}){WORD_END})" for i, p in enumerate(RETIRED)),
    re.IGNORECASE,
)
#: Variables that could hold anything.
UNIVERSAL = {"made", "found", "told", "said"}
#: Places that must keep a word: the file, and a pattern for the line.
ALLOWED = {
    "tests/cli/test_language.py": ".",
    "CHANGELOG.md": ".",
    # a key of state.json, which older checkpoints have
    "vistill/training/run_state.py": '"ladder"',
    "tests/training/test_checkpoint.py": '"ladder"',
    "tests/training/test_loop.py": '"ladder"',
    # a key of older profile.json files
    "tests/training/test_profile.py": '"beside"',
    "vistill/report/costs.py": '"beside"',
}
TEXT = {".py", ".md", ".yaml", ".toml", ".jinja", ".txt", ".json", "", ".yml"}
#: Data: tokenizers, measured results with the messages of other tools.
DATA = ("vistill/assets/", "benchmarks/results/", "constraints", "LICENSE")


def text_files():
    """All tracked text files."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True
    )
    names = [name for name in listing.stdout.split("\0") if name and not name.startswith(DATA)]
    return [n for n in names if (REPO / n).suffix in TEXT and (REPO / n).is_file()]


def retired_words(name):
    """`file:line: word, write ...` for each retired name or word of a file, its name included."""
    lines = [name, *(REPO / name).read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        if name in ALLOWED and re.search(ALLOWED[name], line):
            continue
        for match in PATTERN.finditer(line):
            instead = list(RETIRED.values())[int(str(match.lastgroup)[1:])]
            yield f"{name}:{number}: {match.group()!r}, write: {instead}"


@pytest.mark.skipif(not (REPO / ".git").exists(), reason="git lists the files of a checkout")
def test_no_retired_name_or_word():
    findings = [finding for name in text_files() for finding in retired_words(name)]
    assert not findings, "\n".join(findings)


def test_no_variable_has_a_name_that_fits_everything():
    findings = []
    for name in text_files():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((REPO / name).read_text(encoding="utf-8"))):
            stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id
            parameter = isinstance(node, ast.arg) and node.arg
            if {stored, parameter} & UNIVERSAL:
                findings.append(f"{name}:{node.lineno}: {stored or parameter}")
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize(
    "text",
    [
        "Desk(", "models: Cast,", "probe_witness", "held against the grid", "0.1 nats a token",
        "the teacher is raised from nothing", "raising a tiny teacher", "beside_trl", "mended",
    ],
)  # fmt: skip
def test_the_patterns_match_what_they_retire(text):
    assert PATTERN.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "raise ValueError(model)",
        "headroom",
        "cast_column",
        "Cast to float32",
        "recommend",
        "bright",
    ],
)
def test_the_patterns_leave_ordinary_text_alone(text):
    assert not PATTERN.search(text)


def test_the_glossary_defines_every_term_once_and_is_linked_from_every_page():
    glossary = (REPO / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [line for line in glossary.splitlines() if line.startswith("| ")]
    terms = [
        line.split("|")[1].strip() for line in rows if not line.startswith(("| term", "| letter"))
    ]
    assert len(terms) > 80
    assert len(set(terms)) == len(terms)
    for page in ["README.md", "CONTRIBUTING.md", *(REPO / "docs").glob("*.md")]:
        text = (REPO / page).read_text(encoding="utf-8")
        assert "glossary" in text.lower(), page
