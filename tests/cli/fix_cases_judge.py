"""What `vistill judge` refuses on its command line."""

import bz2
import gzip
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


@situation("D102", first=True)
def a_line_of_packed_replies_is_not_json(place):
    judge_replies(place, "")
    text = (place.folder / REPLIES).read_text() + "{bad\n"
    place.write("antworten ü.jsonl.gz", gzip.compress(text.encode()))
    place.line = "vistill judge 'antworten ü.jsonl.gz'"


@situation("D102")
def there_are_no_replies(place):
    place.write(REPLIES, "")
    place.line = f"vistill judge '{REPLIES}'"


@situation("D102")
def replies_are_bzip2(place):
    judge_replies(place, "")
    place.write("alt ü.jsonl.bz2", bz2.compress((place.folder / REPLIES).read_bytes()))
    place.line = "vistill judge 'alt ü.jsonl.bz2' --take last"
