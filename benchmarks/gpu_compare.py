"""Compare opd, va_opd and grounded_opd on one GPU, with models of 20 and 40 M parameters.

Run `python benchmarks/gpu_compare.py`. It trains a teacher and a student from nothing on procedural
diagrams, then three arms on three seeds, all processes at once on the one device, and writes one
JSON file after each stage and every 20 seconds of the runs. It takes ten minutes at most: at the
deadline everything is stopped, and a seed whose arms are not finished is compared at the last
evaluation that all of them reached. `--tiny` runs the same code at toy sizes on a CPU and measures
nothing. Exit status 0: every seed has a comparison and nothing failed.

Time, in seconds. Estimates: nothing of this was measured on a GPU.

- Start and tokenizer: 20.
- Models: 1,500 and 1,600 steps. A step alone is bound by starting its kernels: ten layers x 120
  operators, forward and backward, x 8 us, and 20 ms for batches on the host: 30 to 60 ms. Four
  processes (two rates for each kind) take turns on the device, 60 to 130 ms per step: 100 to 210.
  Pictures are drawn and encoded once, 2 ms each x 6,000 x two views: 25. Measuring: 10.
  At `MODELS_SHARE` of the budget the rest is stopped if each kind has a finished model.
- Runs: nine at once. An update writes 96 tokens x 6 layers x 60 operators (0.25 s alone), then
  scores and learns (0.15 s alone). The device's own part, 3 us an operator and 80 ms of products,
  adds up over nine: 2 s x 64 updates = 130. Five evaluations of 1,024 + 512 responses: 40. Loading
  and start checks: 30. Together 200; 300 if taking turns costs half as much again.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu import NO_DEVICE, REPO, device_facts, missing_packages, versions
from gpu_compare_design import (
    ARMS,
    READS,
    REAL,
    TOY,
    Design,
    Model,
    plan_of_runs,
    plan_words,
)

OUT = Path(__file__).parent / "results" / "gpu_compare.json"
BUDGET = 560.0
#: Seconds at the end for stopping processes and writing results.
CLOSING = 12.0
#: Share of the budget after which models that are still trained may be stopped.
MODELS_SHARE = 0.5
#: Seconds that must be left for the runs: models are stopped then at the latest.
LEAST_FOR_RUNS = 120.0


@dataclass
class Session:
    """What one call of the script has to work with."""

    args: argparse.Namespace
    design: Design
    device: str
    folder: Path
    """Models and run folders."""
    deadline: float
    """On the clock `time.monotonic`: everything is stopped then."""
    results: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        """Replace the file of results."""
        from gpu_runner import write_results

        write_results(self.args.out, self.results)

    def note(self, text: str) -> None:
        """Add a sentence that a reader of the results must know."""
        self.results["notes"].append(text)
        print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    started = time.monotonic()
    if missing := missing_packages():
        raise SystemExit(
            f"{sys.executable} lacks what vistill needs: {', '.join(missing)}.\n"
            "docs/performance.md says how to install it without a network."
        )
    sys.path.insert(0, str(REPO))  # this checkout, not an installed vistill
    paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the processes of models and runs
    import torch

    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit(NO_DEVICE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that our processes are ended
    with tempfile.TemporaryDirectory(prefix="gpu-compare-", ignore_cleanup_errors=True) as name:
        folder = args.folder or Path(name)
        os.environ.setdefault("VISTILL_CACHE", str(folder / "cache"))
        design, device = (TOY, "cpu") if args.tiny else (REAL, "cuda")
        session = Session(args, design, device, folder, started + args.budget - CLOSING)
        session.results = {"about": about(args, torch.device(device)), **plan_of(session)}
        session.save()
        good = compare(session, started)
        session.results["seconds"]["all"] = time.monotonic() - started
        session.save()
    print(f"{'toy sizes on a CPU: no measurement; ' if args.tiny else ''}written to {args.out}")
    return 0 if good else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tiny", action="store_true", help="toy sizes, on any machine: shows that the script runs"
    )
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help="default: %(default)s"
    )
    parser.add_argument(
        "--factors",
        type=lambda text: tuple(float(word) for word in text.split(",")),
        metavar="FACTOR,...",
        help="factors of the models' learning rates; the better model is taken (1,2)",
    )
    parser.add_argument("--seeds", type=int, help="default: 3")
    parser.add_argument("--pairs", type=int, default=1, help="teachers and students; default: 1")
    parser.add_argument("--at-once", type=int, help="runs at the same time; default: 9")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of runs")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="models and runs; default: removed at the end")
    return parser.parse_args(arguments)


def about(args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Versions, commit and facts about the device."""
    import torch

    from vistill import __version__

    facts = {**versions(args.budget, __version__), **device_facts(torch, device)}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    return facts


