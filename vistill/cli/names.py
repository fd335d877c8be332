"""`vistill list`: what a recipe can name, and where it comes from."""

from vistill.config import method_schemas, shipped_recipes
from vistill.errors import ConfigError, closest
from vistill.lookup import Entry, Registry
from vistill.registry import KINDS, methods
from vistill.reproduction.tables import find_table, table_names

#: Where each kind is named.
NAMED_BY = {
    "methods": "method: NAME",
    "views": "by the passes of a method",
    "families": "by the model_type of a model's config.json; any other model uses generic",
    "engines": "rollout.engine=NAME",
    "tasks": "eval.task=NAME",
    "checkers": "eval.checker=NAME reward.checker=NAME",
    "rewards": "reward.accuracy, reward.format, reward.extra={NAME: WEIGHT}",
    "thoughts": "views.thought=NAME",
    "studies": "run by the verbs demo, methods and train",
}


def kinds_table() -> str:
    """One line per kind: how many names it has, and where a name is used."""
    rows = [(kind, str(len(registry.names())), NAMED_BY[kind]) for kind, registry in KINDS.items()]
    rows.append(("recipes", str(len(shipped_recipes())), "vistill train NAME"))
    rows.append(("tables", str(len(table_names())), "vistill reproduce NAME"))
    return "\n".join([*lines_of(rows), "", "vistill list KIND   prints the names of a kind"])


def names_table(kind: str) -> str:
    """One line per name: the first line of its documentation, and where it comes from.

    Raises:
        ConfigError: C105, there is no such kind.
    """
    if kind == "recipes":
        return recipes_table()
    if kind == "tables":
        rows = [(name, find_table(name)) for name in table_names()]
        return "\n".join(lines_of([(name, table.recipe, table.title) for name, table in rows]))
    if kind not in KINDS:
        near = next(iter(closest(kind, [*KINDS, "recipes", "tables"])), "methods")
        what = f'there is no kind "{kind:.60}"'
        raise ConfigError(
            "C105",
            what,
            why=f"kinds: {', '.join(KINDS)}, recipes, tables",
            fix=f"vistill list {near}",
        )
    registry = KINDS[kind]
    return "\n".join(
        lines_of([(e.name, str(e.origin), summary(registry, e)) for e in registry.entries()])
    )


def recipes_table() -> str:
    """One line per shipped recipe: the first line of its comment."""
    files = shipped_recipes()
    width = max(len(name) for name in files)
    lines = []
    for name, file in files.items():
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"{name:<{width}}  {first.removeprefix('# ')}")
    return "\n".join(lines)


def summary(registry: Registry, entry: Entry) -> str:
    """The first line about an entry; what is wrong with it where it cannot be used."""
    try:
        if registry is methods:
            return str(method_schemas()[entry.name]["x-page"]).partition("\n")[0]
        return registry.summary(entry)
    except ConfigError as error:
        return f"error[{error.code}]: {error.what}"


def lines_of(rows: list[tuple[str, str, str]]) -> list[str]:
    """Three columns, the first two as wide as they need."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
