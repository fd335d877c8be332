"""`maze`: walk the plan of a reply through the maze of the row (VSP)."""

import json
import re
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from vistill.answers.boxes import Span, Take, find_strong
from vistill.answers.compare import Mathematics
from vistill.answers.extract import find_phrases, whole
from vistill.answers.reading import with_gold
from vistill.answers.verdict import Verdict

START, GOAL, HOLE = "@S", "*G", "#H"
CELLS = {*START, *GOAL, *HOLE, *"_F."}
STEPS = {"L": (0, -1), "R": (0, 1), "U": (-1, 0), "D": (1, 0)}
PLAN = re.compile(r"(?:action\s?)?plan(?:\sis)?\W{0,12}(?=[LRUDlrud\[\"'])", re.IGNORECASE)
MOVE = re.compile(r"(?<![A-Za-z])(?:left|right|up|down|[LRUD])(?![A-Za-z])", re.IGNORECASE)
STEP = r"(?:(?i:left|right|up|down)\b|[LRUDlrud](?![A-Za-z]))"
#: Between two steps: signs, or the number of a list.
BETWEEN = r"[\s,;>\"'\-]{0,6}(?:\d{1,3}[.)]\s{1,3})?"
MOVES = re.compile(
    rf"[\s\[\"'`*]{{0,6}}(?:1[.)]\s{{1,3}})?({STEP}(?:{BETWEEN}{STEP}){{0,400}}|[LRUD]{{2,400}}(?![A-Za-z]))"
)
#: Rules whose span must hold a plan and nothing else, and the signs that may follow it.
ALONE, ENDS = ("bare", "phrase", "line", "option"), " .]\"'`*\n"


def is_maze(rows: Sequence[object]) -> bool:
    """Whether texts are the rows of a maze: 3 or more of one width, one start and one goal."""
    if len(rows) < 3 or not all(isinstance(row, str) and len(row) >= 3 for row in rows):
        return False
    cells = "".join(map(str, rows))
    ends = [sum(cell in marks for cell in cells) for marks in (START, GOAL)]
    is_even = len({len(str(row)) for row in rows}) == 1
    return is_even and ends == [1, 1] and set(cells) <= CELLS


class Walk(NamedTuple):
    """Where a plan leads."""

    reached: bool
    """Whether it came to the goal at some step."""
    ends_there: bool
    fell: bool
    bumped: bool


def read_grid(answer: str) -> list[str]:
    """The rows of a maze: lines, or a JSON list; `@` start, `*` goal, `#` hole, `_` free."""
    try:
        rows = json.loads(answer)
    except ValueError:
        rows = answer.replace("/", "\n").split("\n")
    if not isinstance(rows, list):
        return []
    return [
        "".join(map(str, row)) if isinstance(row, list) else str(row).strip() for row in rows if row
    ]


def walk(grid: list[str], plan: list[str]) -> Walk:
    """Walk a plan; a step off the edge does nothing, a hole or the goal ends it."""
    starts = [(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell in START]
    row, column = starts[0]
    bumped = False
    for i, move in enumerate(plan):
        down, right = STEPS[move]
        next_row, next_column = row + down, column + right
        if not (0 <= next_row < len(grid) and 0 <= next_column < len(grid[next_row])):
            bumped = True
            continue
        row, column = next_row, next_column
        if grid[row][column] in HOLE:
            return Walk(False, False, True, bumped)
        if grid[row][column] in GOAL:
            return Walk(True, i == len(plan) - 1, False, bumped)
    return Walk(False, False, False, bumped)


def shortest_plan(grid: list[str]) -> list[str]:
    """The moves of a shortest way to the goal; none where there is no way."""
    starts = [(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell in START]
    plans: dict[tuple[int, int], list[str]] = {place: [] for place in starts[:1]}
    waiting = deque(plans)
    while waiting:
        row, column = waiting.popleft()
        if grid[row][column] in GOAL:
            return plans[row, column]
        for move, (down, right) in STEPS.items():
            place = row + down, column + right
            inside = 0 <= place[0] < len(grid) and 0 <= place[1] < len(grid[place[0]])
            if inside and place not in plans and grid[place[0]][place[1]] not in HOLE:
                plans[place] = [*plans[row, column], move]
                waiting.append(place)
    return []


def find_plan(text: str, take: Take) -> tuple[Span, list[str]] | None:
    """The plan of a reply: in a box or tag, behind `Action plan:` or `The answer is`, or all."""
    spans = [Span(m.end(), min(len(text), m.end() + 3000), "plan") for m in PLAN.finditer(text)]
    spans = [*spans[:100], *spans[-100:], *islice(find_phrases(text, take), 100)]
    spans = sorted([*find_strong(text), *spans], key=lambda span: span.start)
    ordered = spans if take == "first" else spans[::-1]
    for span in [*ordered[:50], whole(text)]:
        match = MOVES.match(text, span.start, span.end)
        if match and (span.rule not in ALONE or not text[match.end() : span.end].strip(ENDS)):
            moves = [m.group(0)[0].upper() for m in MOVE.finditer(match.group(1))]
            if not moves:
                moves = list(match.group(1).upper())
            return Span(match.start(1), match.end(1), span.rule), moves
    return None


def verdict(response: str, answer: str, take: Take, strict: bool) -> Verdict:
    """Walk the plan by the official or the strict rule."""
    grid = read_grid(answer)
    if not any(cell in START for row in grid for cell in row):
        return Verdict(None, False, gold_form=answer[:80], reason="the gold answer is no maze")
    plan = find_plan(response, take)
    if plan is None:
        return Verdict(None, False, gold_form="/".join(grid), reason="the reply has no plan")
    span, moves = plan
    result = walk(grid, moves)
    reason = "" if result.reached else "it never comes to the goal"
    if result.fell:
        reason = "it falls into a hole"
    elif strict and result.bumped:
        reason = "it leaves the maze"
    elif strict and result.reached and not result.ends_there:
        reason = "it goes on behind the goal"
    raw = response[span.start : span.end]
    where = (span.start, span.end)
    return Verdict(raw, not reason, span.rule, where, ",".join(moves), "/".join(grid), reason)


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """Walk the plan (`L,R,U,D`) through the maze that the gold answer draws: official rule.

    A step off the edge does nothing; the plan succeeds when it comes to the goal.
    Source: VSP (arXiv 2407.01863), FrozenLake.
    """
    return verdict(response, answer, take, strict=False)
