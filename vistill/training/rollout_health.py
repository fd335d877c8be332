"""Responses that teach little are warned about once; a student that never ends a response stops the run (R401)."""

from vistill.errors import RolloutError
from vistill.rollouts.settings import RolloutSettings
from vistill.training.run_state import RunState
from vistill.training.step import StepResult

#: Share of cut-off responses that is worth a warning, and steps in a row with nothing else that stop a run.
MUCH_TRUNCATED, MAX_ALL_TRUNCATED = 0.2, 3


def rollout_warnings(
    rollout: RolloutSettings, state: RunState, result: StepResult, run: str
) -> list[str]:
    """Warnings about this step's responses that were not given before.

    Raises:
        RolloutError: R401, every response of several steps in a row was cut off.
    """
    truncated = result.metrics["rollout/truncated_share"]
    several = [g for g in result.groups if len(g.rollouts) > 1]
    identical = bool(several) and all(len({r.ids for r in g.rollouts}) == 1 for g in several)
    state.all_truncated_in_a_row = state.all_truncated_in_a_row + 1 if truncated == 1.0 else 0
    warnings = {
        "truncated": (
            truncated >= MUCH_TRUNCATED,
            f"{truncated:.0%} of the responses were cut off: rollout.max_new_tokens={rollout.max_new_tokens}",
        ),
        "identical": (
            identical,
            "all siblings of every prompt are the same: what compares them has nothing to compare",
        ),
        "blind": (
            result.metrics.get("va/zero_share") == 1.0,
            "no token of this step has visual advantage: the picture raises nothing the teacher says",
        ),
    }
    new = [name for name, (holds, _) in warnings.items() if holds and name not in state.warned]
    state.warned += new
    if state.all_truncated_in_a_row >= MAX_ALL_TRUNCATED and rollout.all_truncated == "stop":
        raise always_truncated_error(rollout, state, run)
    return [warnings[name][1] for name in new]


def always_truncated_error(rollout: RolloutSettings, state: RunState, run: str) -> RolloutError:
    """R401."""
    return RolloutError(
        "R401",
        f"every response of {state.all_truncated_in_a_row} steps in a row was cut off at the length limit",
        where=f"step {state.step}",
        why="the student never ends a response by itself; what it would say at the end is never learnt",
        fix=f"rollout.max_new_tokens={2 * rollout.max_new_tokens} run={run}-2",
        note="short responses on purpose: rollout.all_truncated=go_on",
    )
