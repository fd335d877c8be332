"""Distributions as lists, one token at a time.

References in tests use them, so that they share no mathematics with the package.
"""

import math


def log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


def kl(log_p, log_q):
    """KL(p || q)."""
    return sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True) if a > -math.inf)
