"""A graph is simplified to what torch's own exporter makes of it."""

from __future__ import annotations

import pytest
import torch
from onnxscript import ir
from test_operators import GRAPHS, Traced, program_of

from transom.deploy.simplify import _rules, simplify

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's, of its own


@pytest.mark.parametrize("traced", GRAPHS, ids=lambda traced: traced.__name__)
def test_a_graph_is_as_torch_leaves_it(traced: Traced) -> None:
    program = torch.onnx.export(program_of(traced), verbose=False, optimize=False)
    assert program is not None
    ours = ir.from_proto(ir.to_proto(program.model))
    program.optimize()
    before = [node.op_type for node in ours.graph]
    simplify(ours)
    after = [node.op_type for node in ours.graph]
    assert after == [node.op_type for node in program.model.graph]
    assert len(after) < len(before)


def test_each_rule_begins_somewhere() -> None:
    begins = [rule.operator for rule in _rules()]
    assert len(begins) > 30
    assert begins.count(None) <= 2  # those that take a constant on either side of any operator
