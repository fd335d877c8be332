"""Leave out training rows that a start check refuses, as loading leaves out rows it cannot read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vistill.data.loading import QuarantinedRow, bad_rows_error
from vistill.data.settings import DataSettings
from vistill.errors import DataError
from vistill.types import Prompt

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup


def set_aside_rows(setup: "RunSetup", reasons: Mapping[str, str], error: DataError) -> None:
    """Leave training rows out, up to `data.max_bad_share`; more stop the run.

    Args:
        setup: its training rows and their record change.
        reasons: why, by the id of the row.
        error: what to raise if the rows may not be left out, with the first row.
    """
    total = len(setup.train_prompts)
    rows = refused_rows(setup.train_prompts, setup.recipe.data, reasons, error)
    setup.train_prompts = [p for p in setup.train_prompts if p.id not in reasons]
    setup.train_data = replace(
        setup.train_data,
        prompts=list(setup.train_prompts),
        quarantined=[*setup.train_data.quarantined, *rows],
    )
    text = f"{len(rows)} of {total} training rows are left out: {error.code} {rows[0].reason}"
    setup.folder.event(text)
    if setup.purpose == "train":
        setup.progress({"event": text})


def refused_rows(
    prompts: Sequence[Prompt], settings: DataSettings, reasons: Mapping[str, str], error: DataError
) -> list[QuarantinedRow]:
    """The record of the rows to leave out; the error if the settings do not allow that."""
    total = len(prompts)
    if settings.on_bad_row == "stop":
        error.fix = f"{error.fix}   or leave such rows out: data.on_bad_row=quarantine"
        raise error
    rows = [
        QuarantinedRow(p.labels.get("row", p.id), error.code, reasons[p.id], error.fix)
        for p in prompts
        if p.id in reasons
    ]
    count = len(rows)
    if count > settings.max_bad_share * total or count == total:
        allowed = min(1.0, count / total + 0.005)
        allow = f"{error.fix}   or leave such rows out: data.max_bad_share={allowed:.2f}"
        fix = allow if count < total else error.fix
        refused = bad_rows_error(rows, error.what, fix, settings.sources)
        refused.why = error.why
        raise refused
    return rows
