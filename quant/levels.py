"""Grids: the additive powers-of-two levels of APoT, the step count of a uniform activation, the step of given values."""

from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import lcm

from torch import Tensor

MIN_BITS, MAX_BITS, FLOAT_BITS = 2, 8, 32
FINEST = 2**12  # the largest "small integer"


def check_bits(bits: int, name: str = "bit") -> int:
    """Return `bits` if it is 2..8 or 32 (float); raise ValueError otherwise."""
    if bits != FLOAT_BITS and not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{name} is {bits}: choose {MIN_BITS} to {MAX_BITS}, or {FLOAT_BITS} for float")
    return bits


def time_steps(bits: int) -> int:
    """Return T = 2^b - 1: the nonzero values of a b-bit activation, and the steps of the spiking network."""
    return 2**bits - 1


def apot_terms(bits: int) -> list[list[Fraction]]:
    """Return the sets whose sums are the magnitudes of a signed `bits`-bit weight (APoT, eq. 5-6, base width k = 2).

    The B = bits - 1 magnitude bits are dealt to B // 2 terms of two bits (zero and three powers) and, where B is odd,
    one term of one bit (zero and one power). Exponents 1, 2, 3, ... go round the terms three times; the one-bit term
    takes its only power at the end of the second round. So w = 4 gives {0, 1/2, 1/4, 1/16} + {0, 1/8}.
    """
    pairs, odd = divmod(bits - 1, 2)
    terms: list[list[Fraction]] = [[Fraction(0)] for _ in range(pairs + odd)]
    exponent = 0
    for turn in range(3 if pairs else 2):
        members = terms[:pairs] + (terms[pairs:] if turn == 1 else [])
        for term in members:
            exponent += 1
            term.append(Fraction(1, 2**exponent))
    return terms


@lru_cache
def apot_grid(bits: int) -> tuple[tuple[int, ...], int]:
    """Return (numerators, denominator) of the APoT levels in [0, 1], ascending, the largest being 1.

    Every level is an integer over a small common denominator (bits = 2, 3, 4, 5: 1, 4, 10, 48), on which integer
    arithmetic on quantized weights rests. bits = 2 is ternary: {0, 1}.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"weight bits are {bits}: APoT levels exist for {MIN_BITS} to {MAX_BITS}")
    sums = sorted({sum(choice) for choice in product(*apot_terms(bits))})
    levels = [s / sums[-1] for s in sums]
    denominator = lcm(*(level.denominator for level in levels))
    return tuple(int(level * denominator) for level in levels), denominator


def common_step(values: Tensor, tolerance: float = 1e-9) -> float | None:
    """Return the largest step of which all values are multiples; None if they are not small integers times a step.

    Euclid's algorithm on the distinct magnitudes. A rest below a hundred times the tolerance counts as 0, since the algorithm
    multiplies rounding errors.

    Args:
        values: of any shape, float64.
        tolerance: how far a value may be from a multiple, as a part of the largest magnitude.
    """
    magnitudes = values.abs().flatten().unique()
    largest = magnitudes[-1].item()
    if largest == 0:
        return 1.0
    if len(magnitudes) > FINEST:
        return None
    step, nothing = largest, 100 * tolerance * largest
    for value in magnitudes.tolist():
        rest = value
        while rest > nothing:
            step, rest = rest, step % rest
            rest = 0.0 if step - rest <= nothing else rest
        if step * FINEST < largest:
            return None
    step = largest / round(largest / step)
    return step if ((values / step).round() * step - values).abs().max() <= tolerance * largest else None
