"""Write the table of README.md that compares vistill with other trainers.

    python benchmarks/compare_trainers_table.py     write the table again from the stored results

The input is the file that `compare_trainers.py` writes. Only the standard library is needed.
"""

import json
import textwrap
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "compare_trainers.json"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- compare-trainers:begin -->", "<!-- compare-trainers:end -->"
LINES = (
    (
        "stopped after step k (each k of three epochs), same command: the same final bits",
        "stop",
        "same",
    ),
    (
        "SIGKILL at a random instant after the first update, same command: the same final bits",
        "kill",
        "same",
    ),
    ("SIGKILL: ended normally, but with other weights", "kill", "different"),
    ("SIGKILL: cannot continue; the command fails every time", "kill", "stuck"),
    (
        "mistakes made on purpose: stopped before the first update; the message names the cause",
        "mistakes",
        "named",
    ),
    ("... and says what is wrong with it, what is allowed or how to fix it", "mistakes", "useful"),
    ("mistakes made on purpose: trained on without any message", "mistakes", "silent"),
)


def cell(rows, name, tool, key):
    """Format one cell: `11 of 11`, or the reason why there is no number."""
    match = next((row for row in rows if (row["name"], row["tool"]) == (name, tool)), None)
    return "two undisturbed runs differ" if match is None else f"{match[key]} of {match['tried']}"


def table(rows, about):
    """Return the lines between the markers."""
    titles = about["titles"]
    lines = ["| | " + " | ".join(titles.values()) + " |", "|---|" + "---|" * len(titles)]
    lines += [
        f"| {text} | " + " | ".join(cell(rows, name, tool, key) for tool in titles) + " |"
        for text, name, key in LINES
    ]
    versions = f"Python {about['python']}, torch {about['torch']}"
    note = (
        f"{about['date']}, `{about['command']}`, {versions}, one of {about['cores']} CPU cores. "
        "The models are tiny and every step writes a checkpoint, so a kill hits a save more often "
        "than in a long run. The authors of vistill chose the mistakes; a mistake that a tool "
        "cannot make is not counted for it. Settings and rules: "
        "`benchmarks/compare_trainers.py`, `benchmarks/compare_trainers_mistakes.py`; "
        "every message: `benchmarks/results/compare_trainers.json`."
    )
    return [*lines, "", *textwrap.wrap(note, 100, break_long_words=False, break_on_hyphens=False)]


def with_table(text, rows, about):
    """Return `README.md` with a new table."""
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    assert marker, f"{README.name} has lost its markers"
    return "\n".join([before + BEGIN, *table(rows, about), END]) + after


def write(out, rows, about):
    """Write the results; if they go to the repository's own file, write the table too."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows, "about": about}, indent=2) + "\n", encoding="utf-8")
    if out == RESULTS:
        README.write_text(
            with_table(README.read_text(encoding="utf-8"), rows, about), encoding="utf-8"
        )


if __name__ == "__main__":
    write(RESULTS, **json.loads(RESULTS.read_text(encoding="utf-8")))
