"""Row 23: what an attention costs against length is what it declares."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import Tensor

from ...core.context import Context
from ...core.sublayer import Sublayer
from ..cases import NARROW
from ..companions import is_mechanism
from ..costs import slope, training_costs
from ..places import directed_costs
from ..registered import row
from ..stacks import context, sublayer, vectors
from ..subjects import Subject
from ..trial import Trial

# Just below multiples of usual blocks, whose padding would blur the slope; a mixer may take a step for each token.
SHORT, LONG = (127, 383, 509), (383, 767, 1531)
ALLOWED = 0.15


def _output(layer: Sublayer, here: Context, x: Tensor) -> Tensor:
    return cast(Tensor, layer(x, here)[0])


@row(23, "operations and peak bytes of a training pass", kinds=("attention",), places=directed_costs)
def operations_and_bytes(subject: Subject, trial: Trial) -> None:
    found = []
    lengths = LONG if is_mechanism(subject.case) else SHORT
    for length in lengths:
        layer = sublayer(subject.case, d_model=NARROW, causal=subject.causal, max_seq_len=length)
        x = vectors(1, length, NARROW)
        here = context(x, causal=subject.causal)
        found.append(training_costs(partial(_output, layer, here), x))
    time, memory = layer.growth()  # type: ignore[operator]
    work, peak = slope(lengths, [c.work for c in found]), slope(lengths, [c.peak for c in found])
    trial.within(abs(work - time), ALLOWED, f"operations grow with length to the {work:.2f}, declared is {time}: apart")
    trial.within(abs(peak - memory), ALLOWED, f"bytes grow with length to the {peak:.2f}, declared is {memory}: apart")
