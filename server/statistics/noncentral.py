"""The upper tail of the non-central chi-square law, to a relative error that does not grow with how small it is. **Pure.**

Floor 1. scipy.special has its distribution function alone, and 1 minus that is noise below 1e-16 (and it stops summing at a
relative 1e-5). Here the tail itself is summed or integrated, all of positive terms.
"""

import math

import numpy as np
from scipy import special

MIXTURE_BELOW = 50.0
SPAN = 38.0
"""Terms below e^-SPAN of the largest are left out."""


def survival(x: float, df: int, noncentrality: float) -> float:
    """The probability that a chi-square of `df` degrees of freedom and that non-centrality is larger than x."""
    if noncentrality == 0 or x <= 0:
        return float(special.chdtrc(df, max(x, 0.0)))
    below = df + noncentrality - x
    # P(X <= mean - 2 sqrt((df + 2 noncentrality) t)) <= e^-t (Birge 2001): there is nothing below
    if below > 0 and below * below > 4 * SPAN * (df + 2 * noncentrality):
        return 1.0
    width = math.sqrt(noncentrality * x)
    return mixture(x, df, noncentrality) if width < MIXTURE_BELOW else contour(x, df, noncentrality)


def mixture(x: float, df: int, noncentrality: float) -> float:
    """The tail as Poisson's mixture of central tails: for any x, and few terms where sqrt(noncentrality x) is small."""
    half = noncentrality / 2
    peak = max(half, math.sqrt(noncentrality * x) / 2)
    number = np.arange(math.ceil(peak + 12 * math.sqrt(peak) + 40), dtype=np.float64)
    weight = np.exp(number * math.log(half) - half - special.gammaln(number + 1))
    # of many weights that should add up to 1, the sum may be beyond it in the last bits
    return min(float(np.dot(weight[::-1], special.gammaincc(df / 2 + number, x / 2)[::-1])), 1.0)


def contour(x: float, df: int, noncentrality: float) -> float:
    """The tail by Laplace's inversion of the moment generating function, on a circle through the saddle point."""
    width = math.sqrt(noncentrality * x)
    pole = math.log(x / noncentrality) / 2  # in v, with 1 - 2s = sqrt(noncentrality / x) e^v: there s is 0
    power = 1 - df / 2
    above = x >= noncentrality + df
    v = saddle(width, power, pole, above)
    bend, gap = width * math.cosh(v), abs(pole - v)
    last = math.acos(max(1 - SPAN / bend, -1.0))
    points = math.ceil(last / min(0.7 / math.sqrt(bend), 0.17 * gap)) + 1
    angle = np.linspace(0.0, last, points)
    rest = -np.expm1(v - pole + 1j * angle)  # 1 - t
    exponent = 1j * (power * angle + width * math.sinh(v) * np.sin(angle)) - 2 * bend * np.sin(angle / 2) ** 2
    value = (np.exp(exponent) / rest).real
    value[0] /= 2
    root = (x - noncentrality) / (math.sqrt(x) + math.sqrt(noncentrality))
    log_size = 2 * width * math.sinh(v / 2) ** 2 - root * root / 2 + power * (v - pole)
    inside: float = value.sum().item() * angle[1].item() / math.pi * math.exp(log_size)
    return min(max(inside if above else 1 + inside, 0.0), 1.0)


def saddle(width: float, power: float, pole: float, above: bool) -> float:
    """Where width cosh v + power v - ln |1 - e^(v - pole)| is least, below the pole or above it: Newton's steps.

    It is convex on either side. Nothing depends on how near it is found but the number of points that are needed.
    """
    # for small v: (width v + power)(pole - v) + 1 = 0, whose two roots are on the two sides of the pole
    middle, side = (pole - power / width) / 2, -1.0 if above else 1.0
    v = middle + side * math.sqrt((pole - middle) ** 2 + 1 / width)
    for _ in range(8):
        away = -math.expm1(v - pole)
        slope = width * math.sinh(v) + power + (1 - away) / away
        step = slope / (width * math.cosh(v) + (1 - away) / away**2)
        # never onto the pole: at most half the way to it
        v = v - step if side * (v - step - pole) > side * (v - pole) / 2 else (v + pole) / 2
    return v
