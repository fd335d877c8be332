"""The table *vistill next to the trainers* of README.md, from what `next_to_trainers.py` measured; needs nothing else.

python benchmarks/next_to_table.py     renew the table from the stored results
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "next_to_trainers.json"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- next-to-trainers:begin -->", "<!-- next-to-trainers:end -->"
LINES = (
    (
        "stopped after step k, for every k of three epochs, and repeated: the same final bits",
        "stop",
        "same",
    ),
    (
        "SIGKILL at a random instant after the first update, and repeated: the same final bits",
        "kill",
        "same",
    ),
    ("SIGKILL: ended normally with other weights", "kill", "different"),
    ("SIGKILL: cannot continue, the command fails each time", "kill", "stuck"),
    (
        "planted mistakes: stopped before the first update by a message that names the culprit",
        "mistakes",
        "named",
    ),
    ("... and says what is wrong with it, what is allowed or how to mend it", "mistakes", "useful"),
    ("planted mistakes: trained on without a word", "mistakes", "silent"),
)


def cell(rows, name, tool, key):
    """`11 of 11`, or why there is no number."""
    found = next((row for row in rows if (row["name"], row["tool"]) == (name, tool)), None)
    return "two undisturbed runs differ" if found is None else f"{found[key]} of {found['tried']}"


def table(rows, about):
    """The lines between the markers."""
    titles = about["titles"]
    lines = ["| | " + " | ".join(titles.values()) + " |", "|---|" + "---|" * len(titles)]
    lines += [
        f"| {text} | " + " | ".join(cell(rows, name, tool, key) for tool in titles) + " |"
        for text, name, key in LINES
    ]
    versions = (
        f"Python {about['python']}, torch {about['torch']}, {about['cores']} CPU cores, one used"
    )
    return [
        *lines, "",
        f"{about['date']}, `{about['command']}`, {versions}. Tiny models and a checkpoint after every step, so that "
        "kills hit a save more often than they would in a long run. We chose the mistakes; "
        "those that a tool cannot make are not counted for it. Settings and rules: `benchmarks/next_to_trainers.py`, "
        "`next_to_mistakes.py`; every message: `benchmarks/results/next_to_trainers.json`.",
    ]  # fmt: skip


def with_table(text, rows, about):
    """`README.md` with its table renewed."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{README.name} has lost its markers"
    return "\n".join([before + BEGIN, *table(rows, about), END]) + after


def write(out, rows, about):
    """The results, and where they are this repository's own, the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows, "about": about}, indent=2) + "\n", encoding="utf-8")
    if out == RESULTS:
        README.write_text(
            with_table(README.read_text(encoding="utf-8"), rows, about), encoding="utf-8"
        )


if __name__ == "__main__":
    write(RESULTS, **json.loads(RESULTS.read_text(encoding="utf-8")))
