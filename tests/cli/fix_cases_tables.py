"""Tables and cells that do not exist, and cells that fail."""

from fix_cases import situation, start

CELL = "va_opd-masks --tiny run=tabelle/erste --cell opd train.steps=1 eval.every=0"


def start_table(place, rest):
    """A folder with everything in order, and `vistill reproduce` in it."""
    start(place)
    place.line = f"vistill reproduce {rest}"


@situation("C140")
def a_table_is_misspelt(place):
    start_table(place, "va-opd-masks --dry-run --disk 9999")


@situation("C140")
def a_cell_of_a_table_is_misspelt(place):
    start_table(place, "va_opd-masks --dry-run --disk 9999 --cell mask_lo")


@situation("C131", FOLDER="tabelle/zweite")
def the_disk_holds_one_run_of_a_table_only(place):
    start_table(place, "va_opd-masks --dry-run --disk 150")


@situation("A102")
def a_cell_of_a_table_fails(place):
    start_table(place, f"{CELL} --cell mask_low stages.mask_low.train.memory=0.000001")


@situation("A102")
def a_cell_needs_one_that_failed(place):
    words = "train.steps=1 eval.every=0 stages.teacher.train.memory=0.000001"
    start_table(place, f"vgs-1 --tiny run=tabelle/erste --cell vgs_2b {words}")


@situation("C101", FOLDER="leer")
def a_limit_of_benchmarks_that_are_not_run(place):
    start_table(place, "va_opd-masks --tiny --cell opd train.steps=1 eval.every=0 --limit 2")
