"""Views: what a reader may see."""

import numpy as np
import pytest
from PIL import Image

from vistill.errors import DataError
from vistill.types import LoadedImage, Prompt, View
from vistill.views import ViewContext, apply_view, pixelate


def picture(mode="RGB", size=(37, 53)):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kept"), [("RGB", "RGB"), ("L", "L"), ("RGBA", "RGBA"), ("P", "RGB"), ("1", "L")]
)
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
    expected = image.resize((10, 9), Image.Resampling.BILINEAR).resize(
        (101, 99), Image.Resampling.NEAREST
    )
    assert np.array_equal(np.asarray(pixelate(image)), np.asarray(expected))


PROMPT = Prompt(
    "p", (LoadedImage(picture()), "question ", LoadedImage(picture(size=(20, 20))), "end")
)
PARTNER = Prompt("q", (LoadedImage(picture(size=(9, 9))), "other"))


PRIVILEGED = [v for v in View if v.startswith("privileged")]


@pytest.mark.parametrize(
    "view", [v for v in View if v is not View.TEXT_ONLY and v not in PRIVILEGED]
)
def test_a_view_keeps_places_sizes_and_text(view):
    out = apply_view(PROMPT, view, ViewContext(partner=PARTNER, seed=3))
    assert out.text == PROMPT.text
    assert [i.load().size for i in out.images] == [(37, 53), (20, 20)]
    assert out.id == PROMPT.id
    assert out.answer == PROMPT.answer


def test_text_only_has_no_picture():
    assert apply_view(PROMPT, View.TEXT_ONLY).parts == ("question ", "end")


@pytest.mark.parametrize("view", [View.NOISE, View.MASKED])
def test_random_views_depend_on_their_seed_only(view):
    def draw(seed):
        context = ViewContext(seed=seed, patch=5)
        return np.asarray(apply_view(PROMPT, view, context).images[0].load())

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_all_pictures_of_a_prompt_are_degraded():
    out = apply_view(PROMPT, View.PIXELATED)
    for old, new in zip(PROMPT.images, out.images, strict=True):
        assert not np.array_equal(np.asarray(old.load()), np.asarray(new.load()))


THOUGHT = LoadedImage(picture(size=(12, 8)), "thought")
WITH_THOUGHTS = Prompt(
    "t",
    (LoadedImage(picture(size=(40, 30))), "What?"),
    thoughts=(THOUGHT, THOUGHT),
    boxes=((10, 5, 20, 15),),
)
OTHER = Prompt("o", ("Else?",), thoughts=(LoadedImage(picture(size=(6, 6)), "other"),))


def test_the_privileged_view_is_the_papers_context_word_for_word():
    parts = apply_view(WITH_THOUGHTS, View.PRIVILEGED).parts
    assert parts[1] == "What?"
    assert parts[2] == (
        "\nThe following images are privileged visual references that depict the intermediate "
        "visual thoughts on the path to the correct answer. Use them silently as grounding "
        "context; do not describe or echo them.\n"
    )
    assert parts[3:5] == (THOUGHT, THOUGHT)
    assert parts[5] == (
        "\nNow, using your own independent reasoning, answer the problem above. Think step by step."
    )


@pytest.mark.parametrize(
    "view", [View.PRIVILEGED_NOISE, View.PRIVILEGED_BLANK, View.PRIVILEGED_MISMATCHED]
)
def test_controls_keep_every_place_and_size_and_change_every_thought(view):
    real = apply_view(WITH_THOUGHTS, View.PRIVILEGED)
    control = apply_view(WITH_THOUGHTS, view, ViewContext(partner=OTHER, seed=1))
    assert [p for p in control.parts if isinstance(p, str)] == [
        p for p in real.parts if isinstance(p, str)
    ]
    assert [i.load().size for i in control.images] == [i.load().size for i in real.images]
    assert control.images[0] is WITH_THOUGHTS.images[0]
    for old, new in zip(real.images[1:], control.images[1:], strict=True):
        assert not np.array_equal(np.asarray(old.load().convert("RGB")), np.asarray(new.load()))


