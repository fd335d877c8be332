"""Conditions that must hold before the first step, as named checks.

`vistill check` prints them, every run makes them.
"""
