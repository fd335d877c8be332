"""The one way from settings to a run, for `train`, `distill`, `check`, `replay` and `eval`.

The same recipe gives the same run, whichever command asks: the same checks in the same order, the same fingerprint,
the same run folder. The checks are a list with names (`START_CHECKS`); `vistill check` prints what each of them saw.
"""

from collections.abc import Mapping, Sequence

from vistill.batch import Objective
from vistill.errors import ConfigError
from vistill.objectives import METHODS
from vistill.runs.folder import RunFolder
from vistill.training.checks.check import CheckResult, Purpose, StartCheck, run_checks
from vistill.training.checks.data import DATA_CHECKS
from vistill.training.checks.method import METHOD_CHECK, RUN_CHECKS
from vistill.training.checks.models import MODEL_CHECKS
from vistill.training.interrupt import Interrupt, Interrupted, preempted_error
from vistill.training.plan import Plan
from vistill.training.recipe import Recipe
from vistill.training.setup import ProvidedInputs, RunSetup

#: Everything that must hold before the first step, in order: data before models, cheap before expensive.
#: The canary is the last one; it needs the restored student, so the loop runs it (`training/canary/reader.py`).
START_CHECKS: tuple[StartCheck, ...] = (*DATA_CHECKS, METHOD_CHECK, *MODEL_CHECKS, *RUN_CHECKS)


def make_setup(
    recipe: Recipe,
    folder: RunFolder,
    purpose: Purpose = "train",
    given: ProvidedInputs | None = None,
    objective: Objective | None = None,
) -> RunSetup:
    """A setup whose checks have not run yet.

    Args:
        recipe: every setting of the run.
        folder: where it is written.
        purpose: whose checks are made.
        given: models and prompts of the caller; the recipe says where they come from otherwise.
        objective: the method; made from the recipe's method and knobs otherwise.
    """
    return RunSetup(recipe, objective or make_objective(recipe), folder, purpose, given)


def make_objective(recipe: Recipe) -> Objective:
    """The method that a recipe names (C102 where it is a class that is not part of the package)."""
    if recipe.method not in METHODS:
        raise ConfigError(
            "C102",
            f'unknown method "{recipe.method}"',
            why="a recipe names methods that come with the package; a class of your own is handed in by Python",
            fix="vistill.replay(RUN_FOLDER, objective=YOUR_OBJECTIVE)   or   method=va_opd",
        )
    return METHODS[recipe.method](**recipe.knobs)


def build(setup: RunSetup) -> Plan:
    """Make every start check and return the run as values.

    Raises:
        VistillError: a check failed.
        Preempted: a signal arrived; what the teacher wrote so far is kept.
    """
    interrupt = Interrupt()
    setup.poll = interrupt.poll
    try:
        with interrupt.listening():
            run_checks(setup, START_CHECKS)
            interrupt.poll()  # the loop's own handler knows nothing of a signal that came since the last look
            return setup.plan()
    except Interrupted as stop:
        setup.folder.event(f"stopped by {stop} before the first step")
        raise preempted_error(stop, None) from None


def run_start_checks(
    setup: RunSetup, checks: Sequence[StartCheck] = START_CHECKS
) -> list[CheckResult]:
    """What the checks of a setup saw, without a plan."""
    return run_checks(setup, checks)


def method_name(objective: Objective) -> str:
    """The name a recipe knows a method by, or `module:Class` of a class that is not part of the package."""
    kind = type(objective)
    named: Mapping[type, str] = {cls: name for name, cls in METHODS.items()}
    return named.get(kind, f"{kind.__module__}:{kind.__qualname__}")
