#!/usr/bin/env python3
"""Known vulnerabilities in constraints.txt: run pip-audit in a separate environment.

The script fails if the advisories are reachable and name one of our packages. If they are not
reachable (a machine with a package index and nothing else) it says so and passes: nothing was
audited, and nothing is claimed.
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
    """Install pip-audit at its pinned version."""
    program = VENV / "bin" / "pip-audit"
    if not program.exists():
        venv.create(VENV, with_pip=True)
        pins = REPO / "constraints-audit.txt"
        pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "-c", pins]
        subprocess.run([*pip, *options, "pip-audit"], check=True)
    return program


def run_audit(program: Path, pins: Path) -> tuple[dict | None, str]:
    """Run pip-audit; return its results (None if it did not finish) and its last message."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "audit.json"
        command = [program, "-r", pins, "--no-deps", "--disable-pip", "--timeout", "10"]
        command += ["--progress-spinner", "off", "-f", "json", "-o", out]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return None, f"no answer in {SECONDS} s"
        messages = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        results = json.loads(out.read_text()) if out.exists() and out.stat().st_size else None
        return results, messages[-1][:200]


def verdict(results: dict | None, message: str = "") -> tuple[int, str]:
    """Return exit status and text. A package unknown to the service is not audited, not safe."""
    packages = (results or {}).get("dependencies", [])
    known = [p for p in packages if "skip_reason" not in p]
    if not known:
        why = packages[0]["skip_reason"] if packages else message
        return 0, f"{NOT_AUDITED} ({why})"
    bad = [(p, v) for p in known for v in p.get("vulns", [])]
    lines = [
        f"{p['name']} {p['version']}: {v['id']}, fixed in {v.get('fix_versions') or 'no version'}"
        for p, v in bad
    ]
    lines.append(f"{len(known)} of {len(packages)} packages audited, {len(bad)} advisories")
    return (1 if bad else 0), "\n".join(lines)


if __name__ == "__main__":
    status, text = verdict(*run_audit(install(), REPO / "constraints.txt"))
    sys.stdout.write(text + "\n")
    sys.exit(status)
