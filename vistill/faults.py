"""Named points at which a test breaks a run: `VISTILL_FAULT=save.after_manifest:kill@2`.

Without the variable they do nothing. Actions: `kill` (SIGKILL, like a power cut for this process),
`term` (SIGTERM), `raise`, `enospc` (disk full), `slow` (half a second), `hang` (an hour), `nan`
(the caller replaces its number by NaN), `oom` (out of memory). `@n` acts at the n-th visit,
`@2,5` at the second and at the fifth, `@every` at each.
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
    where, _, rest = setting.partition(":")
    action, _, visits = rest.partition("@")
    assert where in POINTS, f"{VARIABLE}: no fault point {where}"
    assert action in ACTIONS, f"{VARIABLE}: no action {action}"
    if where != point:
        return False
    _visits[point] += 1
    if visits != "every" and _visits[point] not in [
        int(number) for number in (visits or "1").split(",")
    ]:
        return False
    return run_action(action, point)


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
