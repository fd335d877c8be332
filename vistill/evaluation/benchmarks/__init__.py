"""The benchmarks of the papers: one file each with rows, prompts, rule and metric; `--tasks`.

Nothing here imports torch. `catalogue.py` lists them, `scores.py` computes intervals.
"""
