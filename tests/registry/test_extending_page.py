"""The examples of docs/extending.md are complete: each block runs by itself, as a plug-in file."""

import re

import pytest
from conftest import REPO
from tiers import few

from vistill import plugins
from vistill.registry import KINDS, load_plugins

pytestmark = pytest.mark.usefixtures("clean_registry")

PAGE = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


#: The import of transformers takes longer than a test of the first tier may.
SLOW = ("transformers", "vistill.rollouts")
QUICK = [n for n, text in enumerate(BLOCKS) if not any(word in text for word in SLOW)]


@pytest.mark.parametrize("number", few(range(len(BLOCKS)), *QUICK))
def test_every_example_runs_as_a_plug_in_file(number, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(BLOCKS[number])
    load_plugins([file])
    registered = re.findall(r"^@(\w+)\.register\(\"(\w+)\"\)", BLOCKS[number], re.MULTILINE)
    assert registered or plugins.FILES
    for kind, name in registered:
        assert KINDS[kind].get(name)


def test_the_view_and_the_reward_of_the_page_do_what_they_say(tmp_path):
    from vistill.data.diagrams import diagram_prompts
    from vistill.registry import rewards
    from vistill.views import apply_view

    (tmp_path / "mine.py").write_text("\n".join(BLOCKS))
    load_plugins([tmp_path / "mine.py"])
    prompt = diagram_prompts("train", 1, 0)[0]
    flipped = apply_view(apply_view(prompt, "flipped"), "flipped")
    before, after = (p.images[0].load().convert("RGB").tobytes() for p in (prompt, flipped))
    assert before == after
    assert rewards.get("shortness")("", prompt, None, None) == 1
