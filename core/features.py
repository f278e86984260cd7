"""Attention through features of queries and keys: sums in place of scores, linear in length, with a fixed state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fla, stretched
from .attention import Mechanism, is_exporting
from .context import Context
from .decay import size_of_chunks
from .linear import at_least_fp32, computed_in
from .state import Declared, Memories, Remembered
from .summed import linear_attention

CHUNK = 64
"""Tokens a chunk: within it scores are formed, across it a (D, D) sum is carried; 64 was the fastest of 32 to 256."""


class FeatureAttention(Mechanism, ABC):
    """Weigh values by phi(q) . phi(k), never negative, over the sum of all weights (Katharopoulos et al. 2020).

    A child says what the features are. Where it turns them by positions itself, it is above the line only: the
    normaliser sums them unturned, and so stays positive (Su et al. 2021, section 3.3).
    """

    lowers: ClassVar[Mapping[str, str]] = {"ort": "as_operator"}

    @property
    def width(self) -> int:
        """Return how many features a query or key has."""
        return self.head_dim

    @abstractmethod
    def query_features(self, q: Tensor) -> Tensor:
        """Return phi, never negative, of queries (..., D), at least in fp32: (..., width)."""

    @abstractmethod
    def key_features(self, k: Tensor) -> Tensor:
        """Return phi, never negative, of keys (..., D), at least in fp32: (..., width)."""

    def declared(self) -> Declared:
        """Keep the sums of key features, and of their products with values, at least in fp32."""
        heads, grows = self.n_kv_heads, "static" if self.site.cross else "fixed"
        return {
            "kv": Remembered(("batch", heads, self.width, self.head_dim), grows, "accumulate"),  # type: ignore[arg-type]
            "k": Remembered(("batch", heads, self.width), grows, "accumulate"),  # type: ignore[arg-type]
        }

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Mix in chunks when causal, by one sum over all tokens when not; never a (T, T) or a (T, D, D) tensor."""
        phi_q, phi_k = self.query_features(q), self._key_features(k, context)
        (turned_q, turned_k), wide_v = self._turned(phi_q, phi_k, context), at_least_fp32(v)
        if not self.site.causal:
            return self._two_sided(phi_q, phi_k, turned_q, turned_k, wide_v, context).to(v.dtype), None
        kv = None if state is None else state["kv"]
        k_sum = None if state is None else state["k"].unsqueeze(-1)
        doc = context.tokens.doc
        if fla.takes(q, doc) and q.shape[1] > 1:
            top, kv = self._by_kernel(turned_q, turned_k, wide_v, kv, computed_in(q))
        elif turned_q is phi_q and not is_exporting():
            # Nothing is turned: the normaliser is one more column of the values, and scores are formed once.
            before = None if kv is None or k_sum is None else torch.cat([kv, k_sum], dim=-1)
            y, sums = weighed_sums(phi_q, phi_k, wide_v, before, doc)
            after = None if state is None else {"kv": sums[..., :-1], "k": sums[..., -1]}
            return y.to(v.dtype), after
        else:
            top, kv = causal_sums(turned_q, turned_k, wide_v, kv, doc)
        bottom, k_sum = causal_sums(phi_q, phi_k, torch.ones_like(wide_v[..., :1]), k_sum, doc)
        after = None if state is None else {"kv": kv, "k": k_sum.squeeze(-1)}
        return _divide(top, bottom).to(v.dtype), after

    def declines(self, target: str) -> str:
        """Keep to `forward` where one sum over all tokens is all there is to do."""
        return "" if self.site.causal and not self.site.cross else "what sees both sides is one sum over all tokens"

    def as_operator(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Leave both sums to ONNX Runtime's LinearAttention, for which one token is one step and no chunk."""
        if not is_exporting() or context.tokens.doc is not None:
            return type(self).forward(self, q, k, v, context, state)
        phi_q, phi_k = self.query_features(q), self._key_features(k, context)
        (turned_q, turned_k), wide_v = self._turned(phi_q, phi_k, context), at_least_fp32(v)
        zeros = wide_v.new_zeros(v.shape[0], self.n_kv_heads, self.width, self.head_dim)
        before = {"kv": zeros, "k": zeros[..., 0]} if state is None else state
        top, kv = linear_attention(turned_q, turned_k, wide_v, before["kv"])
        bottom, k_sum = linear_attention(phi_q, phi_k, torch.ones_like(wide_v[..., :1]), before["k"].unsqueeze(-1))
        return _divide(top, bottom).to(v.dtype), None if state is None else {"kv": kv, "k": k_sum.squeeze(-1)}

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: Memories | None = None
    ) -> tuple[Tensor, Memories | None]:
        """Compute the weights of all pairs, and add what is remembered."""
        cross = self.site.cross
        phi_q, phi_k, v32 = self.query_features(q), self._key_features(k, context), at_least_fp32(v)
        turned_q, turned_k = (phi_q, phi_k) if cross else self._turned(phi_q, phi_k, context)
        tokens = context.memory_tokens if cross else context.tokens
        assert tokens is not None
        seen = self.visible(context.tokens, tokens).unsqueeze(1).to(phi_q.dtype)
        top = torch.einsum("bhts,bshe->bthe", _pairs(turned_q, turned_k) * seen, self._grouped(v32))
        bottom = (_pairs(phi_q, phi_k) * seen).sum(-1).transpose(1, 2).unsqueeze(-1)
        if state is not None:
            groups = self.n_heads // self.n_kv_heads
            top = top + torch.einsum("bthd,bhde->bthe", turned_q, state["kv"].repeat_interleave(groups, 1))
            bottom = bottom + torch.einsum("bthd,bhd->bth", phi_q, state["k"].repeat_interleave(groups, 1))[..., None]
            state = {
                "kv": state["kv"] + torch.einsum("bskd,bske->bkde", turned_k, v32),
                "k": state["k"] + phi_k.sum(1),
            }
        return _divide(top, bottom).to(v.dtype), state

    def prime(self, k: Tensor, v: Tensor, context: Context) -> Memories:
        """Keep the memory's sums, whatever its length."""
        phi_k = self._key_features(k, context)
        return {"kv": torch.einsum("bskd,bske->bkde", phi_k, at_least_fp32(v)), "k": phi_k.sum(1)}

    def recall(self, q: Tensor, primed: Memories, context: Context) -> Tensor:
        """Read the memory's sums."""
        phi_q = self.query_features(q).unflatten(2, (self.n_kv_heads, -1))
        top = torch.einsum("btkgd,bkde->btkge", phi_q, primed["kv"]).flatten(2, 3)
        bottom = torch.einsum("btkgd,bkd->btkg", phi_q, primed["k"]).flatten(2, 3).unsqueeze(-1)
        return _divide(top, bottom).to(q.dtype)

    def path(self, tokens: int) -> str:
        """Name the kernel."""
        return (
            f"{stretched.path(CHUNK)}; the normaliser is a column where nothing is turned"
            if self.site.causal
            else "one sum"
        )

    def on_cuda(self) -> str:
        """Name the kernels that are there, or say why they are not."""
        if not self.site.causal:
            return ""
        return f"the same: {why}" if (why := fla.missing()) else "flash-linear-attention's simple_gla without decay"

    def in_one_graph(self) -> bool:
        """Say whether torch.compile can take it all: not the kernels."""
        return not (self.site.causal and fla.there())

    def _by_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, half: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Compute `causal_sums` of one document a row on CUDA, products in `half`."""
        groups = self.n_heads // self.n_kv_heads
        first = None if before is None else before.repeat_interleave(groups, dim=1)
        top, last = fla.decaying_sums(q, k, v, None, first, half)
        return top.to(v.dtype), last[:, ::groups].to(v.dtype)

    def _turned(self, phi_q: Tensor, phi_k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return the features that meet above the line: turned here, where queries and keys were not."""
        return (context.rotate(phi_q), context.rotate(phi_k)) if self.turns == "itself" else (phi_q, phi_k)

    def _key_features(self, k: Tensor, context: Context) -> Tensor:
        phi_k = self.key_features(k)
        valid = (context.memory_tokens if self.site.cross else context.tokens).valid  # type: ignore[union-attr]
        # phi(0) is not 0: padding is taken out of the sums here.
        return phi_k if valid is None else phi_k * valid[:, :, None, None]

    def _grouped(self, k: Tensor) -> Tensor:
        return k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2)

    def _two_sided(
        self, phi_q: Tensor, phi_k: Tensor, turned_q: Tensor, turned_k: Tensor, v: Tensor, context: Context
    ) -> Tensor:
        doc = context.tokens.doc
        ones = torch.ones_like(v[..., :1])
        if doc is None:
            return _divide(whole_sums(turned_q, turned_k, v), whole_sums(phi_q, phi_k, ones))
        # What a token's document holds is what it sees forwards plus backwards, less itself.
        top, bottom = (
            causal_sums(a, b, c, None, doc)[0]
            + causal_sums(a.flip(1), b.flip(1), c.flip(1), None, doc.flip(1))[0].flip(1)
            - torch.einsum("bthd,bthd,bthe->bthe", a, self._grouped(b), self._grouped(c))
            for a, b, c in ((turned_q, turned_k, v), (phi_q, phi_k, ones))
        )
        return _divide(top, bottom)


