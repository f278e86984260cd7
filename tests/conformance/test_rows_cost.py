"""Row 23: what an attention costs against length is what it declares."""

from __future__ import annotations

import pytest

from . import harness
from .costs import slope, training_costs
from .harness import Case

# Just below multiples of usual blocks, whose padding would blur the slope; a mixer may take a step for each token.
SHORT, LONG = (127, 191, 251, 383, 509), (251, 509, 1021, 1531, 2039)
WIDTH = 12  # narrow, so that what grows with the square of length shows at these lengths


# Options of a mechanism may change how it grows; those of a mixer are widths.
CASES = [case for case in harness.cases("attention") if harness.is_mechanism(case) or case.label == "base"]


@pytest.mark.parametrize(("case", "causal"), harness.directed(CASES), ids=str)
def test_row_23_cost_grows_as_declared(case: Case, causal: bool) -> None:
    found = []
    lengths = LONG if harness.is_mechanism(case) else SHORT
    for length in lengths:
        layer = harness.sublayer(case, d_model=WIDTH, causal=causal, max_seq_len=length)
        context = harness.context(x := harness.vectors(1, length, WIDTH), causal=causal)
        found.append(training_costs(lambda x, layer=layer, context=context: layer(x, context)[0], x))
    time, memory = layer.growth()  # type: ignore[operator]
    assert slope(lengths, [c.work for c in found]) == pytest.approx(time, abs=0.15)
    assert slope(lengths, [c.peak for c in found]) == pytest.approx(memory, abs=0.15)
