"""Curves: they give back what was measured, smooth noise, and stay at the border outside of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpcompile.cost.curve import Curve


def grid(function: object, noise: float = 0.0) -> Curve:
    """Measurements on a regular grid of log2 sizes."""
    random = np.random.default_rng(0)
    points = tuple((float(x), float(y)) for x in range(0, 12, 2) for y in range(0, 10, 2))
    return Curve(points, tuple(function(*p) + noise * random.standard_normal() for p in points))  # type: ignore[operator]


def bend(x: float, y: float) -> float:
    """A smooth dependence."""
    return 0.1 * x - 0.02 * (y - 4) ** 2


def test_what_was_measured_is_nearly_given_back() -> None:
    curve = grid(bend)
    for (x, y), logarithm in zip(curve.points, curve.logarithms, strict=True):
        assert math.log(curve.correction((2**x, 2**y))) == pytest.approx(logarithm, abs=0.1)


def test_between_measurements_it_interpolates() -> None:
    curve = grid(bend)
    assert math.log(curve.correction((2**5, 2**3))) == pytest.approx(bend(5, 3), abs=0.1)


def test_noise_is_smoothed() -> None:
    clean, noisy = grid(bend), grid(bend, 0.2)
    points = [(2**x, 2**y) for x, y in clean.points]
    errors = [math.log(noisy.correction(p)) - bend(*map(math.log2, p)) for p in points]
    raw = [a - b for a, b in zip(noisy.logarithms, clean.logarithms, strict=True)]
    assert np.std(errors) < np.std(raw)


def test_outside_it_stays_at_the_border() -> None:
    curve = grid(bend)
    assert curve.correction((2**30, 2**4)) == curve.correction((2**10, 2**4))
    assert curve.correction((0.001, 2**4)) == curve.correction((1, 2**4))


def test_a_longer_kernel_counts_as_the_longest_of_its_shape() -> None:
    places = [(x, y) for x in np.arange(0, 10, 0.7) for y in np.arange(0, 10, 0.7) if x + y <= 10]
    curve = Curve(tuple((float(x), float(y), float(x + y)) for x, y in places), tuple(0.1 * (x - y) for x, y in places))
    for x, y in ((9, 9), (9, 6), (6, 9)):
        assert math.log(curve.correction((2**x, 2**y, 2 ** (x + y)))) == pytest.approx(0.1 * (x - y), abs=0.06)
    within = curve.correction((2**4, 2**3, 2**7))
    assert math.log(within) == pytest.approx(0.1, abs=0.05), "a length that was measured stays where it is"


def test_sizes_that_determine_each_other_do_no_harm() -> None:
    random = np.random.default_rng(0)
    x, y = random.uniform(0, 8, (2, 60))
    points = tuple((float(a), float(b), float(a), float(a + 2 * b)) for a, b in zip(x, y, strict=True))
    curve = Curve(points, tuple(bend(a, b) for a, b, _, _ in points))
    assert len(curve.independent) == 2
    assert math.log(curve.correction((2**4, 2**3, 2**4, 2**10))) == pytest.approx(bend(4, 3), abs=0.1)


def test_a_size_that_never_varied_does_no_harm() -> None:
    curve = Curve(tuple((float(x), 3.0) for x in range(8)), tuple(0.1 * x for x in range(8)))
    assert math.log(curve.correction((2**4, 2**3))) == pytest.approx(0.4, abs=0.05)
    assert curve.correction((2**4, 2**9)) == curve.correction((2**4, 2**3))
