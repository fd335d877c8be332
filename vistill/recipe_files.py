"""Recipe files: find them by path or by shipped name, and read their text."""

import codecs
import shlex
import textwrap
from pathlib import Path

from vistill.errors import ConfigError, closest, file_next_to, in_place_of, quote_command

RECIPES = Path(__file__).parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with vistill by name, in an installation and in a working copy."""
    folders = (Path(__file__).parent.parent / "recipes", RECIPES)
    files = {file.name: file for folder in folders for file in folder.glob("*.yaml")}
    return dict(sorted(files.items()))


def find_recipe(path: str | Path) -> Path:
    """The file itself, or a shipped recipe of that name."""
    file, shipped = Path(path), shipped_recipes()
    for candidate in (file, shipped.get(file.name)):
        if candidate is not None and candidate.is_file():
            return candidate
    if file.is_dir():
        raise folder_as_recipe(file)
    listed = f"shipped recipes: {', '.join(shipped)}"
    raise ConfigError(
        "C004",
        f'recipe "{path}" does not exist',
        why="\n".join(textwrap.wrap(listed, 110, break_on_hyphens=False)),
        fix=other_recipe_fix(file, str(path), list(shipped)),
    )


def other_recipe_fix(file: Path, given: str, shipped: list[str]) -> str:
    """A recipe or a run with a similar name; else the command that writes the file."""
    own, written = recipes_in(file.parent), f"{file.stem}.yaml"
    if written in own:
        return in_place_of(str(file.with_name(written)), given)
    meant = closest(file.name, [*own, *shipped])
    runs = [folder.parent.name for folder in file.parent.glob("*/recipe.json")]
    run = closest(file.name, runs)
    if run and not meant:
        return in_place_of(str(file.parent / run[0] / "recipe.json"), given)
    meant = meant or [
        f"{stem}.yaml" for stem in closest(file.stem, [Path(k).stem for k in shipped])
    ]
    if meant:
        return in_place_of(str(file.with_name(meant[0]) if meant[0] in own else meant[0]), given)
    init = quote_command("vistill", "init", file.with_name(written))
    if str(file.with_name(written)) == given:
        return f"{init}   writes a commented recipe"
    return f"{init}   and then   {in_place_of(str(file.with_name(written)), given)}"


def recipes_in(folder: Path) -> list[str]:
    """The names of the recipe files in a folder."""
    paths = sorted(folder.iterdir())[:1000] if folder.is_dir() else []
    return [path.name for path in paths if path.suffix in (".yaml", ".toml") and path.is_file()]


def folder_as_recipe(folder: Path) -> ConfigError:
    """C004 for a folder in place of a recipe; that of a run holds the recipe of the run."""
    runs = [folder / "recipe.json", *sorted(folder.glob("*/recipe.json"))]
    file = next((file for file in runs if file.is_file()), None)
    return ConfigError(
        "C004",
        f"{folder} is a folder, not a recipe",
        why="a run folder holds the recipe of its run" if file else "it holds no recipe.json",
        fix=in_place_of(str(file), str(folder))
        if file
        else "vistill init FILE.yaml   writes a commented recipe",
    )


def read_recipe_text(file: Path) -> str:
    """A recipe's text (C003 where it is none)."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf16 = file.read_bytes()[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        new = str(file_next_to(file, f"{file.stem}.utf8{file.suffix}"))
        words = ("iconv", "-f", "UTF-16" if is_utf16 else "LATIN1", "-t", "UTF-8", file)
        raise ConfigError(
            "C003",
            "the recipe is not UTF-8 text",
            where=file.name,
            why=str(error),
            fix=f"{quote_command(*words)} > {shlex.quote(new)}   and then   "
            + in_place_of(new, str(file)),
        ) from error
