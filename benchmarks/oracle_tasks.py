"""Score whole tasks with functions of lmms-eval and evalscope, on what task_inputs.py makes.

Runs in an environment of its own (`make oracles`), without vistill. Writes scores, and one
character per reply (1 correct, 0 wrong), to benchmarks/results/oracle_tasks.json.
"""

import importlib.metadata
import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import task_inputs
from oracles_imports import Empty, load, put_empty_modules

OUT = Path(__file__).parent / "results" / "oracle_tasks.json"
EMPTY = (
    "mathvista wemath hallusion_bench ocrbench mathvision blink vlmsareblind chartqa vstar_bench"
    " mmvp cv_bench mmstar VisualPuzzles"
)


def put_modules():
    """Register empty packages, a logger, and no template files."""
    put_empty_modules()
    del sys.modules["pandas"]  # We-Math's tables are real ones
    for name in (
        *(f"lmms_eval.tasks.{task}" for task in EMPTY.split()),
        "PIL",
        "openai",
        "requests",
    ):
        sys.modules[name] = Empty(name)
    sys.modules["loguru"] = ModuleType("loguru")
    sys.modules["loguru"].logger = logging.getLogger("oracle")
    # the first package of that name; its successor, which is installed, has the same function
    sys.modules["latex2sympy2"] = load("latex2sympy2_extended")
    config = dict[str, object]
    sys.modules["lmms_eval.llm_judge"] = Empty(
        "lmms_eval.llm_judge", ServerConfig=config, get_server=config
    )
    put_evalscope()
    template = ModuleType("lmms_eval.tasks._task_utils.default_template_yaml")
    template.load_default_template_yaml = lambda _: {}
    sys.modules[template.__name__] = template


def put_evalscope():
    """Register the little of evalscope that its adapter of MathVerse is a class of."""

    class Adapter:
        def match_score(self, reply, answer, gold, state):
            """The metric `acc` with `numeric`."""
            compare = load("evalscope.metrics.math.parser").compare_answers
            return SimpleNamespace(value={"accuracy": compare(answer, gold).matched})

    sys.modules["evalscope.api.benchmark"] = Empty(
        "evalscope.api.benchmark", BenchmarkMeta=dict[str, object], VisionLanguageAdapter=Adapter
    )
    sys.modules["evalscope.api.metric"].Score = SimpleNamespace
    sys.modules["evalscope.api.registry"] = Empty(
        "evalscope.api.registry", register_benchmark=lambda meta: lambda adapter: adapter
    )
    for name in ("api.dataset", "api.evaluator", "api.messages", "constants", "utils.logger"):
        sys.modules[f"evalscope.{name}"] = Empty(f"evalscope.{name}")
    for name in ("utils", "utils.io_utils"):
        sys.modules[f"evalscope.{name}"] = Empty(f"evalscope.{name}")
    sys.modules["evalscope.utils.logger"].get_logger = logging.getLogger
    for name in ("Tags", "ScoringPolicy"):
        setattr(sys.modules["evalscope.constants"], name, Empty(name))
    for name in ("benchmarks", "benchmarks.math_verse"):
        sys.modules[f"evalscope.{name}"] = Empty(f"evalscope.{name}")


def module(task, name="utils"):
    """A module of a task of lmms-eval."""
    return load(f"lmms_eval.tasks.{task}.{name}")


def share(values):
    """The mean of verdicts."""
    return sum(values) / len(values)


def score_wemath(triples):
    """`calculate_metrics`, on letters read by `extract_mcq_answer`; the counts of groups."""
    import pandas

    read = load("lmms_eval.tasks._task_utils.mcq_extract").extract_mcq_answer
    own = module("wemath", "wemath_utils")
    right = [read(r, choices=list("ABCDEFG")) == d["answer"] for _, d, r in triples]
    rows = [{**d, "joker": ok} for (_, d, _), ok in zip(triples, right, strict=True)]
    data = pandas.DataFrame(rows)
    parts = [data[data["key"].str.contains(f"{n}steps")].copy() for n in (2, 3)]
    tables = [own.process_steps_data(part, n) for part, n in zip(parts, (2, 3), strict=True)]
    groups = sum(map(len, tables))
    counts, _ = own.compute_final_scores(own.calculate_metrics(*tables), total_count=groups)
    printed = own.update_main_results_df(counts, dict.fromkeys(RATES, ""))
    lost = counts["InsufficientKnowledge"] + 0.5 * counts["InadequateGeneralization"]
    scores = {
        name: (groups - lost - counts[f"RoteMemorization_{name}"]) / groups
        for name in ("strict", "loose")
    }
    whole = {
        f"of_525_{n}": float(printed[f"Score ({n.title()})"].rstrip("%")) / 100 for n in scores
    }
    return {**scores, **whole}, right


