"""The contact sheet of `vistill check --preview`: rows as the models will see them."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from vistill.data.images import BytesImage, FileImage
from vistill.data.keys import keyed_seed
from vistill.errors import DataError
from vistill.report.preview_page import write_page
from vistill.types import ImageRef, Prompt, View
from vistill.views import Partners, ViewContext, apply_view

#: Rows from the start of each part, rows with an odd picture, rows that are searched for those.
FIRST, ODD, SEARCHED = {"training": 12, "evaluation": 4}, 3, 2000
#: Longest side of a picture on the page.
SIDE = 360

#: (prompt) -> (text as the model reads it, tokens, image tokens).
Render = Callable[[Prompt], tuple[str, int, int]]


@dataclass
class Preview:
    """What the page of a recipe with stages collects, and where it is written."""

    file: Path
    stages: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        """Write the page."""
        write_page(self.stages, self.file)

    def add(
        self,
        name: str,
        parts: Mapping[str, Sequence[Prompt]],
        views: Sequence[str],
        context: ViewContext,
        render: Render | None,
    ) -> None:
        """Add the rows of a stage.

        Args:
            name: of the stage.
            parts: training and evaluation rows.
            views: those of the method, the full one first.
            context: parameters of the views.
            render: chat text and lengths of a prompt; None without a tokenizer.
        """
        rows = []
        for part, prompts in parts.items():
            partners = Partners(prompts, views, context.thought)
            for prompt, reason in chosen_rows(prompts, FIRST.get(part.partition(",")[0], 4)):
                seed = keyed_seed("view", prompt.id, context.seed)
                own = replace(context, seed=seed, partner=partners.get(prompt.id))
                rows.append(
                    {"part": part, "reason": reason, **row_facts(prompt, views, own, render)}
                )
        counts = {part: len(prompts) for part, prompts in parts.items()}
        self.stages.append({"name": name, "counts": counts, "views": list(views), "rows": rows})


def chosen_rows(prompts: Sequence[Prompt], count: int) -> list[tuple[Prompt, str]]:
    """The first rows, and further ones whose picture is not plain RGB: a few of each kind."""
    chosen = [(prompt, "") for prompt in prompts[:count]]
    kinds: dict[str, int] = {}
    for prompt in prompts[count:SEARCHED]:
        odd = sorted({kind for ref in prompt.images for kind in odd_kinds(ref)})
        new = [kind for kind in odd if kinds.get(kind, 0) < ODD]
        if new:
            kinds |= {kind: kinds.get(kind, 0) + 1 for kind in new}
            chosen.append((prompt, ", ".join(new)))
    return chosen


def source_of(ref: ImageRef) -> Image.Image | None:
    """The picture before it is normalised, not decoded; None where only the result is known."""
    if not isinstance(ref, FileImage | BytesImage):
        return None
    return Image.open(io.BytesIO(ref.data()))


def odd_kinds(ref: ImageRef) -> list[str]:
    """How a picture differs from what the model sees: mode, transparency, orientation, size."""
    picture = source_of(ref)
    if picture is None:
        return []
    kinds = [f"mode {picture.mode}"] if picture.mode != "RGB" else []
    kinds += ["transparent colour"] if "transparency" in picture.info else []
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        kinds.append("orientation")
    limits = getattr(ref, "limits", None)
    if limits is not None and limits.size(*picture.size) != picture.size:
        kinds.append("resized")
    return kinds


def describe_source(ref: ImageRef, size: tuple[int, int]) -> str:
    """Format, mode and size of a picture as it is stored, and its size as the model sees it."""
    picture = source_of(ref)
    shown = f"RGB {size[0]} x {size[1]}"
    if picture is None:
        return shown
    stored = f"{picture.format} {picture.mode} {picture.width} x {picture.height}"
    kinds = [kind for kind in odd_kinds(ref) if not kind.startswith("mode")]
    return " -> ".join([", ".join([stored, *kinds]), shown])


def row_facts(
    prompt: Prompt, views: Iterable[str], context: ViewContext, render: Render | None
) -> dict[str, Any]:
    """What the page shows of a row."""
    shown = [view_facts(prompt, view, context, render) for view in views]
    for one in shown[1:]:  # a text that all views share is shown once
        if one["text"] == shown[0]["text"]:
            one["text"] = ""
    return {
        "where": prompt.labels.get("row", prompt.id),
        "gold": list(prompt.golds),
        "choices": [f"({chr(65 + i)}) {choice}" for i, choice in enumerate(prompt.choices)],
        "response": prompt.response or "",
        "sources": [describe_source(ref, ref.load().size) for ref in prompt.images],
        "views": shown,
    }


def view_facts(
    prompt: Prompt, view: str, context: ViewContext, render: Render | None
) -> dict[str, Any]:
    """The pictures and the text of a row under a view; the reason if it cannot be shown."""
    try:
        seen = apply_view(prompt, view, context)
        pictures = [{"name": ref.name, "data": data_uri(ref.load())} for ref in seen.images]
        text, tokens, image_tokens = parts_of(seen) if render is None else render(seen)
    except DataError as error:
        return {"view": view, "pictures": [], "text": f"{error.code} {error.what}", "lengths": ""}
    lengths = f"{tokens:,} tokens, {image_tokens:,} of them of images" if tokens else ""
    return {"view": str(view), "pictures": pictures, "text": text, "lengths": lengths}


def parts_of(prompt: Prompt) -> tuple[str, int, int]:
    """The prompt without a chat template: the system message and the parts in order."""
    system = f"[system] {prompt.system}\n" if prompt.system else ""
    parts = (part if isinstance(part, str) else "[picture]" for part in prompt.parts)
    return system + "".join(parts), 0, 0


def data_uri(picture: Image.Image) -> str:
    """A picture as PNG in the page itself, reduced to `SIDE`; small ones keep their pixels."""
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def full_first(views: Iterable[str]) -> list[str]:
    """The views of a method, each once, the full one first."""
    return list(dict.fromkeys([str(View.FULL), *map(str, views)]))
