"""Fold and simplify a graph as torch's translator does it, with each rule tried only where it can begin."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import rewriter
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import onnx_fusions

ROUNDS = 2


def simplify(model: ir.Model) -> None:
    """Make a graph that was just translated a shorter one that gives the same, as `torch.onnx.export` would.

    Its way tries every rule at every node, which takes longer than all the rest for graphs of thousands of nodes.
    """
    common.InlinePass()(model)
    for _ in range(ROUNDS):
        folded = fold_constants(model, onnx_shape_inference=True).modified
        rewritten = bool(_rules().apply_to_model(model))
        common.RemoveUnusedNodesPass()(model)
        if not folded and not rewritten:
            break
    for last in (
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        last(model)
    onnx_fusions.fuse(model)


class _Rooted:
    """Try a rule at nodes of the operator that its pattern ends in, and leave the rest to the rule."""

    def __init__(self, rule: rewriter.RewriteRule) -> None:
        self.rule = rule
        root = rule._target_pattern.output_node.op_identifier()
        self.operator = None if root is None else root[:2]

    def try_rewrite(self, model: ir.Model, graph: ir.Graph, node: ir.Node, **how: Any) -> Any:
        if self.operator is not None and self.operator != (node.domain, node.op_type):
            return None
        return self.rule.try_rewrite(model, graph, node, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)


@cache
def _rules() -> rewriter.RewriteRuleSet:
    """Return the rules but those for several nodes that give something: these are looked for among all pairs of nodes,
    and are for graphs that were cut otherwise.
    """
    single = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule._target_pattern.has_single_output_node]
    return rewriter.RewriteRuleSet([_Rooted(rule) for rule in single])  # type: ignore[misc]