def _divide(top: Tensor, bottom: Tensor) -> Tensor:
    """Return top / bottom, 0 where nothing was summed."""
    nothing = bottom <= torch.finfo(bottom.dtype).tiny
    return (top / bottom.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)


def _pairs(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(q.shape[2] // k.shape[2], dim=2))


def whole_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return sum_s (q_t . k_s) v_s over all s: q (B, T, H, D), k (B, S, K, D), v (B, S, K, E) give (B, T, H, E)."""
    grouped = q.unflatten(2, (k.shape[2], -1))
    return torch.einsum("btkgd,bkde->btkge", grouped, torch.einsum("bskd,bske->bkde", k, v)).flatten(2, 3)


def weighed_sums(q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, doc: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what `causal_sums` gives of v with a column of ones, the sums of v divided by that column's."""
    if doc is None and stretched.takes(q):
        q, k = at_least_fp32(q), at_least_fp32(k)  # autocast may have made them less
        first = _first(q, k, v.shape[-1] + 1, before)
        y, last = stretched.weighed_sums(q, k, v, first, _weighed_in_chunks)
        return y, last[:, :: q.shape[2] // k.shape[2]]
    return _weighed(*causal_sums(q, k, F.pad(v, (0, 1), value=1.0), before, doc))


def causal_sums(q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, doc: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return sum_{s <= t} (q_t . k_s) v_s for each t, (B, T, H, E), and sum_s k_s v_s (B, K, D, E) over all s.

    q (B, T, H, D); k (B, T, K, D); v (B, T, K, E). `before` (B, K, D, E) is added to every sum; `doc` (B, T) keeps
    documents apart. On CPU one document a row goes by stretches.
    """
    if doc is None and v.shape[-1] > 1 and stretched.takes(q):
        q, k = at_least_fp32(q), at_least_fp32(k)
        y, last = stretched.fading_sums(q, k, v, None, _first(q, k, v.shape[-1], before), _lasting_in_chunks)
        return y, last[:, :: q.shape[2] // k.shape[2]]
    return in_chunks(q, k, v, before, doc)


def _first(q: Tensor, k: Tensor, width: int, before: Tensor | None) -> Tensor:
    """Return what each head of q is handed, (B, H, D, width), of `before` (B, K, D, width), or nothing."""
    heads = q.shape[2]
    if before is None:
        return q.new_zeros(q.shape[0], heads, q.shape[3], width)
    return before.repeat_interleave(heads // k.shape[2], dim=1)


def _lasting_in_chunks(q: Tensor, k: Tensor, v: Tensor, _: None, first: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `stretched.fading_sums` of what never fades."""
    groups = q.shape[2] // k.shape[2]
    return in_chunks(q, k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2), first, None)


def _weighed_in_chunks(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `stretched.weighed_sums`."""
    return _weighed(*_lasting_in_chunks(q, k, F.pad(v, (0, 1), value=1.0), None, first))


def _weighed(both: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return what was summed, (..., E + 1), divided by its last column, and the sums."""
    return _divide(both[..., :-1], both[..., -1:]), sums


def in_chunks(q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, doc: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute `causal_sums`: within chunks scores are formed, across chunks the (D, E) sums are carried."""
    length = q.shape[1]
    size = size_of_chunks(CHUNK, length) if is_exporting() else max(1, min(CHUNK, length))
    chunks = (length + size - 1) // size
    end = chunks * size - length
    q, k, v = (F.pad(t, (0, 0, 0, 0, 0, end)).unflatten(1, (chunks, size)).transpose(2, 3) for t in (q, k, v))
    if not is_exporting():
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # products copy what is not, each anew
    q = q.unflatten(2, (k.shape[2], -1))  # (B, N, K, G, L, D), keys (B, N, K, L, D)
    tri = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    if doc is not None:
        doc = F.pad(doc, (0, end), value=-1).unflatten(1, (chunks, size))
        tri = (tri & (doc.unsqueeze(-1) == doc.unsqueeze(-2)))[:, :, None, None]
    scores = q @ k.unsqueeze(3).transpose(-1, -2)
    scores = scores.tril() if doc is None and not is_exporting() else scores.masked_fill(~tri, 0.0)
    within = scores @ v.unsqueeze(3)
    if doc is None:
        sums = k.transpose(-1, -2) @ v
        first = sums.new_zeros(sums.shape[:1] + sums.shape[2:]) if before is None else before
        # Shifted before it is summed: taking a chunk out of its own total again would leave a trace of later tokens.
        if chunks and not torch.compiler.is_compiling() and not is_exporting():
            held, last = [], first
            for each in sums.unbind(1):  # the gradient of a cumulative sum turns it around, twice
                held.append(last)
                last = last + each
            carried = torch.stack(held, dim=1)
        else:
            carried = torch.cat([first.unsqueeze(1), sums], dim=1).cumsum(1)
            carried, last = carried[:, :-1], carried[:, -1]
        across = q @ carried.unsqueeze(3)
    else:
        assert before is None, "state and documents never meet"
        carried, last = _carried_apart(k, v, doc)
        reached = (doc == torch.cat([doc[:, :1, :1] - 1, doc[:, :-1, -1:]], dim=1))[:, :, None, None, :, None]
        across = (q @ carried.unsqueeze(3)) * reached
    out = (within + across).flatten(2, 3).transpose(2, 3).flatten(1, 2)
    return out[:, :length], last


def _carried_apart(k: Tensor, v: Tensor, doc: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each chunk is handed, (B, N, K, D, E): the sums of the document that the chunk before ended in."""
    open_ = doc[:, :, -1:]
    sums = (k * (doc == open_)[:, :, None, :, None]).transpose(-1, -2) @ v
    same = torch.cat([torch.zeros_like(open_[:, :1]), (open_[:, 1:] == open_[:, :-1])], dim=1).to(sums.dtype)
    carried, total = [], sums.new_zeros(sums.shape[:1] + sums.shape[2:])
    for i in range(doc.shape[1]):
        carried.append(total)
        total = total * same[:, i, :, None, None] + sums[:, i]
    return torch.stack(carried, dim=1) if carried else sums, total
