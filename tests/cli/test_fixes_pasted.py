"""Every fix that an error prints works when it is pasted into a shell."""

import gzip
import importlib
import inspect
import os
import re
import subprocess
import sys

import jaxtyping
import pytest
from conftest import REPO
from fix_cases import DATA_FILE, SITUATIONS, start, try_fixes
from fix_shell import Place, alternatives, run_python
from fix_sites import sites

import vistill
from vistill.data.text_files import read_text_file
from vistill.errors import ConfigError, DataError, quote_command, quote_setting
from vistill.training.settings import RewardSettings

MODULES = (
    "recipe rows data runs models plugins built python student inputs families judge shapes plan "
    "tables file lora mixture vllm tasks bench"
)
for module in MODULES.split():
    importlib.import_module(f"fix_cases_{module}")

#: Forms of a fix that no situation shows, each with the reason.
EXCEPTIONS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _without_shape_checks(monkeypatch):
    """Runs take half the time: other tests check shapes, and nothing here must survive a crash."""
    jaxtyping.config.update("jaxtyping_disable", True)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def counted():
    """How many codes, sites, texts and situations there are."""
    texts = [text for site in sites() for text in site.texts]
    codes = {code for site in sites() for code in site.codes} | {c.code for c in SITUATIONS}
    return {
        "codes": len(codes),
        "calls": len(sites()),
        "texts": len(texts),
        "instructions": sum(text.is_prose for text in texts),
        "situations": len(SITUATIONS),
        "made": sum(makes_its_error(case.plant) for case in SITUATIONS),
        "exceptions": len(EXCEPTIONS),
    }


def makes_its_error(plant):
    """Whether a situation constructs its error, because its cause cannot be planted."""
    return re.search(r"\.raises = |\bmade(_chat)?\(", inspect.getsource(plant)) is not None


@pytest.mark.parametrize("case", [c for c in SITUATIONS if c.is_first_tier], ids=lambda c: c.name)
def test_a_frequent_fix_works_when_pasted(case, tmp_path):
    try_fixes(case, tmp_path)


def test_the_page_on_errors_has_the_counts():
    page = (REPO / "docs" / "errors.md").read_text()
    numbers = counted()
    sentence = (
        f"{numbers['calls']} places in the code give a fix, in {numbers['texts']} forms: "
        f"{numbers['instructions']} are instructions to a person, "
        f"{numbers['situations']} situations show all others, "
        f"with {numbers['exceptions']} exceptions. In {numbers['made']} situations"
    )
    assert sentence in " ".join(page.split()), f"docs/errors.md must say: {sentence}"


@pytest.mark.more
@pytest.mark.timeout(1200)
def test_every_fix_works_when_pasted(tmp_path, capsys):
    covered, failed, pasted, skipped = set(), [], 0, 0
    for number, case in enumerate(SITUATIONS):
        try:
            result = try_fixes(case, tmp_path / str(number))
        except AssertionError as error:
            failed.append(f"{case.name}: {error}")
            continue
        covered |= result.covered
        pasted, skipped = pasted + result.pasted, skipped + result.skipped
    texts = {text.name for site in sites() for text in site.texts if not text.is_prose}
    missing = texts - {text.name for text in covered} - set(EXCEPTIONS)
    with capsys.disabled():
        print(f"\n{counted()}, {pasted} alternatives pasted, {skipped} only for a person")
    assert failed == [], "\n\n".join(failed)
    assert missing == set(), "no situation shows these fixes"
    assert set(EXCEPTIONS) <= texts, "an exception that is none any more"


@pytest.mark.more
def test_a_fix_works_in_a_shell_of_its_own(tmp_path):
    """Two commands as a user types them, each in processes of its own."""
    place = Place(tmp_path)
    start(place, "'data.train=daten 1/zeiln ü.jsonl'")
    shim = f'vistill() {{ "{sys.executable}" -m vistill "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(REPO)}

    def type_line(line):
        return subprocess.run(
            ["bash", "-c", shim + line], cwd=place.folder, env=environment, capture_output=True,
            text=True,
        )  # fmt: skip

    first = type_line(place.line)
    assert first.returncode == 3
    fix = re.search(r"^fix   (.*)$", first.stderr, re.MULTILINE)[1]
    assert fix == f"'data.train={DATA_FILE}'"
    second = type_line(f"{place.line} {fix}")
    assert second.returncode == 0, second.stderr


def test_prose_has_nothing_that_looks_like_a_command():
    for site in sites():
        for text in site.texts:
            if text.is_prose:
                assert alternatives(text.template) == [], text.name


def test_a_fix_is_split_into_what_can_be_pasted():
    fix = "a setting: data.images='a b'   or, as a file,   vistill train 'x y.yaml'   shows it"
    shown = [[step.text for step in steps] for steps in alternatives(fix)]
    assert shown == [["data.images='a b'"], ["vistill train 'x y.yaml'"]]
    chain = alternatives("iconv -f LATIN1 a > b   and then   'data.train=b c'")
    assert [[step.text for step in steps] for steps in chain] == [
        ["iconv -f LATIN1 a > b", "'data.train=b c'"]
    ]
    (steps,) = alternatives("train.lr=1e-5   in place of train.lrr")
    assert (steps[0].text, steps[0].wrong) == ("train.lr=1e-5", "train.lrr")
    with pytest.raises(AssertionError):
        run_python("vistill.load_recipe(FILE, nothing=1)", REPO)


@pytest.mark.parametrize("pattern", ["(a", r"\boxed\{"])
def test_the_proposed_pattern_finds_a_boxed_answer(pattern):
    with pytest.raises(ConfigError) as caught:
        RewardSettings(pattern=pattern)
    settings = eval(caught.value.fix, {"vistill": vistill})
    assert re.search(settings.pattern, r"The answer is \boxed{7}.")


def test_a_command_that_shows_a_line_shows_this_line(tmp_path):
    for name, packed, encoding in (
        ("a", False, "utf-16"),
        ("b", True, "utf-16"),
        ("c", True, "utf-8"),
    ):
        file = tmp_path / f"{name} ü.jsonl"
        data = '{"question": "ä"}\n{bad ü\n'.encode(encoding)
        file.write_bytes(gzip.compress(data) if packed else data)
        (error,) = [row for _, row in read_text_file(file) if isinstance(row, DataError)]
        command = error.fix.partition("   ")[2]
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == "{bad ü\n"


@pytest.mark.parametrize("value", ["a b", "it's", "ü", "[a]", "{x}", "$HOME", "a\\b", "*", "~"])
def test_a_quoted_value_survives_the_shell(value, tmp_path):
    line = f"printf '%s\\0' {quote_setting('data.train', value)} {quote_command('x', value)}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == [f"data.train={value}", "x", value]
