"""Checkers: one file per rule, each with its source. `vistill list checkers` lists them.

A checker is called as `check(response, answer, choices, take, math)` and returns a `Verdict`.
"""
