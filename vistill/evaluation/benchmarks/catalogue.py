"""All benchmarks by name, and the suites of the papers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vistill.errors import ConfigError, VistillError, closest, quote_setting
from vistill.evaluation.benchmarks import (
    blink,
    chartqa,
    choice_sets,
    cv_bench,
    geometry3k,
    hallusionbench,
    mathverse,
    mathvision,
    mathvista,
    mmmu,
    mmvp,
    ocrbench,
    vlms_are_blind,
    vsp,
    wemath,
)
from vistill.evaluation.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        wemath.BENCHMARK,
        mathvista.BENCHMARK,
        mathverse.BENCHMARK,
        hallusionbench.BENCHMARK,
        choice_sets.AI2D,
        mmmu.BENCHMARK,
        choice_sets.MMSTAR,
        ocrbench.BENCHMARK,
        mmmu.PRO,
        choice_sets.LOGICVISTA,
        choice_sets.VISUALPUZZLES,
        mathvision.BENCHMARK,
        mathvision.TESTMINI,
        vlms_are_blind.BENCHMARK,
        vsp.BENCHMARK,
        choice_sets.VISPUZZLE,
        chartqa.BENCHMARK,
        choice_sets.VSTAR,
        blink.JIGSAW,
        blink.BENCHMARK,
        mmvp.BENCHMARK,
        choice_sets.SAT,
        cv_bench.BENCHMARK,
        geometry3k.VALIDATION,
        geometry3k.TEST,
    )
}


@dataclass(frozen=True)
class Column:
    """A column of a paper's table: a metric of a benchmark."""

    title: str
    benchmark: str
    metric: str = ""
    """By default the headline of the benchmark."""

    def metric_name(self) -> str:
        """The metric of the column."""
        return self.metric or BENCHMARKS[self.benchmark].headline


@dataclass(frozen=True)
class Suite:
    """The benchmarks of a paper under its protocol, and its averages."""

    name: str
    columns: tuple[Column, ...]
    averages: Mapping[str, tuple[str, ...]]
    """By name the titles of the columns whose unweighted mean it is."""

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks, each once."""
        return list(dict.fromkeys(column.benchmark for column in self.columns))


def titles(columns: Sequence[Column]) -> tuple[str, ...]:
    """The titles of columns."""
    return tuple(column.title for column in columns)


MATH = (
    Column("We-Math", "wemath", "mean"),
    Column("MathVista", "mathvista"),
    Column("MathVerse", "mathverse", "overall"),
)
VISUAL = (
    Column("HallusionBench", "hallusionbench", "mean"),
    Column("AI2D", "ai2d"),
    Column("MMMU", "mmmu"),
    Column("MMStar", "mmstar"),
    Column("OCRBench", "ocrbench"),
)
VGS = (
    Column("MMMU-Pro", "mmmu_pro"),
    Column("LogicVista", "logicvista"),
    Column("MathVerse VD", "mathverse", "vision_dominant"),
    Column("MathVerse VO", "mathverse", "vision_only"),
    Column("VisualPuzzles", "visualpuzzles"),
    Column("MathVision", "mathvision"),
    Column("VLMs are blind", "vlms_are_blind"),
)
VISUAL_OPSD = (
    Column("VSP", "vsp_maze", "strict"),
    Column("VisPuzzle", "vispuzzle"),
    Column("ChartQA", "chartqa"),
    Column("V*", "vstar"),
    Column("BLINK-J", "blink_jigsaw"),
    Column("MMVP", "mmvp", "rows"),
    Column("SAT", "sat"),
    Column("BLINK", "blink"),
    Column("CV-Bench", "cv_bench", "overall"),
)
SUITES = {
    suite.name: suite
    for suite in (
        Suite("va_opd", (*MATH, *VISUAL), {"Math Avg": titles(MATH), "Visual Avg": titles(VISUAL)}),
        Suite("vgs", VGS, {"Avg": titles(VGS)}),
        Suite("visual_opsd", VISUAL_OPSD, {"Avg": titles(VISUAL_OPSD)}),
    )
}


def find_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of names, each once, in order.

    Raises:
        ConfigError: C105, there is no benchmark of a name, or no name is given.
    """
    for name in names:
        if name not in BENCHMARKS:
            near = next(iter(closest(name, BENCHMARKS)), "wemath")
            right = [near if one == name else one for one in names]
            raise ConfigError(
                "C105",
                f"there is no benchmark {name!r:.40}",
                why=f"benchmarks: {', '.join(BENCHMARKS)}",
                fix=f"--tasks {','.join(dict.fromkeys(right))}",
            )
    return [BENCHMARKS[name] for name in dict.fromkeys(names)]


def find_suite(name: str) -> Suite:
    """The suite of a name.

    Raises:
        ConfigError: C105, there is none.
    """
    if name in SUITES:
        return SUITES[name]
    near = next(iter(closest(name, SUITES)), "va_opd")
    raise ConfigError(
        "C105",
        f"there is no suite {name!r:.40}",
        why=f"suites: {', '.join(SUITES)}",
        fix=f"--suite {near}",
    )


@contextmanager
def naming_settings() -> Iterator[None]:
    """Word the fix of an error about benchmarks for a recipe, which has settings, not options."""
    try:
        yield
    except VistillError as error:
        names = re.sub(
            r"--tasks (\S+)", lambda match: quote_setting("eval.tasks", f"[{match[1]}]"), error.fix
        )
        error.fix = names.replace("--data ", "eval.task_data=")
        error.args = (error.render(),)
        raise
