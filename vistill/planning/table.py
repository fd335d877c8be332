"""A plan as lines of text and as plain values. Needs no torch."""

from collections.abc import Sequence
from typing import Any

from vistill.planning.benchmarks import planned_benchmarks
from vistill.planning.host_bytes import host_bytes
from vistill.planning.memory import GIB
from vistill.planning.run_plan import RunPlan
from vistill.planning.shapes import ModelShape

#: Kinds of bytes in the order of the table.
KINDS = (
    "weights", "gradients", "moments", "teacher", "reference and EMA", "weight copies",
    "held activations", "copy for writing", "rollout cache", "scored states", "logits tile",
    "head gradient", "rounded head", "working memory",
)  # fmt: skip
#: Share of the memory above which a plan that fits is called tight.
TIGHT = 0.93
ESTIMATE = (
    "Seconds are an estimate: {reading:.2f} (score) and {learning:.2f} (learn) of the GPU's"
    " {peak:g} TFLOP/s ({basis}); for each decoded position the time measured on an H100."
)


def plan_dict(plan: RunPlan) -> dict[str, Any]:
    """The plan as plain values: bytes, operations, seconds."""
    cost, memory, work = plan.cost, plan.memory, plan.work
    models = models_of(plan)
    return {
        "run": plan.recipe.run,
        "method": plan.recipe.method,
        "gpu": {"name": plan.gpu.name, "gib": plan.gpu.memory_gib, "number": plan.gpus},
        "fits": plan.fits,
        "fits_on": plan.fitting_gpus(),
        "models": {role: model_dict(shape) for role, shape in models.items() if shape},
        "trained": memory.trained,
        "capacity": memory.capacity,
        "phases": {
            p.name: {"total": p.total, "kinds": p.kinds, "note": p.note} for p in plan.phases
        },
        "host": host_bytes(memory),
        "lengths": {
            "prompt": work.prompt_tokens,
            "image": work.image_tokens,
            "response_mean": work.response_tokens,
            "response_longest": work.longest_response,
        },
        "passes": {
            p.name: {
                "prompt_tokens": p.prompt_tokens,
                "response_tokens": p.response_tokens,
                "flops": p.flops,
            }
            for p in cost.passes()
        },
        "rows": plan.rows,
        "sets": {name: plan.rows_of_set(name) for name in plan.recipe.data.sets},
        "shares": plan.shares_of_sets(),
        "steps": cost.steps,
        "seconds_of_step": cost.step_seconds(),
        "seconds": cost.total_seconds(),
        "money": cost.money(),
        "disk": cost.disk_bytes(),
        "benchmarks": {one.name: vars(one) for one in planned_benchmarks(plan.recipe.eval)},
        "seconds_of_benchmarks": cost.benchmark_seconds(),
        "evaluations": cost.evaluations,
        "settings": plan.smaller_rows(),
    }


def models_of(plan: RunPlan) -> dict[str, ModelShape | None]:
    """The shapes by role; several teachers by `teachers.NAME`."""
    several = {f"teachers.{name}": shape for name, shape in plan.teachers.items()}
    return {"student": plan.student, **(several or {"teacher": plan.teacher})}


def model_dict(shape: ModelShape) -> dict[str, Any]:
    """The shape of a model."""
    parts = shape.parameters
    return {
        "name": shape.name,
        "source": shape.source,
        "date": shape.date,
        "confirmed": shape.is_confirmed,
        "parameters": {**vars(parts), "all": parts.total},
    }


def format_plan(plan: RunPlan, name: str) -> str:
    """The plan as a table."""
    used = plan.peak.total / plan.memory.capacity
    fits = f"fits, tightly ({used:.0%} used)" if used > TIGHT else "fits"
    verdict = fits if plan.fits else "does NOT fit"
    gpu = f"one {plan.gpu.name} ({plan.gpu.memory_gib:g} GiB)"
    lines = [
        f"{name}, {plan.recipe.method} on {gpu}: {verdict}",
        "",
        *model_lines(plan),
        "",
        *phase_lines(plan),
        "",
        *pass_lines(plan),
        "",
        *run_lines(plan),
    ]
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def model_lines(plan: RunPlan) -> list[str]:
    """Parameters by part."""
    rows = [["million parameters", "vision", "projector", "language", "head", "all"]]
    notes = []
    for role, shape in models_of(plan).items():
        if shape is None:
            continue
        parts = shape.parameters
        head = "tied" if shape.is_tied else millions(parts.head)
        numbers = [parts.vision, parts.projector, parts.language]
        cells = [millions(n) for n in numbers]
        rows.append([f"{role} {shape.name}", *cells, head, millions(parts.total)])
        if not shape.is_confirmed:
            notes.append(f"{shape.name}: {shape.source}")
    return [*columns(rows), f"trained: {millions(plan.memory.trained)} million", *notes]


def millions(number: int) -> str:
    """A number in millions."""
    return f"{number / 1e6:,.{1 if number >= 1e7 else 3}f}"