def plan_of(session: Session) -> dict[str, Any]:
    """What will be done, for the results; and empty places for what comes of it."""
    args, design = session.args, session.design
    rate, reason = plan_of_runs(design)
    return {
        "design": {
            "arms": ARMS,
            "seeds": args.seeds or design.seeds,
            "pairs": args.pairs,
            "factors": args.factors or design.factors,
            "at_once": args.at_once or design.at_once,
            "settings": [*design.settings, *args.set],
            "train.lr": rate,
            "train.lr_is": reason,
        },
        "notes": [],
        "seconds": {},
        "models": [],
        "runs": [],
        "differences": [],
        "not_finished": [],
    }


def compare(session: Session, started: float) -> bool:
    """Make the models, run the arms; whether every seed has a comparison and nothing failed."""
    print("making models", flush=True)
    models = make_models(session)
    session.results["models"] = [model.record for model in models]
    session.results["seconds"]["models"] = time.monotonic() - started
    chosen = choose_models(session, models)
    session.save()
    if chosen is None:
        return False
    print("training the arms", flush=True)
    run_arms(session, chosen)
    results = session.results
    results["seconds"]["runs"] = time.monotonic() - started - results["seconds"]["models"]
    session.save()
    show(results)
    whole = all(not row["seeds_without_a_step"] for row in results["differences"])
    return whole and not any(run["status"] == "failed" for run in results["runs"])


# Models


def make_models(session: Session) -> list[Model]:
    """Train all models at once; stop the rest once each kind has one and its time is over."""
    from gpu_compare_runs import run_until

    from vistill.report.run_data import read_json
    from vistill.studies.arms import Arm
    from vistill.studies.demo import is_complete_model

    settings, design = session.results["design"], session.design
    models = [
        Model(kind, pair, factor, session.folder / f"{kind}-{pair}-rate-{factor:g}")
        for factor in settings["factors"]
        for pair in range(settings["pairs"])
        for kind in design.sizes
    ]
    arms = []
    for model in models:
        words = plan_words(design, model.kind, model.pair, model.factor)
        options = ("--plan", json.dumps(words), "--device", session.device)
        program = ("-m", "vistill.studies.make_tiny_models", model.kind, str(model.folder))
        command = (sys.executable, *program, *options, "--rows", str(design.rows))
        arms.append(Arm(model.name, session.folder / "logs" / model.name, command=command))
        model.record = {"name": model.name, "plan": words}

    over = session.deadline - (1 - MODELS_SHARE) * session.args.budget

    def is_enough() -> bool:
        if time.monotonic() < over:
            return False
        complete = {(m.kind, m.pair) for m in models if (m.folder / "CARD.json").is_file()}
        return len(complete) == len(design.sizes) * settings["pairs"]

    least = 0.0 if session.args.tiny else LEAST_FOR_RUNS
    at_once = 2 if session.args.tiny else len(arms)
    outcomes = run_until(arms, at_once, session.deadline - least, is_enough)
    for model, arm in zip(models, arms, strict=True):
        log = arm.folder / "console.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        model.record |= {**asdict(outcomes[model.name]), "log": lines[-40:]}
        if is_complete_model(model.folder):
            card = read_json(model.folder / "CARD.json")
            keys = ("measured", "parameters", "wall_seconds", "cpu_seconds", "sha256")
            model.record |= {key: card[key] for key in keys}
    return models


