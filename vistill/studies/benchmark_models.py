"""`vistill eval MODEL MODEL ... --tasks`: each model in its own folder, and paired differences."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistill.evaluation.benchmarks.comparing import (
    DIFFERENCE_COLUMNS,
    compare_models,
    difference_rows,
    matrix_table,
)
from vistill.evaluation.benchmarks.results import CSV_COLUMNS, csv_rows, results_table
from vistill.report.csv_file import write_csv
from vistill.runs.folder import RunFolder
from vistill.runs.storage import write_json, write_text
from vistill.studies.benchmark_run import BenchmarkRequest, find_rows, run_benchmarks
from vistill.training.checks.arguments import training_folder_error
from vistill.training.recipe import Recipe

#: Folder of the models in a run of several: `RUN/models/NAME/samples/`.
MODELS = "models"


def run_models(
    recipes: Mapping[str, Recipe], request: BenchmarkRequest, run: Path
) -> dict[str, Any]:
    """Run benchmarks on several models, one after another; write their matrix and differences.

    Each model continues its own logs in `RUN/models/NAME`, as a run of this model alone does.

    Args:
        recipes: by name, the first one is the baseline; their `run` is not used.
        request: benchmarks, protocol and rows, the same for all.
        run: the folder.

    Raises:
        DataError: D101, D102, a benchmark is absent or unreadable.
        ConfigError: C203, a folder has samples of another model or of other settings.
    """
    folder = RunFolder(run)
    folder.check_writable()
    if folder.has_started():
        raise training_folder_error(str(run))
    with folder.locked():
        present, _ = find_rows(request)
        rows = {part.benchmark.name: {row.id for row in part.rows} for part in present}
        results = {
            name: run_benchmarks(replace(recipe, run=str(run / MODELS / name)), request)
            for name, recipe in recipes.items()
        }
        compared = compare_models(results, rows)
        write_comparison(run, compared)
    return compared


def write_comparison(folder: Path, results: Mapping[str, Any]) -> None:
    """`results.json`, `results.csv`, `differences.csv` and `results.txt` of several models."""
    models = results["models"]
    write_json(folder / "results.json", results)
    every = ({**row, "model": name} for name, one in models.items() for row in csv_rows(one))
    write_csv(folder / "results.csv", CSV_COLUMNS, every)
    write_csv(folder / "differences.csv", DIFFERENCE_COLUMNS, difference_rows(results))
    parts = [matrix_table(results), *(results_table(one) for one in models.values())]
    write_text(folder / "results.txt", "\n\n\n".join(parts) + "\n")
