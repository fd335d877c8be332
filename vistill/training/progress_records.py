"""The records of steps and evaluations that a progress callback receives (docs/overview.md).

They are shown, never stored. What is left of a run is in them, so that a display can estimate its
time: steps, responses of evaluations, saves.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vistill.evaluation.responses import pick_response
from vistill.evaluation.runner import EvalResult, num_responses
from vistill.training.plan import Plan


def step_record(
    plan: Plan, step: int, metrics: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """The record of a step: its metrics and seconds, and what is left after it."""
    between, last = steps_due(step, plan.evaluation.every, plan.num_steps)
    evaluations = between * responses_of_evaluation(plan, None)
    saves, _ = steps_due(step, plan.save.every, plan.num_steps)
    return {
        "step": step,
        "steps": plan.num_steps,
        **metrics,
        "seconds": seconds,
        "evaluation_responses_left": evaluations + responses_of_evaluation(plan, last),
        "saves_left": saves + 1,
    }


def evaluation_record(plan: Plan, step: int, result: EvalResult) -> dict[str, Any]:
    """The record of an evaluation: its summary, and one response with its verdict."""
    return {
        "step": step,
        "steps": plan.num_steps,
        **{f"eval/{name}": value for name, value in result.summary.items()},
        "evaluation_responses": responses_of_evaluation(plan, step),
        "response": pick_response(result.samples, plan.seed, step),
    }


def steps_due(step: int, every: int, last: int) -> tuple[int, int]:
    """How many steps before the last one are due after a step or at it, and the last step.

    At every due step something is done after the record of the step (evaluate, save).
    """
    return (len(range(step + -step % every, last, every)) if every > 0 else 0), last


def responses_of_evaluation(plan: Plan, step: int | None) -> int:
    """About how many responses the evaluation of a step writes; None is a step in between."""
    settings = plan.evaluation
    of_benchmarks = sum(part.num_responses for part in plan.benchmarks)
    if not (plan.eval_prompts or of_benchmarks) or settings.every <= 0:
        return 0
    if step not in (0, plan.num_steps):
        return num_responses(settings, len(plan.eval_prompts)) + of_benchmarks
    final = replace(settings, limit=settings.final_limit)
    return num_responses(final, len(plan.eval_prompts), len(plan.diagrams)) + of_benchmarks
