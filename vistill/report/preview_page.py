"""The page of `vistill check --preview`: one offline HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistill.errors import StorageError, quote_command
from vistill.redaction import mask_secrets
from vistill.report.page import page_environment
from vistill.runs.storage import write_text

TITLE = "<title>vistill check: what the models will see</title>"


def check_page_file(file: Path) -> None:
    """S601 for a folder, or a file that is no such page: it is never overwritten."""
    if not file.exists():
        return
    if file.is_file() and TITLE in file.read_text("utf-8", errors="replace")[:2000]:
        return
    raise StorageError(
        "S601",
        f'"{file}" exists and is no page of vistill check',
        why="the page would overwrite it",
        fix=quote_command("--preview", str(free_page(file))),
    )


def free_page(file: Path) -> Path:
    """A name next to a file that does not exist yet."""
    folder, stem = (file, "rows") if file.is_dir() else (file.parent, file.stem)
    names = (folder / f"{stem}{number}.html" for number in ("", *(f"-{n}" for n in range(2, 100))))
    return next((path for path in names if not path.exists()), folder / "preview-of-rows.html")


def write_page(stages: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the contact sheet of one or several stages; text of data sets is escaped."""
    check_page_file(file)
    html = page_environment().get_template("preview.html.jinja").render(stages=stages)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, mask_secrets(html))
