"""Rows with more than their format reads, and a page that would overwrite another file."""

from fix_cases import good_rows, situation, start


@situation("D104", COLUMN="die Antwort")
def answers_are_damaged_lists(place):
    rows = [{**r, "answer": "['7', '8'", "die Antwort": r["answer"]} for r in good_rows()]
    start(place, rows=rows)


@situation("D105")
def two_columns_hold_different_gold_answers(place):
    rows = [{**r, "answer": "99", "reward_model": {"ground_truth": r["answer"]}}
            for r in good_rows()]  # fmt: skip
    start(place, rows=rows)


@situation("D104", COLUMN="frage")
def a_part_of_the_question_is_no_text(place):
    rows = [{"instruction": {"x": 1}, "output": r["response"], "images": r["images"],
             "answer": r["answer"], "frage": r["question"]} for r in good_rows()]  # fmt: skip
    start(place, rows=rows)


@situation("S601")
def the_preview_would_overwrite_a_file(place):
    place.write("seite ü.html", "my own page")
    start(place, "--preview 'seite ü.html'")
