"""Named points at which a test may break a run: `VISTILL_FAULT=save.after_manifest:kill@2`. Unset, they do nothing.

Actions: `kill` (SIGKILL, like a power cut for this process), `term` (SIGTERM), `raise`, `enospc` (the disk is full),
`slow` (half a second), `hang` (an hour), `nan` (the caller spoils its number), `oom` (out of memory).
`@n` waits for the n-th visit.
"""

import errno
import os
import signal
import time
from collections import Counter

POINTS = (
    "rollout.begin",
    "score.begin",
    "learn.part",
    "learn.loss",
    "learn.before_update",
    "learn.after_update",
    "log.before_metrics",
    "log.after_metrics",
    "save.begin",
    "save.after_weights",
    "save.after_files",
    "save.after_manifest",
    "save.after_rename",
    "save.after_retention",
    "remove.after_rename",
    "evaluate.begin",
    "evaluate.before_log",
    "report.begin",
)
ACTIONS = ("kill", "term", "raise", "enospc", "slow", "hang", "nan", "oom")
VARIABLE = "VISTILL_FAULT"
_visits: Counter[str] = Counter()


def fault(point: str) -> bool:
    """Do what the environment asks for at this point.

    Returns:
        Whether the caller should spoil its number (`nan`).
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return False
    assert point in POINTS, f"no fault point is called {point}"
    where, _, rest = asked.partition(":")
    action, _, number = rest.partition("@")
    assert where in POINTS, f"{VARIABLE} names no fault point: {where}"
    assert action in ACTIONS, f"{VARIABLE} names no action: {action}"
    if where != point:
        return False
    _visits[point] += 1
    if _visits[point] != int(number or 1):
        return False
    return run_action(action, point)


def run_action(action: str, point: str) -> bool:
    """One action."""
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
    """Start counting again, for tests in one process."""
    _visits.clear()
