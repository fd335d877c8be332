"""The page of `vistill check --preview`: one offline HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vistill.redaction import mask_secrets
from vistill.report.page import escape_text_value
from vistill.runs.storage import write_text


def write_page(stages: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the contact sheet of one or several stages; text of data sets is escaped."""
    environment = Environment(
        loader=PackageLoader("vistill.report"),
        autoescape=True,
        finalize=escape_text_value,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    html = environment.get_template("preview.html.jinja").render(stages=stages)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, mask_secrets(html))
