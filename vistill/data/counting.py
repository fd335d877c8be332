"""Count the training rows of a source on this machine, without opening a picture."""

from pathlib import Path

from vistill.data.loading import make_reader
from vistill.data.settings import DataSettings
from vistill.data.sources import count_rows, files_of, read_source
from vistill.data.stored_prompts import PREFIX, read_prompts
from vistill.errors import DataError

#: From so many bytes on, lines are counted and not read.
MAX_READ = 64 << 20


def count_training_rows(settings: DataSettings, max_read: int = MAX_READ) -> int | None:
    """How many rows a run trains on; None for a source that is not on this machine.

    Rows are read as in a run: those that cannot be read or lack a picture do not count, nor do
    those that are held out. Pictures are not opened, so a row whose picture is missing counts. Of a
    large file only the lines are counted.

    Args:
        settings: of a recipe.
        max_read: bytes of the largest files that are read.

    Raises:
        DataError: D101 to D105, the source cannot be read.
    """
    source = settings.train
    if source.startswith(PREFIX):
        total = len(read_prompts(source))
    elif source.startswith("hf:") or "://" in source:
        return None
    else:
        is_large = sum(file.stat().st_size for file in files_of(source)) > max_read
        lines = count_rows(source, settings.limit) if is_large else None
        total = count_usable_rows(settings) if lines is None else lines
    held_out = 0 if settings.eval or settings.holdout >= total else settings.holdout
    return total - held_out


def count_usable_rows(settings: DataSettings) -> int:
    """The rows that can be read and, where rows need a picture, name one; at most the limit."""
    reader, total = make_reader(settings.train, settings), 0
    for line, row in read_source(settings.train):
        if total == settings.limit:
            break
        if isinstance(row, DataError):
            continue
        try:
            prompt = reader.undecoded_prompt(row, line)
        except DataError:  # `vistill check` names it
            continue
        total += bool(prompt.images) or settings.text_only == "plain"
    return total


def missing_rows_reason(settings: DataSettings, error: DataError) -> str:
    """Why the rows of a source are not counted, in a few words."""
    if error.code == "D102" and not Path(settings.train).exists():
        return f"{settings.train} does not exist"
    return f"{settings.train} cannot be read: {error.what} ({error.code})"
