"""Check the results of a demo run: `python tests/check_demo.py RUN`."""

import json
import sys
from pathlib import Path


def main(run):
    base = None
    for arm in ("opd", "va_opd"):
        folder = run / arm
        evaluations = [
            json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()
        ]
        first, last = evaluations[0], evaluations[-1]
        assert first["step"] == 0
        assert last["rows"] >= 1024, last["rows"]
        assert json.loads((folder / "result.json").read_text())["finished"]
        assert last["accuracy"] > first["accuracy"] + 0.1, "the student did not learn"
        assert last["gap/pixelated"] > 0.1, "the student does not use the image"
        assert last["va/top10_share"] > 0.85, "visual advantage has no heavy tail"
        base = base or first
        assert first == base, "the arms did not start from the same student and questions"
    report = (run / "report.html").read_text()
    assert len(report) < 3_000_000
    assert "<script" not in report
    print("demo checked:", json.dumps(json.loads((run / "cost.json").read_text())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
