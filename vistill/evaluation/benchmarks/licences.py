"""Which sources of rows are for evaluation only: by the benchmarks, or by their own page."""

import re
from pathlib import Path

from vistill.data.sources import HUB, files_of
from vistill.errors import DataError
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS

#: Other copies on the hub, by benchmark.
COPIES = {
    "mathvista": ("lmms-lab/MathVista",),
    "mathverse": ("CaraJ/MathVerse-lmmseval",),
    "mmmu": ("MMMU/MMMU",),
    "hallusionbench": ("lmms-lab-encoder/HallusionBench",),
    "ai2d": ("lmms-lab-encoder/ai2d",),
    "vstar": ("lmms-lab-encoder/vstar-bench",),
}
#: No split may be trained on, whatever its name.
NO_SPLIT = ("mathvista",)
#: Splits that are for training, unless the benchmark is such a split.
TRAINING_SPLIT = re.compile(r"train|dev\b")
#: Pages of a data set in its folder.
PAGES = ("README.md", "SOURCE.md", "DATASET_CARD.md")
LONGEST_PAGE = 1 << 20
#: Sentences of a page that forbid training.
FORBIDS = re.compile(
    r"\b(?:evaluation(?: use)?|test use) only\b"
    r"|(?<!\bnot )\bonly (?:be )?(?:used )?for (?:evaluation|testing)\b"
    r"|\b(?:not|never) (?:be )?(?:used )?(?:for|as) (?:a )?training\b"
    r"|\b(?:as a )?training(?: set)?(?: on (?:it|them))? is (?:prohibited|forbidden|not allowed)\b",
    re.IGNORECASE,
)
#: `datasets--OWNER--NAME` of the hub's local cache.
CACHED = re.compile(r"^datasets--(?P<owner>[^/]+?)--(?P<name>[^/]+)$")


def reason_for_evaluation_only(source: str) -> str:
    """Why a source may not be trained on; empty if nothing says so.

    Args:
        source: as `data.train` names it.
    """
    match = HUB.match(source)
    if match is not None:
        return reason_of_hub(match["name"], match["split"] or "train")
    if "://" in source or source == "diagrams":
        return ""
    try:
        files = files_of(source)
    except DataError:
        return ""  # reading the rows reports it
    return next(filter(None, map(reason_of_file, files)), "")


def reason_of_hub(name: str, split: str) -> str:
    """The benchmark that a data set of the hub is."""
    for benchmark in BENCHMARKS.values():
        sources = [match for one in benchmark.hub_sources if (match := HUB.match(one))]
        names = {match["name"].casefold() for match in sources}
        names |= {copy.casefold() for copy in COPIES.get(benchmark.name, ())}
        if benchmark.may_train or name.casefold() not in names:
            continue
        own = {match["split"] for match in sources}
        asked = [part.partition("[")[0].strip() for part in split.split("+")]
        free = [one for one in asked if one not in own and TRAINING_SPLIT.match(one)]
        if benchmark.name in NO_SPLIT or len(free) < len(asked):
            return f"{name}[{split}] is the benchmark {benchmark.name}: {benchmark.licence}"
    return ""


def reason_of_file(file: Path) -> str:
    """The benchmark of a file in the hub's cache, or what the page next to a file says."""
    for part in file.absolute().parts:
        cached = CACHED.match(part)
        if cached is not None:
            name = f"{cached['owner']}/{cached['name']}"
            split = re.split(r"[-_.]", file.name)[0]
            reason = reason_of_hub(name, split)
            if reason:
                return reason
    for folder in (file.absolute().parent, file.absolute().parent.parent):
        pages = [folder / name for name in PAGES if (folder / name).is_file()]
        for page in pages:
            with page.open(encoding="utf-8", errors="replace") as handle:
                match = FORBIDS.search(handle.read(LONGEST_PAGE))
            if match:
                return f"{page.name} in {folder.name} says “{match[0]}”"
        if pages:
            return ""
    return ""
