#!/usr/bin/env python3
"""Known holes in the tested set of packages: pip-audit, in an environment of its own, over constraints.txt.

Fails where the advisories were reached and name one of our packages. Where they cannot be reached (a machine that has a
package index and nothing else) it says so and passes: nothing was audited then, and nothing is claimed.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
VENV = REPO / ".venv" / "audit"
SECONDS = 40
NOT_AUDITED = "advisories not reachable: not audited"


def install() -> Path:
    """pip-audit at its pinned version."""
    program = VENV / "bin" / "pip-audit"
    if not program.exists():
        venv.create(VENV, with_pip=True)
        pins = REPO / "constraints-audit.txt"
        pip = [
            VENV / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run([*pip, "-c", pins, "pip-audit"], check=True)
    return program


def ask(program: Path, pins: Path) -> tuple[dict | None, str]:
    """What pip-audit found, None where it came to no end; and the last thing it said."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "audit.json"
        words = [
            program,
            "-r",
            pins,
            "--no-deps",
            "--disable-pip",
            "--progress-spinner",
            "off",
            "--timeout",
            "10",
        ]
        try:
            done = subprocess.run(
                [*words, "-f", "json", "-o", out],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None, f"no answer in {SECONDS} s"
        said = ([line for line in done.stderr.splitlines() if line.strip()] or ["nothing said"])[-1]
        return (json.loads(out.read_text()) if out.exists() and out.stat().st_size else None), said[
            :200
        ]


def verdict(found: dict | None, said: str = "") -> tuple[int, str]:
    """Exit status and a sentence. A package the service does not know counts as not audited, not as safe."""
    packages = (found or {}).get("dependencies", [])
    known = [p for p in packages if "skip_reason" not in p]
    if not known:
        why = packages[0]["skip_reason"] if packages else said
        return 0, f"{NOT_AUDITED} ({why})"
    bad = [(p, v) for p in known for v in p.get("vulns", [])]
    lines = [
        f"{p['name']} {p['version']}: {v['id']}, mended in {v.get('fix_versions') or 'no version'}"
        for p, v in bad
    ]
    lines.append(f"{len(known)} of {len(packages)} packages audited, {len(bad)} advisories")
    return (1 if bad else 0), "\n".join(lines)


if __name__ == "__main__":
    status, sentence = verdict(*ask(install(), REPO / "constraints.txt"))
    sys.stdout.write(sentence + "\n")
    sys.exit(status)