def phase_lines(plan: RunPlan) -> list[str]:
    """GiB by kind and phase."""
    phases = plan.phases
    name, unit = ("GiB", GIB) if plan.peak.total >= GIB else ("MiB", GIB / 1024)
    rows = [[f"{name} on the GPU", *(p.name for p in phases)]]
    for kind in KINDS:
        values = [p.kinds.get(kind, 0.0) for p in phases]
        if any(values):
            rows.append([kind, *(f"{v / unit:.2f}" if v else "-" for v in values)])
    rows.append(["all", *(f"{p.total / unit:.2f}" for p in phases)])
    notes = [f"{p.name}: {p.note}" for p in phases if p.note]
    host = {kind: size for kind, size in host_bytes(plan.memory).items() if size}
    on_host = ", ".join(f"{kind} {size / unit:.2f}" for kind, size in host.items())
    free = f"of {plan.memory.capacity / GIB:.1f} GiB that tensors can have"
    return [
        *columns(rows),
        free,
        *notes,
        *([f"{name} of host memory: {on_host}"] if on_host else []),
    ]


def pass_lines(plan: RunPlan) -> list[str]:
    """Tokens, operations and seconds of a step."""
    work, cost = plan.work, plan.cost
    rows = [["of a step", "prompt tokens", "response tokens", "TFLOP"]]
    rows += [
        [p.name, f"{p.prompt_tokens:,.0f}", f"{p.response_tokens:,.0f}", f"{p.flops / 1e12:,.1f}"]
        for p in cost.passes()
    ]
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in cost.step_seconds().items())
    return [
        *columns(rows),
        f"assumed: {work.prompt_tokens:,} tokens per prompt, {work.response_tokens:,} per response"
        f" (the longest {work.longest_response:,}; memory is for the longest)",
        f"seconds of a step, estimated: {seconds}",
    ]


def set_lines(plan: RunPlan) -> list[str]:
    """Rows and share of the prompts of each data set."""
    names, shares = sorted(plan.recipe.data.sets), plan.shares_of_sets() or {}
    if not names:
        return []
    parts = []
    for name in names:
        rows = plan.rows_of_set(name)
        count = "rows not known" if rows is None else f"{rows:,} rows"
        share = f", {shares[name]:.0%} of the prompts" if name in shares else ""
        parts.append(f"{name} {count}{share}")
    return [f"data sets: {'; '.join(parts)}"]


def benchmark_lines(plan: RunPlan) -> list[str]:
    """Responses, tokens and hours of `eval.tasks`, of one evaluation and of the run."""
    planned, cost = planned_benchmarks(plan.recipe.eval), plan.cost
    if not planned:
        return []
    names = "; ".join(f"{one.name} {one.responses:,} on {one.rows:,} rows" for one in planned)
    responses = sum(one.responses for one in planned)
    mean = min(plan.work.response_tokens, planned[0].limit)
    times = cost.evaluations
    lines = [f"benchmarks of an evaluation, responses at most: {names}"]
    for count, what in ((1, "of an evaluation"), (times, f"of {times} evaluations")):
        if count:
            hours = count * cost.benchmark_seconds() / 3600
            lines.append(
                f"benchmarks {what}: {count * responses:,} responses,"
                f" {count * responses * mean:,.0f} tokens, {hours:,.2f} hours"
            )
    return lines


def run_lines(plan: RunPlan) -> list[str]:
    """Steps, hours, money, disk, and what else to know."""
    cost, seconds = plan.cost, plan.cost.total_seconds()
    lines = [*set_lines(plan), *benchmark_lines(plan)]
    if seconds is None:
        problem = plan.sizes.rows_problem or "the data is not on this machine"
        lines.append(f"run: the number of rows is not known, {problem}: --rows N")
    else:
        hours = {name: value / 3600 for name, value in seconds.items()}
        parts = ", ".join(f"{name} {value:,.1f}" for name, value in hours.items())
        lines.append(f"run: {cost.steps:,} steps, {sum(hours.values()):,.1f} hours ({parts})")
    money = cost.money()
    if money is not None:
        lines.append(f"money: {money:,.2f} at {cost.price:g} per GPU and hour")
    if plan.gpus > 1:
        lines.append(
            f"a run uses one GPU; the other {plan.gpus - 1} can train other arms or seeds,"
            " and are paid for"
        )
    lines.append(f"disk: {cost.disk_needs().describe()}")
    lines.append(
        f"fits as it is on: {', '.join(plan.fitting_gpus()) or 'none that the plan knows'}"
    )
    smaller = plan.smaller_rows()
    if smaller and plan.fits:
        words = " ".join(f"{key}={value}" for key, value in smaller.items())
        lines.append(f"to start with the rows that fit (same responses): {words}")
    gpu = plan.gpu
    lines.append(
        ESTIMATE.format(
            reading=gpu.reading_share,
            learning=gpu.learning_share,
            peak=gpu.peak_tflops,
            basis=gpu.measured or "assumed",
        )
    )
    return lines
