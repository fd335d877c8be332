"""Samples without a response: counted, kept in the log with code and reason, asked again by class.

A line `{"failure": {row, content, mode, sample, code, what}}` stands in the log where a sample
would. A later sample of the same key takes its place.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from vistill.errors import CATALOGUE, ConfigError, DataError, VistillError, closest
from vistill.evaluation.benchmarks.sample_log import FAILURE, check_log, read_samples
from vistill.runs.storage import append_line, read_lines
from vistill.types import Prompt

#: Errors of an engine that belong to one prompt; so does every error of its data.
OF_ONE_SAMPLE = ("R403", "R413", "R501", "C104")
ALL = "all"
Key = tuple[str, str, int]


def is_of_one_sample(error: VistillError) -> bool:
    """Whether other samples of the same call can still have a response."""
    return isinstance(error, DataError) or error.code in OF_ONE_SAMPLE


def failures_of(
    prompt: Prompt, samples: Iterable[int], mode: str, error: VistillError
) -> list[dict[str, Any]]:
    """The records of the samples of a prompt that has no response."""
    common = {"row": prompt.id, "content": prompt.content, "mode": mode}
    what = {"code": error.code, "what": error.what[:300]}
    return [{**common, "sample": sample, **what} for sample in samples]


def write_failures(log: Path, records: list[dict[str, Any]]) -> None:
    """Move records to the log."""
    while records:
        append_line(log, {FAILURE: records.pop(0)})


def read_failures(log: Path) -> dict[Key, dict[str, Any]]:
    """The failures of a log that no later response replaced, by row, mode and sample."""
    check_log(log)
    lines = (record[FAILURE] for record in read_lines(log) if FAILURE in record)
    failures = {(one["row"], one["mode"], one["sample"]): one for one in lines}
    if failures:
        for sample in read_samples(log):
            failures.pop(sample.key, None)
    return failures


def kept_failures(
    log: Path, contents: Mapping[str, str], retry: Collection[str]
) -> dict[Key, dict[str, Any]]:
    """The failures that are not asked again.

    Args:
        log: of samples.
        contents: by row the hash of its question and pictures; a row that changed is asked again.
        retry: codes that are asked again.
    """
    return {
        key: one
        for key, one in read_failures(log).items()
        if one["code"] not in retry and contents.get(one["row"]) == one["content"]
    }


def count_failures(
    failures: Iterable[Mapping[str, Any]], counts: Mapping[str, int], rows: Collection[str]
) -> Counter[str]:
    """Failures by code, of the rows and samples that were asked for."""
    return Counter(
        one["code"]
        for one in failures
        if one["row"] in rows and one["sample"] < counts.get(one["mode"], 0)
    )


def parse_codes(text: str) -> frozenset[str]:
    """The codes of `--retry-errors`: `all`, or codes with commas.

    Raises:
        ConfigError: C105, there is no such code.
    """
    if text == ALL:
        return frozenset(CATALOGUE)
    codes = [code.strip().upper() for code in text.split(",") if code.strip()]
    for code in codes:
        if code not in CATALOGUE:
            near = next(iter(closest(code, CATALOGUE)), "R431")
            right = [near if one == code else one for one in codes]
            raise ConfigError(
                "C105",
                f"there is no error code {code!r:.20}",
                why="--retry-errors takes `all` or codes with commas; results.json counts them",
                fix=f"--retry-errors {','.join(dict.fromkeys(right))}",
            )
    return frozenset(codes)
