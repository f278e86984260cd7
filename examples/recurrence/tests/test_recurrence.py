"""The paper's equations, written out, and everything that Transom asks of an attention."""

import torch
from transom_recurrence.rg_lru import RgLruAttention

from transom import conformance
from transom.core import Context, Site, Tokens


def test_it_is_equations_1_to_4_of_the_paper() -> None:
    layer = RgLruAttention(RgLruAttention.Config(), Site(d_model=6, max_seq_len=37)).double()
    x, h, outputs = torch.randn(2, 37, 6, dtype=torch.float64), torch.zeros(2, 6), []
    for t in range(37):
        u, branch = layer.up(x[:, t]).chunk(2, dim=-1)
        r, i = torch.sigmoid(layer.gates(u)).chunk(2, dim=-1)
        a = torch.sigmoid(layer.decay) ** (8 * r)
        h = a * h + torch.sqrt(1 - a**2) * (i * u)
        outputs.append(layer.out(torch.nn.functional.gelu(branch) * h))
    got, state = layer(x, Context(Tokens(torch.arange(37)[None]), causal=True), {"h": torch.zeros(2, 6)})
    torch.testing.assert_close(got, torch.stack(outputs, dim=1))
    torch.testing.assert_close(state["h"], h)


def test_it_conforms() -> None:
    report = conformance.check("griffin")
    assert report.passed, report.table()
