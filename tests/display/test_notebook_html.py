"""What a notebook draws: escaped, with images inside, nothing from elsewhere."""

import re
from dataclasses import replace

import html5lib
import pytest
from PIL import Image
from terminal_emulator import finished_run

from vistill.api import Run
from vistill.display.heatmaps import TokenAdvantage, TokenAdvantages
from vistill.runs.chosen_student import resolve_model
from vistill.types import LoadedImage, Prompt

HOSTILE = "<script>alert(1)</script> & \u202e\x1b[31m"


def parse(text):
    """Parse strictly; return the text, after checks that hold for everything a notebook draws."""
    html5lib.HTMLParser(strict=False).parseFragment(text)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return text


class Broken:
    name = HOSTILE

    def load(self):
        raise OSError("truncated")


def test_a_prompt_shows_small_images_and_escaped_texts():
    image = LoadedImage(Image.new("RGB", (4000, 2000), (200, 30, 30)))
    prompt = Prompt(HOSTILE, (HOSTILE, image, Broken()), answer=HOSTILE, choices=(HOSTILE, "b"))
    text = parse(prompt._repr_html_())
    assert text.count("<img") == 1
    assert "truncated" in text
    assert len(text) < 20_000
    assert "&lt;script&gt;" in text


def test_a_list_of_heatmaps_is_drawn_on_one_scale():
    weak, strong = TokenAdvantage(["a", HOSTILE], [0.5, 0.0]), TokenAdvantage(["b"], [4.0])
    text = parse(TokenAdvantages([weak, strong])._repr_html_())
    assert text.count('class="tokens"') == 2
    assert "darkest orange: 4.0 nats, underlined: above half of it" in text
    one = parse(strong._repr_html_())
    assert "<small>visual advantage" in one
    assert one.count('class="tokens"') == 1
    assert "0.85)" in text
    assert "0.85)" not in text.partition("0.50 nats")[0]


def test_a_run_shows_its_table(tmp_path):
    text = parse(Run(str(finished_run(tmp_path / "run")))._repr_html_())
    assert "45.0 %" in text
    assert "checkpoint-000032" in text


def test_a_model_is_one_line_of_text_and_a_small_table(student):
    assert "\n" not in repr(student)
    assert len(repr(student)) < 300
    assert "parameters" in parse(student._repr_html_())
    shipped = replace(student, source=resolve_model("vistill:student"))
    assert "source vistill:student" in repr(shipped)


@pytest.mark.parametrize("length", [10, 100_000])
def test_long_texts_are_cut(length):
    assert len(Prompt("p", ("x" * length,))._repr_html_()) < 3000
