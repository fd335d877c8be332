"""Named points at which a test breaks a run: `VISTILL_FAULT=save.after_manifest:kill@2`.

Without the variable they do nothing. Actions: `kill` (SIGKILL, like a power cut for this process),
`term` (SIGTERM), `raise`, `enospc` (disk full), `slow` (half a second), `hang` (an hour), `nan`
(the caller replaces its number by NaN), `oom` (out of memory). `@n` acts at the n-th visit,
`@2,5` at the second and at the fifth, `@every` at each. `;` separates several settings: one thread
can be held at a point while another one is killed.
"""

import errno
import os
import signal
import time
from collections import Counter

POINTS = (
    "rollout.begin",
    "score.begin",
    "score.pass",
    "learn.probe",
    "learn.part",
    "learn.loss",
    "learn.before_update",
    "learn.after_update",
    "log.before_metrics",
    "log.after_metrics",
    "save.begin",
    "save.snapshot",
    "save.shard",
    "save.after_weights",
    "save.after_files",
    "save.after_manifest",
    "save.after_rename",
    "save.after_retention",
    "remove.after_rename",
    "evaluate.begin",
    "evaluate.attempt",
    "evaluate.before_log",
    "report.begin",
    "benchmark.after_call",
)
ACTIONS = ("kill", "term", "raise", "enospc", "slow", "hang", "nan", "oom")
VARIABLE = "VISTILL_FAULT"
_visits: Counter[str] = Counter()


def fault(point: str) -> bool:
    """Run the action that the environment sets for this point.

    Returns:
        Whether the caller must replace its number by NaN (`nan`).
    """
    setting = os.environ.get(VARIABLE)
    if not setting:
        return False
    assert point in POINTS, f"no fault point {point}"
    due = []
    for part in setting.split(";"):
        where, _, rest = part.partition(":")
        action, _, visits = rest.partition("@")
        assert where in POINTS, f"{VARIABLE}: no fault point {where}"
        assert action in ACTIONS, f"{VARIABLE}: no action {action}"
        if where == point:
            due.append((action, visits))
    if not due:
        return False
    _visits[point] += 1
    replaces = [run_action(action, point) for action, visits in due if is_due(point, visits)]
    return any(replaces)


def is_due(point: str, visits: str) -> bool:
    """Whether the current visit of a point is one of those that act."""
    return visits == "every" or _visits[point] in [int(n) for n in (visits or "1").split(",")]


def run_action(action: str, point: str) -> bool:
    """Run one action; return whether it is `nan`."""
    if action == "nan":
        return True
    if action in ("kill", "term"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGTERM)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)
    elif action == "oom":
        raise MemoryError(f"fault at {point}")
    elif action == "raise":
        raise RuntimeError(f"fault at {point}")
    elif action in ("slow", "hang"):
        time.sleep(0.5 if action == "slow" else 3600)
    return False


def reset_visits() -> None:
    """Reset the counters, for tests in one process."""
    _visits.clear()
