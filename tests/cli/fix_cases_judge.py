"""What `vistill judge` refuses on its command line."""

import json

from fix_cases import situation

REPLIES = "antworten ü 1.jsonl"


def judge_replies(place, rest):
    """A file with a reply; the line judges it."""
    place.write(REPLIES, json.dumps({"reply": "The answer is 3.", "gold": "3"}) + "\n")
    place.line = f"vistill judge '{REPLIES}' {rest}"


@situation("C002")
def the_commitment_is_misspelt(place):
    judge_replies(place, "--take lats")


@situation("C105")
def the_checker_is_misspelt(place):
    judge_replies(place, "--checker maht")


@situation("C105")
def the_checker_is_like_no_other(place):
    judge_replies(place, "--checker zebra")