def test_prompts_only_keeps_the_two_sentences_and_no_thought():
    assert apply_view(WITH_THOUGHTS, View.PRIVILEGED_PROMPTS).images == WITH_THOUGHTS.images
    privileged = apply_view(WITH_THOUGHTS, View.PRIVILEGED)
    assert apply_view(WITH_THOUGHTS, View.PRIVILEGED_PROMPTS).text == privileged.text


def test_thoughts_can_be_drawn_from_boxes():
    crops = apply_view(WITH_THOUGHTS, View.PRIVILEGED, ViewContext(thought="crop")).images[1:]
    assert len(crops) == 1
    assert crops[0].load().size == (35, 30)
    framed = apply_view(WITH_THOUGHTS, View.PRIVILEGED, ViewContext(thought="box")).images[1].load()
    assert framed.size == (40, 30)
    assert framed.getpixel((10, 5)) == (255, 0, 0)


def test_a_degraded_picture_keeps_its_size_and_follows_its_seed():
    for how in ("downsample", "noise", "either"):

        def draw(seed, how=how):
            context = ViewContext(seed=seed, degrade=how)
            return np.asarray(apply_view(WITH_THOUGHTS, View.DEGRADED, context).images[0].load())

        assert draw(1).shape == (30, 40, 3)
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))


def test_a_black_picture_is_black_everywhere():
    black = apply_view(WITH_THOUGHTS, View.BLACK).images[0].load()
    assert black.getextrema() == ((0, 0), (0, 0), (0, 0))


def values_of(view, noise, size=(200, 150)):
    prompt = Prompt(
        "n", (LoadedImage(picture(size=size)), "?"), thoughts=(LoadedImage(picture(size=size)),)
    )
    out = apply_view(prompt, view, ViewContext(seed=5, noise=noise))
    return np.asarray(out.images[-1].load(), dtype=np.float64)


@pytest.mark.parametrize("view", [View.NOISE, View.PRIVILEGED_NOISE])
def test_noise_is_the_standard_normal_of_a_processed_picture_cut_off_at_its_range(view):
    """`randn_like` after a processor with mean and deviation 0.5: 127.5 + 127.5 z in 0..255."""
    values = values_of(view, ViewContext().noise)
    error = 91.6 / np.sqrt(values.size)
    assert abs(values.mean() - 127.5) < 5 * error
    assert values.std() == pytest.approx(
        127.5 * 0.7184, rel=0.01
    )  # of a normal cut off at +-1 deviation
    for end in (0, 255):
        assert (values == end).mean() == pytest.approx(0.1587, abs=0.006)  # P(z < -1), P(z > 1)
    assert np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1] == pytest.approx(
        0, abs=0.02
    )
    assert np.corrcoef(values[..., 0].ravel(), values[..., 1].ravel())[0, 1] == pytest.approx(
        0, abs=0.02
    )


@pytest.mark.parametrize("view", [View.NOISE, View.PRIVILEGED_NOISE])
def test_uniform_noise_can_be_asked_for(view):
    values = values_of(view, "uniform")
    assert values.std() == pytest.approx(np.sqrt((256**2 - 1) / 12), rel=0.01)
    assert (values == 255).mean() == pytest.approx(1 / 256, abs=0.002)


@pytest.mark.parametrize("view", [View.SWAPPED, View.PRIVILEGED_MISMATCHED])
@pytest.mark.parametrize("partner", [None, Prompt("q", ("words alone",))])
def test_a_view_that_borrows_never_falls_back_to_the_rows_own(view, partner):
    with pytest.raises(DataError) as caught:
        apply_view(WITH_THOUGHTS, view, ViewContext(partner=partner))
    assert caught.value.code == "D309"
    assert caught.value.rows == ["t"]


def test_a_row_without_a_picture_needs_no_partner():
    bare = Prompt("w", ("words alone",))
    assert apply_view(bare, View.SWAPPED) is bare
