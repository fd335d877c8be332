"""Build a run from settings, for `train`, `distill`, `check`, `replay` and `eval`.

The same recipe gives the same run with every command: the same checks in the same order, the same
fingerprint, the same run folder. The checks are a list with names (`START_CHECKS`); `vistill check`
prints the result of each.
"""

from collections.abc import Sequence
from dataclasses import is_dataclass

from vistill.batch import Objective, Requirements
from vistill.errors import ConfigError
from vistill.objectives.schema import make_method
from vistill.phases import report_phases
from vistill.plugin_calls import method_call
from vistill.registry import PLUGIN_NOTE, methods, views, way_back
from vistill.runs.folder import RunFolder
from vistill.training.benchmarks import BENCHMARK_CHECK
from vistill.training.checks.check import CheckResult, Purpose, StartCheck, run_checks
from vistill.training.checks.code import CODE_CHECK, views_of
from vistill.training.checks.data import DATA_CHECKS
from vistill.training.checks.disk import DISK_CHECK
from vistill.training.checks.method import METHOD_CHECK, RUN_CHECKS
from vistill.training.checks.models import MODEL_CHECKS
from vistill.training.interrupt import Interrupt, Interrupted, preempted_error
from vistill.training.plan import Plan
from vistill.training.recipe import Recipe
from vistill.training.run_lock import read_lock
from vistill.training.setup import ProvidedInputs, RunSetup
from vistill.types import Reader

#: All checks before the first step, in order: data before models, cheap before expensive. The
#: canary comes last; it needs the restored student, so the loop runs it
#: (`training/canary/reader.py`).
START_CHECKS: tuple[StartCheck, ...] = (
    CODE_CHECK,
    *DATA_CHECKS,
    BENCHMARK_CHECK,
    METHOD_CHECK,
    *MODEL_CHECKS,
    DISK_CHECK,
    *RUN_CHECKS,
)


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
    method = make_objective(recipe) if objective is None else objective
    try:
        check_objective(method)
    except ConfigError as error:
        raise with_plugin_of_view(error, method, recipe.run) from error
    kept = read_lock(folder).get("kept", {})
    return RunSetup(recipe, method, folder, purpose, given, kept=kept)


def make_objective(recipe: Recipe) -> Objective:
    """The method that a recipe names, with its knobs.

    Raises:
        ConfigError: C102, it is unknown, for example a class that was passed in Python;
            C106, a plug-in is faulty.
    """
    if recipe.method not in methods:
        again = way_back(recipe.run, f"methods.{recipe.method}")
        fix = again or "vistill.replay(RUN_FOLDER, objective=YOUR_OBJECTIVE)   or   method=va_opd"
        raise methods.unknown(recipe.method, fix=fix)
    return make_method(recipe.method, recipe.knobs)


def with_plugin_of_view(error: ConfigError, objective: Objective, run: str) -> ConfigError:
    """C105 for a view, with the command that gives its plug-in, where the run folder says which."""
    if error.code != "C105":
        return error
    missing = [view for view in views_of(objective) if view not in views]
    again = way_back(run, f"views.{missing[0]}") if missing else ""
    if not again:
        return error
    parts = {"where": error.where, "why": error.why, "note": PLUGIN_NOTE}
    return ConfigError("C105", error.what, fix=again, **parts)


def check_objective(objective: Objective) -> Objective:
    """Check class, requirements and passes of a method before anything is loaded.

    Raises:
        ConfigError: C106 or C105, the method cannot be used.
    """
    name = type(objective).__name__
    reason = methods.objection(type(objective))
    if not reason and not is_dataclass(objective):
        reason = "it is no dataclass"
    with method_call(objective, "passes"):
        passes = () if reason else objective.passes()
    if not reason and not isinstance(objective.requirements, Requirements):
        reason = "requirements is no vistill.batch.Requirements"
    elif not reason and not any(p.gradient for p in passes):
        reason = "no pass has gradient=True, so nothing would learn"
    elif not reason and (
        wrong := [p for p in passes if p.gradient and p.reader is not Reader.STUDENT]
    ):
        reason = f"the pass {wrong[0].name} has gradient, and only the student learns"
    elif not reason and (
        wrong := [p for p in passes if p.keep not in ("hidden", "log_prob", "both")]
    ):
        keeps = f"the pass {wrong[0].name} keeps {wrong[0].keep!r}"
        reason = f"{keeps}; it can keep hidden, log_prob or both"
    if reason:
        raise ConfigError(
            "C106",
            f"{name} cannot be a method",
            where=type(objective).__module__,
            why=reason,
            fix=f"correct {name}; docs/extending.md shows a method",
        )
    for view in views_of(objective):
        views.get(view)
    return objective


def build(setup: RunSetup) -> Plan:
    """Make every start check and return the run as values.

    Raises:
        VistillError: a check failed.
        Preempted: a signal arrived; what the teacher wrote so far is kept.
    """
    interrupt = Interrupt()
    setup.poll = interrupt.poll
    try:
        with interrupt.listening(), report_phases(setup.progress):
            run_checks(setup, START_CHECKS)
            interrupt.poll()  # the handler of the loop would miss a signal since the last poll
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
    """The name that a recipe knows a method by, or `module:Class` of a class that has none."""
    kind = type(objective)
    return methods.name_of(kind) or f"{kind.__module__}:{kind.__qualname__}"