RATES = (
    "InsufficientKnowledge_rate",
    "InadequateGeneralization_rate",
    "CompleteMastery_loose_rate",
    "CompleteMastery_strict_rate",
    "RoteMemorization_loose_rate",
    "RoteMemorization_strict_rate",
)


def score_mathverse(triples):
    """evalscope's `MathVerseAdapter`: `extract_answer` and `match_score`, without its judge."""
    adapter = load("evalscope.benchmarks.math_verse.math_verse_adapter").MathVerseAdapter
    own = object.__new__(adapter)
    unreadable = load("evalscope.metrics.math.contracts").InvalidMathReference
    right = []
    for _, row, reply in triples:
        state = SimpleNamespace(metadata={"question_type": row["question_type"]})
        answer = own.extract_answer(reply, state)
        try:
            score = own.match_score(reply, answer, row["answer"], state)
        except unreadable:
            right.append(0.0)
        else:
            right.append(float(score.value["accuracy"]))
    versions = [row["problem_version"] for _, row, _ in triples]
    scores = {
        name.lower().replace(" ", "_"): share(
            [one for one, version in zip(right, versions, strict=True) if version == name]
        )
        for name in sorted(set(versions))
    }
    five = [one for one, version in zip(right, versions, strict=True) if version != "Text Only"]
    return {"overall": share(five), **scores}, right


def score_mathvista(triples):
    """`mathvista_process_results`; what a reply states is what its language model extracts."""
    own = module("mathvista")
    right = []
    for _, row, reply in triples:
        own.mathvista_evaluator.get_chat_response = lambda *_, _row=row, **__: _row.get(
            "stated", ""
        )
        result = own.mathvista_process_results(
            {**row, "precision": int(row["precision"] or 0)}, [reply]
        )
        right.append(float(result["llm_as_judge_eval"]["true_false"]))
    return {"accuracy": share(right)}, right


def score_hallusionbench(triples):
    """`hb_aggregation_result_intern`, the rule without a judge."""
    own = module("hallusion_bench", "evaluate_hb")
    results = [{**d, "model_prediction": r} for _, d, r in triples]
    scores = {
        name: own.hb_aggregation_result_intern(results, name) for name in ("aAcc", "fAcc", "qAcc")
    }
    return scores, [one["answer"] == one["gt_answer"] for one in results]


def score_ocrbench(triples):
    """`ocrbench_process_results`."""
    own = module("ocrbench")
    right = [
        own.ocrbench_process_results(d, [r])["ocrbench_accuracy"]["score"] for _, d, r in triples
    ]
    return {"accuracy": share(right)}, right


def score_mathvision(triples):
    """`mathvision_process_results`: the authors' rule."""
    own = module("mathvision")
    results = [
        own.mathvision_process_results(d, [r])["mathvision_standard_eval"] for _, d, r in triples
    ]
    right = [one["scores"][0] for one in results]
    return {"official": own.mathvision_aggregate_results_eval(results) / 100}, right


def score_blink(triples):
    """`blink_process_results`; overall is the mean of the tasks, as its group averages."""
    own = module("blink")
    results = [own.blink_process_results(d, [r])["blink_acc"] for _, d, r in triples]
    tasks = {one["sub_task"]: [] for one in results}
    for one in results:
        tasks[one["sub_task"]].append(one)
    means = {name: own.blink_aggregate_results(part) for name, part in tasks.items()}
    scores = {"accuracy": own.blink_aggregate_results(results)}
    if len(means) > 1:
        scores = {**means, "rows": scores["accuracy"]}
    return scores, [one["is_correct"] for one in results]


