"""Print errors, warnings and crashes; write the error file that `VISTILL_ERROR_JSON` names."""

import json
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

from rich.cells import cell_len

from vistill.display.live_line import clear_before_text, columns_of
from vistill.display.wrapping import fit_to
from vistill.errors import VistillError
from vistill.redaction import for_terminal, mask_secret_settings

#: If this variable is set, or with `--traceback`, errors print their traceback.
TRACEBACK_VARIABLE = "VISTILL_TRACEBACK"


def show_error(error: VistillError) -> None:
    """Print an error with escaped control characters and masked secrets."""
    if os.environ.get(TRACEBACK_VARIABLE):
        print(for_terminal("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    print_fitted("\n".join(error.render().splitlines()))


def show_notice(what: str, command: str) -> None:
    """Print that a signal stopped the command, and the command that continues."""
    again = "run the same command again to continue:"
    line = f"{again}   {command}"
    if sys.stderr.isatty() and cell_len(for_terminal(line)) > columns_of(sys.stderr):
        line = f"{again}\n{command}"
    print_fitted(f"{what}\n{line}")


def show_warning(message: Warning | str, category: type[Warning], *rest: object) -> None:
    """Print a warning on one line, without its place in the code."""
    print_fitted(f"note: {message}")


def print_fitted(text: str) -> None:
    """Print a text to stderr in place of a live line: harmless, in whole words on a terminal."""
    clear_before_text()
    print(fit_to(for_terminal(text), sys.stderr), file=sys.stderr)


def print_result(text: str) -> None:
    """Print what a verb found to stdout, in whole words on a terminal."""
    print(fit_to(for_terminal(text), sys.stdout))


def write_error_file(error: VistillError) -> None:
    """Write the error as JSON to the file that `VISTILL_ERROR_JSON` names."""
    file = os.environ.get("VISTILL_ERROR_JSON")
    if file:
        facts = {key: mask_secret_settings(text) for key, text in error.to_dict().items()}
        Path(file).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def show_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the escaped traceback of an unexpected error."""
    clear_before_text()
    print(
        for_terminal("".join(traceback.format_exception(kind, error, trace))),
        end="",
        file=sys.stderr,
    )
