"""Judge samples with a language model: verdicts by content, kept on disk; failures are counted."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge, shared_judge
from vistill.answers.verdict import Verdict
from vistill.errors import ConfigError
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow
from vistill.evaluation.benchmarks.judge_prompts import NONE, WITHOUT_JUDGE, JudgePrompt, prompt_for
from vistill.evaluation.benchmarks.judge_server import NONSENSE, JudgeFailure, JudgeServer
from vistill.evaluation.benchmarks.sample_log import FORM, Sample, read_header, verdict_dict
from vistill.redaction import mask_secrets
from vistill.runs.storage import append_line, read_lines

#: Name of the file of verdicts, in the folder of the log.
CACHE = "judge.jsonl"
#: Requests at the same time, and samples that are prepared together.
THREADS, CHUNK = 8, 64
#: The server of a judge whose kept verdicts are read and that is not asked.
NOWHERE = "http://localhost"
#: Marks a verdict that is none; the value is the code.
FAILED = "failed"


class JudgeCache:
    """Answers and failures of judges by model and message, in an append-only file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        cut_half_line(path)
        self.records = {record["key"]: record for record in read_lines(path)}

    @staticmethod
    def key(model: str, text: str) -> str:
        """Model and whole message: question, options, gold answer, reply and prompt."""
        return hashlib.sha256(f"{model}\n{text}".encode("utf-8", "backslashreplace")).hexdigest()

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record; a later one of the same key wins."""
        self.records[record["key"]] = record
        append_line(self.path, record)


def cut_half_line(path: Path) -> None:
    """Remove the half-written last line of a process that was killed."""
    if path.is_file():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


@dataclass
class LMJudge:
    """A judge with its file of verdicts."""

    server: JudgeServer
    cache: JudgeCache
    retry: Collection[str] = ()
    """Codes of failures that are asked again."""
    cached: int = 0
    prompts: dict[str, str] = field(default_factory=dict)
    """Hash of the words, by the name of the prompt."""

    @property
    def name(self) -> str:
        """What results are called."""
        return f"judge:{self.server.model}"

    def judged(
        self, benchmark: Benchmark, samples: Iterable[Sample], take: Take, math: MathJudge
    ) -> Iterator[Sample]:
        """Samples with the verdict of the judge in place of every rule.

        Args:
            benchmark: its rules compare what a judge extracts.
            samples: read once, a part at a time.
            take: of the rules.
            math: of the rules.

        Raises:
            ConfigError: C101, the benchmark has no gold answer in words.
            RolloutError: R430, the judge gives no answer to the first request.
        """
        if benchmark.name in WITHOUT_JUDGE:
            raise without_gold_error(benchmark.name)
        stream = iter(samples)
        while part := list(islice(stream, CHUNK)):
            asked = [self.message(benchmark, sample) for sample in part]
            records = self.answers(part, asked)
            for sample, (prompt, _), record in zip(part, asked, records, strict=True):
                yield self.with_verdict(benchmark, sample, prompt, record, (take, math))

    def message(self, benchmark: Benchmark, sample: Sample) -> tuple[JudgePrompt, str]:
        """The prompt for a sample, and its text."""
        prompt = prompt_for(benchmark.name, sample.row)
        self.prompts[prompt.name] = hashlib.sha256(prompt.request.encode()).hexdigest()[:16]
        return prompt, prompt.text(sample.row, sample.response)

    def answers(
        self, samples: Sequence[Sample], asked: Sequence[tuple[JudgePrompt, str]]
    ) -> list[dict[str, Any]]:
        """The record of each message: kept ones, and those of new requests."""
        keys = [JudgeCache.key(self.server.model, text) for _, text in asked]
        known = self.cache.records
        wanted = {
            key: text
            for key, sample, (prompt, text) in zip(keys, samples, asked, strict=True)
            if key not in known or failure_code(known[key], prompt, sample) in self.retry
        }
        self.cached += len(keys) - len(wanted)
        new = {record["key"]: record for record in self.ask_all(list(wanted.items()))}
        return [new.get(key) or known[key] for key in keys]

    def ask_all(self, wanted: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """The records of new requests, kept as they come; the first one is alone."""
        while wanted and not self.server.is_answering:  # where the judge is down, nothing goes on
            yield self.keep(self.ask(*wanted.pop(0)))
        with ThreadPoolExecutor(THREADS) as pool:
            yield from map(self.keep, pool.map(lambda one: self.ask(*one), wanted))

    def keep(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record, after it went to the file if the judge was asked."""
        if record.pop("is_asked"):
            self.cache.add(record)
        return record

    def ask(self, key: str, text: str) -> dict[str, Any]:
        """The record of one request."""
        common = {"key": key, "model": self.server.model}
        try:
            return {**common, "answer": self.server.ask(text), "is_asked": True}
        except JudgeFailure as failure:
            own = {FAILED: failure.code, "reason": failure.reason, "is_asked": failure.is_asked}
            return {**common, **own}

    def with_verdict(
        self,
        benchmark: Benchmark,
        sample: Sample,
        prompt: JudgePrompt,
        record: dict[str, Any],
        how: tuple[Take, MathJudge],
    ) -> Sample:
        """A sample with what the judge decided, or with the code of its failure."""
        answer = record.get("answer")
        word = None if answer is None else prompt.read(answer, sample.row)
        if word is None:
            code = record.get(FAILED, NONSENSE)
            reason = record.get("reason") or f"the judge answered {answer!r:.100}"
            return failed_sample(benchmark, sample, code, mask_secrets(reason), self.name)
        verdicts = {}
        for name, rule in benchmark.rules.items():
            if prompt.is_extraction:
                text = "" if word.casefold() == NONE else reply_of(word, sample.row)
                verdict = replace(rule(text, sample.row, *how), rule=prompt.name)
            else:
                is_right = word.casefold() in ("yes", "correct")
                reason = "" if is_right else f"the judge says {word.casefold()}"
                verdict = Verdict(word, is_right, prompt.name, reason=reason)
            verdicts[name] = {**verdict_dict(verdict), "checker": self.name}
            if prompt.names_no_answer:
                verdicts[name][FORM] = None
        return replace(sample, verdicts=verdicts)

    def facts(self) -> dict[str, Any]:
        """What results say about the judge."""
        server = self.server
        return {
            "model": server.model,
            "url": mask_secrets(server.url),
            "prompts": dict(sorted(self.prompts.items())),
            "requests": server.calls,
            "tokens": server.tokens,
            "from_file": self.cached,
            "limit": server.limit,
        }


