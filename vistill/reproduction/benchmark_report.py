"""The page of benchmark runs, with the papers' values of the tables next to it. Needs no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.evaluation.benchmarks.comparing import compare_models, names_of
from vistill.redaction import mask_secrets
from vistill.report.benchmark_page import PaperTable, as_several, render_benchmarks
from vistill.report.run_data import read_json
from vistill.reproduction.tables import find_table
from vistill.runs.storage import write_text

#: By protocol: the tables with the values of its paper on whole benchmarks.
PAPERS = {
    "va_opd": ("va_opd-1", "va_opd-2"),
    "vgs": ("vgs-1", "vgs-2", "vgs-5"),
    "visual_opsd": ("visual_opsd-1",),
}
#: Columns of the tables that a suite calls otherwise.
RENAMED = {"WeMath": "We-Math", "VlmsAreBlind": "VLMs are blind"}


def paper_tables(protocol: str) -> list[PaperTable]:
    """The tables of the paper of a protocol; none for `official`."""
    papers = []
    for table in map(find_table, PAPERS.get(protocol, ())):
        columns = [RENAMED.get(column, column) for column in table.columns]
        rows = [
            (row.label, dict(zip(columns, row.paper, strict=True)))
            for row in table.rows
            if any(value is not None for value in row.paper)
        ]
        papers.append(PaperTable(table.title, table.source, table.protocol, rows))
    return papers


def write_benchmark_report(results: Mapping[str, Any], out: Path) -> Path:
    """Write the page of one model or several and return its path."""
    page = render_benchmarks(results, paper_tables(results["protocol"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, mask_secrets(page))
    return out


def read_results(folder: Path) -> dict[str, Any]:
    """The results of a benchmark run; empty if the folder holds none."""
    results = read_json(folder / "results.json")
    is_benchmarks = "protocol" in results and ("tasks" in results or "models" in results)
    return results if is_benchmarks else {}


def use_own_logs(folder: Path, results: dict[str, Any]) -> None:
    """Name the logs of a folder as they lie there now: it may have been moved or copied."""
    depth = 4 if "models" in results else 2  # RUN/models/NAME/samples/LOG, or RUN/samples/LOG
    for one in results.get("models", {"": results}).values():
        for task in one["tasks"].values():
            task["log"] = str(folder.joinpath(*Path(task["log"]).parts[-depth:]))


def report_benchmarks(folders: Sequence[Path], out: Path) -> Path | None:
    """Write the page of benchmark runs; None if they are not all such.

    The models of several runs are compared with the first one, on the rows that their logs share.
    """
    read = [read_results(folder) for folder in folders]
    if not all(read):
        return None
    for folder, results in zip(folders, read, strict=True):
        use_own_logs(folder, results)
    if len(read) == 1:
        return write_benchmark_report(read[0], out)
    models: dict[str, Any] = {}
    labels = names_of([str(folder) for folder in folders])
    for label, results in zip(labels, read, strict=True):
        several = as_several(results)["models"]
        for name, one in several.items():
            models[label if len(several) == 1 else f"{label}/{name}"] = one
    return write_benchmark_report(compare_models(models), out)
