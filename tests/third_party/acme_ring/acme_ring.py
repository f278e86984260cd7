"""Sigmoid attention for Transom."""

from dataclasses import dataclass

import torch

from transom.core import Declaration, HeadsConfig, Mechanism, Remembered

TRANSOM_API = 1


class SigmoidAttention(Mechanism):
    """Weigh each visible token on its own, by a sigmoid in place of the softmax (Ramapuram et al. 2024)."""

    declares = Declaration(
        can=frozenset({"causal", "two_sided", "documents", "rotate", "score", "compile"}),
        lacks={"cross": "it keeps no keys of a memory"},
        time=2.0,
        memory=2.0,
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """Take the options of all multi-head attentions."""

    def declared(self):
        entry = Remembered(("batch", "past", self.n_kv_heads, self.head_dim), "append")
        return {"k": entry, "v": entry}

    def forward(self, q, k, v, context, state=None):
        if state is not None:
            k, v = context.append(state["k"], k), context.append(state["v"], v)
            state = {"k": k, "v": v}
        bias = context.score(context.tokens, None, q, k)
        k, v = (x.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2) for x in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) * self.scale
        seen = context.visible(context.keys).unsqueeze(1)  # (B or 1, 1, T, S)
        scores = scores - seen.sum(-1, keepdim=True).clamp(min=1).to(scores.dtype).log()
        weights = torch.sigmoid(scores if bias is None else scores + bias) * seen
        return torch.einsum("bhts,bshd->bthd", weights, v), state

    reference = forward


def transom_components():
    return [SigmoidAttention]
