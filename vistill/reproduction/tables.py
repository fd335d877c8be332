"""The tables: their rows and columns, the paper's values, and the run behind each row.

A table is a file in `tables/`. Its values are transcribed from the paper; what the paper does not
print is null. Needs no torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.errors import ConfigError, closest, in_place_of
from vistill.strict_yaml import parse_text

FOLDER = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    label: str
    stage: str = ""
    """Stage whose chosen student the row shows. Empty for a row that only the paper has."""
    start_of: str = ""
    """Stage whose student before its first step the row shows."""
    paper: tuple[Any, ...] = ()
    """The paper's values by column; None where it prints none."""

    @property
    def cell(self) -> str:
        """The stage that must run for this row; empty if none does."""
        return self.stage or self.start_of


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    name: str
    title: str
    source: str
    recipe: str
    """Shipped recipe with a stage for each row."""
    checkpoint: str
    """Which checkpoint a row shows: `best` on the held-out rows, or `last`."""
    rule: str
    """The same in words, with its source."""
    protocol: str
    """What the paper's values are."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def stages(self) -> list[str]:
        """The stages that must run, in the order of their rows; each once."""
        stages = [row.stage for row in self.rows] + [row.start_of for row in self.rows]
        return [stage for stage in dict.fromkeys(stages) if stage]


def table_names() -> list[str]:
    """The names of all tables."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_table(name: str) -> Table:
    """Read a table (C140 if there is none of that name)."""
    if name not in table_names():
        raise unknown_table_error(name)
    file = FOLDER / f"{name}.yaml"
    tree = parse_text(file.read_text(encoding="utf-8"), file)
    columns = tuple(tree.pop("columns"))
    rows = tuple(
        Row(**{**row, "paper": tuple(row.get("paper", [None] * len(columns)))})
        for row in tree.pop("rows")
    )
    assert all(len(row.paper) == len(columns) for row in rows), file.name
    return Table(name=name, columns=columns, rows=rows, notes=tuple(tree.pop("notes", ())), **tree)


def unknown_table_error(name: str) -> ConfigError:
    """C140 for a table that is not part of the package."""
    names = table_names()
    near = [*closest(name.replace("-", "_"), names), *closest(name, names), *names]
    return ConfigError(
        "C140",
        f'there is no table "{name:.60}"',
        why=f"tables: {', '.join(names)}",
        fix=in_place_of(near[0], name),
    )
