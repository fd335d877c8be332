"""Small HTML for notebooks: tables and images inside the text, nothing from elsewhere."""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

from vistill.redaction import escape_control_characters, mask_secrets

#: Longest side of an image, and how many images of a prompt are shown.
SIDE, MOST_IMAGES = 200, 4
#: Longest text that is shown.
LONGEST_TEXT = 2000


def text_html(value: object) -> str:
    """A text of unknown origin, escaped; a long one is cut."""
    text = mask_secrets(escape_control_characters(str(value), "\n"))
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return html.escape(cut)


def table_html(rows: Mapping[str, object], title: str = "") -> str:
    """Names and values as a table; empty values are left out."""
    style = "text-align:left;vertical-align:top"
    cells = "".join(
        f'<tr><th style="{style}">{text_html(name)}</th>'
        f'<td style="{style};white-space:pre-wrap">{text_html(value)}</td></tr>'
        for name, value in rows.items()
        if value not in ("", None)
    )
    caption = f"<caption>{text_html(title)}</caption>" if title else ""
    return f"<table>{caption}{cells}</table>"


def grid_html(rows: Iterable[Iterable[object]]) -> str:
    """A table of several columns; the first row is its head."""
    head, *body = [[text_html(cell) for cell in row] for row in rows]
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"


def image_html(image: Any) -> str:
    """A PIL image as a small PNG inside the page."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="image of the prompt" src="data:image/png;base64,{data}">'


def images_html(images: Iterable[Any]) -> str:
    """The first images of a prompt; one that cannot be read is a note."""
    parts = []
    for reference in list(images)[:MOST_IMAGES]:
        try:
            parts.append(image_html(reference.load()))
        except (OSError, ValueError) as error:  # a notebook shows the rest of the prompt
            parts.append(f"<em>{text_html(reference.name)}: {text_html(error)}</em>")
    return " ".join(parts)
