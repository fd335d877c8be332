"""`maze_strict`: the rule that Visual-OPSD's evaluation walks mazes by."""

from vistill.answers.checkers.maze import verdict
from vistill.answers.compare import Mathematics
from vistill.answers.extract import Take
from vistill.answers.reading import with_gold
from vistill.answers.verdict import Verdict


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """Walk the plan as `maze` does; a step off the edge fails, and the plan must end on the goal.

    Source: the fork of VLMEvalKit that ThinkMorph and Visual-OPSD use.
    """
    return verdict(response, answer, take, strict=True)
