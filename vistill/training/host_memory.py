"""Free memory of the host: of the system, or of the container if it has less."""

from contextlib import suppress
from pathlib import Path

#: Limits of the container that a process runs in.
CGROUP = Path("/sys/fs/cgroup")


def free_host_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> float:
    """Free bytes; infinite where the system does not tell."""
    free = float("inf")
    with suppress(OSError, KeyError, ValueError):
        free = 1024.0 * int(read_table(meminfo)["MemAvailable:"])
    with suppress(OSError, KeyError, ValueError):
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        # pages of files that the system gives back when memory is needed
        cached = int(read_table(cgroup / "memory.stat")["inactive_file"])
        free = min(free, float(max(0, limit - used + cached)))
    return free


def read_table(path: Path) -> dict[str, str]:
    """Names and values of a file with one pair per line."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: words[1] for words in lines if len(words) > 1}
