"""The grids."""

from fractions import Fraction

import numpy as np
import pytest

from quant import apot_grid, check_bits, time_steps

PUBLISHED = {
    3: "0 1/4 1/2 1",
    4: "0 1/10 2/10 3/10 4/10 6/10 8/10 1",
    5: "0 1/48 1/24 1/16 1/12 1/8 1/6 3/16 1/4 1/3 3/8 1/2 2/3 11/16 3/4 1",
}


@pytest.mark.parametrize("bits", PUBLISHED)
def test_levels_are_the_published_ones(bits):
    numerators, denominator = apot_grid(bits)
    assert [Fraction(n, denominator) for n in numerators] == [Fraction(text) for text in PUBLISHED[bits].split()]


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_levels_agree_with_the_recorded_ones(primitives, bits):
    numerators, denominator = apot_grid(bits)
    np.testing.assert_allclose(np.array(numerators) / denominator, primitives[f"levels_{bits}"], rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_grid_is_distinct_ascending_and_complete(bits):
    numerators, denominator = apot_grid(bits)
    assert (numerators[0], numerators[-1]) == (0, denominator)
    assert len(numerators) == 2 ** (bits - 1)
    assert list(numerators) == sorted(set(numerators))


@pytest.mark.parametrize(("bits", "steps"), [(2, 3), (3, 7), (4, 15)])
def test_time_steps(bits, steps):
    assert time_steps(bits) == steps


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 31, 33])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=str(bits)):
        check_bits(bits)
    with pytest.raises(ValueError, match=str(bits)):
        apot_grid(bits)