def score_vlms_are_blind(triples):
    """`vlmsareblind_process_results`."""
    own = module("vlmsareblind")
    results = [own.vlmsareblind_process_results(d, [r]) for _, d, r in triples]
    return {"accuracy": share([one["accuracy"] for one in results])}, [
        o["accuracy"] for o in results
    ]


def score_chartqa(triples):
    """`chartqa_process_results`."""
    own = module("chartqa")
    results = [own.chartqa_process_results(d, [r]) for _, d, r in triples]
    names = {
        "accuracy": "relaxed_overall",
        "human": "relaxed_human_split",
        "augmented": "relaxed_augmented_split",
    }
    scores = {n: share([one[k] for one in results if k in one]) for n, k in names.items()}
    return scores, [one["relaxed_overall"] for one in results]


def score_vstar(triples):
    """`vstar_process_results`."""
    own = module("vstar_bench")
    right = [own.vstar_process_results(d, [r])["vstar_overall_acc"]["score"] for _, d, r in triples]
    return {"accuracy": share(right)}, right


def score_mmvp(triples):
    """`mmvp_aggregate_results` and `mmvp_aggregate_pair_results`."""
    own = module("mmvp")
    results = [own.mmvp_process_results(d, [r])["mmvp_accuracy"] for _, d, r in triples]
    scores = {
        "rows": own.mmvp_aggregate_results(results),
        "pairs": own.mmvp_aggregate_pair_results(results),
    }
    return scores, [one["is_correct"] for one in results]


def score_cv_bench(triples):
    """`cv_bench_default_aggregate_results`."""
    own = module("cv_bench")
    results = [own.cv_bench_process_results(d, [r])["cv_bench_acc"] for _, d, r in triples]
    scores = {
        "overall": own.cv_bench_default_aggregate_results(results),
        "rows": own.cv_bench_aggregate_results(results),
    }
    return scores, [one["is_correct"] for one in results]


def score_mmstar(triples):
    """`mmstar_aggregate_results`: the mean over the second categories."""
    own = module("mmstar")
    results = [own.mmstar_process_results(d, [r])["average"] for _, d, r in triples]
    right = [one["score"] for one in results]
    return {
        "accuracy": share(right),
        "mean_of_categories": own.mmstar_aggregate_results(results),
    }, right


def score_visualpuzzles(triples):
    """`VisualPuzzles_process_result`; its random choices count as wrong."""
    own = module("VisualPuzzles")
    own.random = SimpleNamespace(choice=lambda _: "-")
    own.print = lambda *_: None
    right = [own.VisualPuzzles_process_result(d, [r])["exact_match"] for _, d, r in triples]
    return {"accuracy": share(right)}, right


SCORERS = {
    "wemath": score_wemath,
    "mathverse": score_mathverse,
    "mathvista": score_mathvista,
    "hallusionbench": score_hallusionbench,
    "ocrbench": score_ocrbench,
    "mathvision_testmini": score_mathvision,
    "blink_jigsaw": score_blink,
    "vlms_are_blind": score_vlms_are_blind,
    "blink": score_blink,
    "chartqa": score_chartqa,
    "vstar": score_vstar,
    "mmvp": score_mmvp,
    "cv_bench": score_cv_bench,
    "mmstar": score_mmstar,
    "visualpuzzles": score_visualpuzzles,
}


def main():
    """Score every task and write the file."""
    put_modules()
    tasks = {}
    for name in task_inputs.TASKS:
        triples = task_inputs.inputs(name)
        scores, right = SCORERS[name](triples)
        verdicts = "".join("1" if one else "0" for one in right)
        tasks[name] = {
            "rows": len(triples),
            "real": name in task_inputs.REAL,
            "inputs": task_inputs.digest(triples),
            "function": SCORERS[name].__doc__,
            "scores": scores,
            "verdicts": verdicts,
        }
        print(name, len(triples), scores, flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("lmms_eval", "evalscope")}
    record = {**versions, "tasks": tasks}
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
