"""The page of `vistill chat --html`: questions, pictures, answers and their tokens, offline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.errors import StorageError, quote_command
from vistill.redaction import mask_secrets
from vistill.report.charts import scale_of, tokens_html
from vistill.report.page import page_environment
from vistill.runs.storage import write_text

#: What tells the page from a user's own file.
TITLE = "<title>vistill chat</title>"


def check_chat_page(file: Path) -> None:
    """S601 for a folder, or a file that is no such page: it is never overwritten."""
    if not file.exists():
        return
    if file.is_file() and TITLE in file.read_text("utf-8", errors="replace")[:2000]:
        return
    folder = file if file.is_dir() else file.parent
    names = (folder / f"chat{number}.html" for number in ("", *(f"-{n}" for n in range(2, 1000))))
    free = next((path for path in names if not path.exists()), folder / "chat-of-now.html")
    raise StorageError(
        "S601",
        f'"{file}" exists and is no page of vistill chat',
        why="the page would overwrite it",
        fix=quote_command("--html", free),
    )


def write_chat_page(
    facts: Mapping[str, Any], questions: Sequence[Mapping[str, Any]], file: Path
) -> None:
    """Write the conversation so far.

    Args:
        facts: `models`, `teacher`, `sampling`.
        questions: each with `text`, `pictures` (data URIs) and `answers`; an answer has `model`,
            `text` and, if a teacher read it, `tokens`, `advantage`, `probability` and `unlikely`.
        file: the page. It is replaced.
    """
    values = [a["advantage"] for q in questions for a in q["answers"] if a.get("tokens")]
    scale = scale_of(values)
    shown = [
        {**question, "answers": [with_tokens(a, scale) for a in question["answers"]]}
        for question in questions
    ]
    template = page_environment().get_template("chat.html.jinja")
    html = template.render(facts=facts, questions=shown, scale=scale)
    write_text(file, mask_secrets(html))


def with_tokens(answer: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """An answer with its heatmap."""
    if not answer.get("tokens"):
        return {**answer, "heatmap": None}
    titles = [
        f"{value:.2f} nats; teacher p {p:.3f}"
        for value, p in zip(answer["advantage"], answer["probability"], strict=True)
    ]
    heatmap = tokens_html(
        answer["tokens"], answer["advantage"], scale, titles, underlined=answer["unlikely"]
    )
    return {**answer, "heatmap": heatmap}