def reply_of(word: str, row: BenchmarkRow) -> str:
    """A reply that gives what a judge extracted, in forms that every rule of a benchmark reads."""
    is_letter = bool(row.choices) and len(word) == 1 and word.isalpha()
    letter = word.upper()  # MMMU's own rule reads no small letters
    return f"({letter})\n\\boxed{{{letter}}}" if is_letter else f"The answer is \\boxed{{{word}}}."


def failure_code(record: Mapping[str, Any], prompt: JudgePrompt, sample: Sample) -> str:
    """The code of a failure; empty for a record with a verdict."""
    if record.get(FAILED):
        return str(record[FAILED])
    return "" if prompt.read(str(record.get("answer")), sample.row) is not None else NONSENSE


def failed_sample(
    benchmark: Benchmark, sample: Sample, code: str, reason: str, judge: str
) -> Sample:
    """A sample without a verdict: metrics leave it out, and results count it."""
    verdict = verdict_dict(Verdict("", False, "judge failed", reason=reason, checker=judge))
    return replace(sample, verdicts={rule: {**verdict, FAILED: code} for rule in benchmark.rules})


def without_failed(samples: Iterable[Sample], failures: Counter[str]) -> Iterator[Sample]:
    """The samples with a verdict; the others are counted by code."""
    for sample in samples:
        code = next(iter(sample.verdicts.values())).get(FAILED)
        if code is None:
            yield sample
        else:
            failures[str(code)] += 1


def judged_samples(
    lm: LMJudge | None,
    benchmark: Benchmark,
    samples: Iterable[Sample],
    how: tuple[Take, MathJudge],
    failures: Counter[str],
) -> Iterator[Sample]:
    """The samples with a verdict: of a judge if there is one, else as they are."""
    own = samples if lm is None else lm.judged(benchmark, samples, *how)
    return without_failed(own, failures)


def with_kept_verdicts(
    samples: Iterable[Sample], benchmark: Benchmark, log: Path, model: str
) -> Iterator[Sample]:
    """The samples of a log with the verdicts that a judge gave; those without one are left out.

    Nothing is asked: the verdicts are those of `judge.jsonl` next to the log.

    Args:
        samples: of the log.
        benchmark: its rules.
        log: of samples.
        model: the judge; empty takes the verdicts of the log.
    """
    if not model:
        yield from samples
        return
    lm = LMJudge(JudgeServer(NOWHERE, model, limit=0), JudgeCache(log.parent / CACHE))
    how: tuple[Take, MathJudge] = read_header(log)["take"], shared_judge()
    yield from judged_samples(lm, benchmark, samples, how, Counter())


def judge_results(lm: LMJudge | None, failures: Mapping[str, int]) -> dict[str, Any]:
    """What the results of a benchmark say about judge and failures, besides its scores."""
    about = {} if lm is None else {"judge": lm.facts()}
    return {**about, "failures": dict(sorted(failures.items()))}


def open_judge(
    url: str, model: str, limit: int | None, folder: Path, retry: Collection[str] = ()
) -> LMJudge | None:
    """The judge of a URL, or None where none is given.

    Args:
        url: `eval.judge`; empty has no judge.
        model: `eval.judge_model`.
        limit: most requests.
        folder: of the logs; the verdicts are kept in its `judge.jsonl`.
        retry: codes of failures that are asked again.
    """
    if not (url or model):
        return None
    return LMJudge(JudgeServer(url, model, limit), JudgeCache(folder / CACHE), retry)


def without_gold_error(name: str) -> ConfigError:
    """C101 for a benchmark that a judge cannot judge."""
    return ConfigError(
        "C101",
        f"a language model cannot judge {name}",
        why="its rule walks the plan of a reply; there is no gold answer in words",
        fix="judge this benchmark by its own rule",
    )
