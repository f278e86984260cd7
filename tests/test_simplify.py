"""A graph is simplified to what torch's own exporter makes of it."""

from __future__ import annotations

import pytest
import torch
from test_operators import GRAPHS, Traced, program_of

from transom.deploy.simplify import _rules, simplify

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's, of its own


@pytest.mark.parametrize("traced", GRAPHS, ids=lambda traced: traced.__name__)
def test_a_graph_is_as_torch_leaves_it(traced: Traced) -> None:
    program = program_of(traced)
    theirs, ours = (torch.onnx.export(program, verbose=False, optimize=by_torch) for by_torch in (True, False))
    assert theirs is not None
    assert ours is not None
    before = [node.op_type for node in ours.model.graph]
    simplify(ours.model)
    after = [node.op_type for node in ours.model.graph]
    assert after == [node.op_type for node in theirs.model.graph]
    assert len(after) < len(before)


def test_each_rule_begins_somewhere() -> None:
    begins = [rule.operator for rule in _rules()]
    assert len(begins) > 30
    assert begins.count(None) <= 2  # those that take a constant on either side of any operator
