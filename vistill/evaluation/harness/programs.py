"""What lmms-eval and VLMEvalKit call our benchmarks, with the pins and flags that work.

Only tasks that need no language model as judge: a missing judge does not stop these programs, it
changes the score.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HarnessTask:
    """A task of a program that runs one of our benchmarks."""

    name: str
    """The file of the task in lmms-eval, the data set in VLMEvalKit."""
    metrics: Mapping[str, str]
    """By our metric the name of theirs."""
    kind: str = ""
    """The class of the data set in VLMEvalKit."""
    is_mean: bool = False
    """Whether it averages over all samples of a question; others score the first one alone."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """Further settings of the task."""
    is_percent: bool = False
    """Whether its scores are in percent."""


@dataclass(frozen=True)
class Program:
    """A program with its environment and its tasks."""

    name: str
    package: str
    requirements: tuple[str, ...]
    variables: Mapping[str, str]
    """Of its environment."""
    tasks: Mapping[str, HarnessTask]


SCORE = {"accuracy": "acc_score"}
LMMS_EVAL = Program(
    "lmms-eval",
    "lmms-eval==0.7.3",
    (
        "lmms-eval==0.7.3",
        "transformers>=5",
        "math-verify>=0.9",
        "antlr4-python3-runtime==4.9.3",
        "decord",
        "Levenshtein",
    ),
    {"OPENAI_API_KEY": "unused"},
    {
        "wemath": HarnessTask(
            "wemath/reasoning/wemath_testmini_thinking.yaml",
            {"strict": "wemath_strict", "loose": "wemath_loose"},
        ),
        "mathvista": HarnessTask(
            "mathvista/reasoning/mathvista_testmini_cot.yaml", SCORE, is_mean=True
        ),
        "mathverse": HarnessTask(
            "mathverse/reasoning/mathverse_testmini.yaml", {"overall": "acc_score"}, is_mean=True
        ),
        "ai2d": HarnessTask("ai2d/reasoning/ai2d_reasoning.yaml", SCORE, is_mean=True),
        "mmmu": HarnessTask("mmmu/mmmu_val.yaml", {"accuracy": "mmmu_acc"}),
        "mmstar": HarnessTask("mmstar/reasoning/mmstar_reasoning.yaml", SCORE, is_mean=True),
        "ocrbench": HarnessTask(
            "ocrbench/reasoning/ocrbench_reasoning.yaml",
            {"accuracy": "ocrbench_accuracy_acc_score"},
            is_mean=True,
        ),
        "mmmu_pro": HarnessTask(
            "mmmu_pro/mmmu_pro_standard_cot.yaml",
            {"accuracy": "mmmu_acc"},
            changes={"dataset_name": "standard (4 options)"},
        ),
        "logicvista": HarnessTask(
            "logicvista/reasoning/logicvista_thinking.yaml", SCORE, is_mean=True
        ),
        "visualpuzzles": HarnessTask(
            "VisualPuzzles/VisualPuzzles_cot.yaml", {"accuracy": "exact_match"}
        ),
        "mathvision": HarnessTask(
            "mathvision/reasoning/mathvision_reason_test.yaml", SCORE, is_mean=True
        ),
        "mathvision_testmini": HarnessTask(
            "mathvision/reasoning/mathvision_reason_testmini.yaml", SCORE, is_mean=True
        ),
        "vlms_are_blind": HarnessTask("vlmsareblind/vlmsareblind.yaml", {"accuracy": "accuracy"}),
        "chartqa": HarnessTask(
            "chartqa/chartqa.yaml",
            {
                "accuracy": "relaxed_overall",
                "human": "relaxed_human_split",
                "augmented": "relaxed_augmented_split",
            },
        ),
        "vstar": HarnessTask(
            "vstar_bench/reasoning/vstar_bench_reasoning.yaml",
            {"accuracy": "vstar_overall_acc_score"},
            is_mean=True,
        ),
        "blink_jigsaw": HarnessTask("blink/blink_jigsaw.yaml", {"accuracy": "blink_acc"}),
        "mmvp": HarnessTask(
            "mmvp/mmvp.yaml", {"rows": "mmvp_accuracy", "pairs": "mmvp_pair_accuracy"}
        ),
    },
)
OVERALL = {"accuracy": "Overall"}
VLMEVALKIT = Program(
    "vlmevalkit",
    "ms-vlmeval==0.0.20",
    ("ms-vlmeval==0.0.20", "pandas<3", "rouge-score"),
    {},
    {
        "wemath": HarnessTask(
            "WeMath", {"strict": "Score (Strict)", "loose": "Score (Loose)"}, "WeMath"
        ),
        "hallusionbench": HarnessTask(
            "HallusionBench",
            {name: name for name in ("aAcc", "fAcc", "qAcc")},
            "ImageYORNDataset",
            is_percent=True,
        ),
        "ai2d": HarnessTask("AI2D_TEST", OVERALL, "ImageMCQDataset"),
        "mmmu": HarnessTask("MMMU_DEV_VAL", OVERALL, "MMMUDataset"),
        "mmstar": HarnessTask("MMStar", OVERALL, "ImageMCQDataset"),
        "ocrbench": HarnessTask(
            "OCRBench", {"accuracy": "Final Score Norm"}, "OCRBench", is_percent=True
        ),
        "chartqa": HarnessTask("ChartQA_TEST", OVERALL, "ImageVQADataset", is_percent=True),
        "blink": HarnessTask("BLINK", {"rows": "Overall"}, "ImageMCQDataset"),
    },
)
PROGRAMS = {program.name: program for program in (LMMS_EVAL, VLMEVALKIT)}
