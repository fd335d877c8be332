"""Views: what a reader may see."""

import numpy as np
import pytest
from PIL import Image

from vistill.types import LoadedImage, Prompt, View
from vistill.views import VIEWS, ViewContext, pixelate, see


def picture(mode="RGB", size=(37, 53)):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "kept"), [("RGB", "RGB"), ("L", "L"), ("RGBA", "RGBA"), ("P", "RGB"), ("1", "L")])
def test_pixelation_keeps_size_and_mode_but_for_palettes_and_bits(mode, kept):
    out = pixelate(picture(mode))
    assert out.size == (37, 53)
    assert out.mode == kept


def test_pixelation_floors_the_reduced_size_and_blows_up_in_blocks():
    out = np.asarray(pixelate(picture(size=(64, 64))))
    assert len(np.unique(out.reshape(-1, 3), axis=0)) <= 36
    assert pixelate(picture(size=(5, 5))).getcolors() is not None
    assert len(np.unique(np.asarray(pixelate(picture(size=(5, 5)))).reshape(-1, 3), axis=0)) == 1


def test_pixelation_is_the_papers_recipe():
    image = picture(size=(101, 99))
    expected = image.resize((10, 9), Image.Resampling.BILINEAR).resize((101, 99), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(pixelate(image)), np.asarray(expected))


PROMPT = Prompt("p", (LoadedImage(picture()), "question ", LoadedImage(picture(size=(20, 20))), "end"))
PARTNER = Prompt("q", (LoadedImage(picture(size=(9, 9))), "other"))


@pytest.mark.parametrize("view", [v for v in VIEWS if v is not View.TEXT_ONLY])
def test_a_view_keeps_places_sizes_and_text(view):
    out = see(PROMPT, view, ViewContext(partner=PARTNER, seed=3))
    assert out.text == PROMPT.text
    assert [i.load().size for i in out.images] == [(37, 53), (20, 20)]
    assert out.id == PROMPT.id
    assert out.answer == PROMPT.answer


def test_text_only_has_no_picture():
    assert see(PROMPT, View.TEXT_ONLY).parts == ("question ", "end")


@pytest.mark.parametrize("view", [View.NOISE, View.MASKED])
def test_random_views_depend_on_their_seed_only(view):
    draw = lambda seed: np.asarray(see(PROMPT, view, ViewContext(seed=seed, patch=5)).images[0].load())
    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_all_pictures_of_a_prompt_are_degraded():
    out = see(PROMPT, View.PIXELATED)
    for old, new in zip(PROMPT.images, out.images, strict=True):
        assert not np.array_equal(np.asarray(old.load()), np.asarray(new.load()))
