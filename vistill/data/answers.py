"""Names of `vistill.answers` that plug-ins written for earlier versions import from here."""

from vistill.answers.checkers.auto import check as judge_answer
from vistill.answers.judge import gold_response
from vistill.answers.verdict import Verdict

__all__ = ["Verdict", "gold_response", "judge_answer"]