def choose_models(session: Session, models: Sequence[Model]) -> dict[tuple[str, int], Model] | None:
    """Of each kind and pair the model with the best greedy accuracy, the lower rate on a tie.

    None, with a note, if one is missing. The results say whether the teacher reads and whether the
    student is worse: neither is taken for granted.
    """
    chosen: dict[tuple[str, int], Model] = {}
    for model in sorted(models, key=lambda m: (-m.greedy, m.factor)):
        if model.greedy >= 0:
            chosen.setdefault((model.kind, model.pair), model)
        else:
            session.results["not_finished"].append(model.name)
    session.results["chosen"] = [model.name for model in chosen.values()]
    for kind, pair in sorted({(model.kind, model.pair) for model in models} - chosen.keys()):
        session.note(f"No {kind} {pair} was finished: nothing can be compared.")
        return None
    for pair in range(session.results["design"]["pairs"]):
        teacher, student = (
            chosen[kind, pair].record["measured"] for kind in ("teacher", "student")
        )
        words = "reads" if teacher["greedy"] >= READS else "does NOT read"
        session.note(
            f"Teacher {pair} {words}: {teacher['greedy']:.3f} greedy, at least {READS} are needed."
        )
        worse = all(student[key] < teacher[key] for key in ("greedy", "sampled"))
        session.note(
            f"Student {pair} is {'' if worse else 'NOT '}worse than its teacher: "
            f"{student['greedy']:.3f} greedy, {student['sampled']:.3f} at T = 1 (teacher "
            f"{teacher['sampled']:.3f})."
        )
    return chosen


# Runs


def run_arms(session: Session, chosen: Mapping[tuple[str, int], Model]) -> None:
    """Train every arm of every seed until the deadline; store runs and differences."""
    from gpu_compare_runs import run_until, unmatched_seeds

    from vistill.studies.compare import Pairing, Study, named

    settings, runs = session.results["design"], list[tuple[dict[str, Any], Any]]()
    for seed in range(settings["seeds"]):
        pair = seed % settings["pairs"]
        kinds = ("student", "teacher")
        words = [f"{kind}.model={chosen[kind, pair].folder}" for kind in kinds]
        words += [f"{kind}.device={session.device}" for kind in kinds]
        words += [f"train.lr={settings['train.lr']!r}", *settings["settings"]]
        recipe = str(REPO / "recipes" / "compare.yaml")
        study = Study(recipe, ARMS, session.folder / "runs", tuple(words))
        pairing = Pairing(seed, pair, pair)
        names = {kind: chosen[kind, pair].name for kind in kinds}
        for arm in study.arms(pairing, {}):
            facts = {"arm": arm.name, "seed": seed, "pair": pair, **names}
            runs.append((facts, named(arm, pairing)))

    def report(outcomes: Mapping[str, Any]) -> None:
        store_runs(session.results, runs, outcomes)
        session.save()

    arms = [arm for _, arm in runs]
    report(run_until(arms, settings["at_once"], session.deadline, report=report))
    for seed in unmatched_seeds(curves_of(runs)):
        session.note(f"NOT MATCHED: the arms of seed {seed} differ before training.")


def curves_of(runs: Sequence[tuple[Mapping[str, Any], Any]]) -> dict[tuple[str, int], Any]:
    """By arm and seed the evaluations so far."""
    from gpu_compare_runs import curve_of

    return {(facts["arm"], facts["seed"]): curve_of(arm) for facts, arm in runs}


def store_runs(
    results: dict[str, Any],
    runs: Sequence[tuple[dict[str, Any], Any]],
    outcomes: Mapping[str, Any],
) -> None:
    """Store what every run measured so far, the differences, and what is not finished."""
    from gpu_compare_runs import compare_runs, describe_run

    last = runs[0][1].settings.train.steps
    results["runs"] = [facts | describe_run(arm, outcomes[arm.name]) for facts, arm in runs]
    results["differences"] = compare_runs(curves_of(runs), ARMS, last)
    results["not_finished"] = [
        *(name for name in results["not_finished"] if " seed " not in name),
        *(
            f"{arm.name}: {outcomes[arm.name].status}"
            for _, arm in runs
            if outcomes[arm.name].status != "finished"
        ),
    ]


def show(results: Mapping[str, Any]) -> None:
    """Print what came of it."""
    for row in results["differences"]:
        words = ", unfinished" if row["unfinished"] else ""
        steps = ", ".join(f"{s['seed']} at step {s['step']}" for s in row["seeds"])
        values = [
            f"{name} {100 * value:+.1f} points"
            for name in ("sampled", "greedy")
            if (value := row[f"mean_{name}"]) is not None
        ]
        print(f"{row['arm']} minus {row['minus']}: {', '.join(values)} (seeds {steps}{words})")
    if results["not_finished"]:
        print(f"not finished: {', '.join(results['not_finished'])}")


if __name__ == "__main__":
    sys.exit(main())
