"""Which span of a reply is its answer, and whether it equals the gold answer (docs/answers.md).

`extract` finds the span, `normalise` and `units` give normal forms, `compare` compares them, and
`checkers` has one file per rule. Nothing here imports torch or keeps state, except
`math_process`, which runs math-verify.
"""

from vistill.answers.judge import gold_response
from vistill.answers.verdict import Verdict

__all__ = ["Verdict", "gold_response"]
