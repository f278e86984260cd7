"""The paper's equations, written out, and everything that Transom asks of an attention."""

import math

import torch
from transom_differential.pairs import PairsAttention

from transom import conformance
from transom.core import Context, Site, Tokens


def test_it_is_equation_1_of_the_paper() -> None:
    config, site = PairsAttention.Config(n_heads=4, depth=3).resolved(20), Site(d_model=20, max_seq_len=9)
    layer, start = PairsAttention(config, site), 0.8 - 0.6 * math.exp(-0.3 * 2)
    q, k, v = torch.randn(3, 2, 7, 4, 5)
    y = layer(q, k, v, Context(Tokens(torch.arange(7)[None]), causal=True))[0].detach()
    (q1, k1), (q2, k2) = layer.factors.detach()
    factor = torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + start
    later = torch.ones(7, 7).triu(1).bool()
    for first in (0, 2):
        scores = torch.einsum("bthd,bshd->bhts", q, k)[:, first : first + 2] / math.sqrt(5)
        adding, taking = torch.softmax(scores.masked_fill(later, -math.inf), dim=-1).unbind(1)
        mixed = (adding - factor * taking) @ torch.cat([v[:, :, first], v[:, :, first + 1]], dim=-1)
        want = (1 - start) * mixed / (mixed.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(y[:, :, first : first + 2].flatten(2), want)


def test_it_conforms() -> None:
    report = conformance.check("differential")
    assert report.passed, report.table()
