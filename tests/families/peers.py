"""Small published models made by transformers, and how they are held against the same models here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transom.interop import export_checkpoint, import_checkpoint, import_run

TOLERANCE = 1e-5  # of the largest magnitude, fp32
MEASURED: dict[str, float] = {}
"""By `model_type`: the largest error so far."""


EMBEDDINGS = ("emb", "wte", "wpe", "shared.")
SCORING = ("q_proj", "k_proj", "q_b_proj", "kv_b_proj", "q_norm", "k_norm", "c_attn", "query", "key", "qkv")


def sharpened(model: nn.Module) -> Any:
    """Return a model with weights so large that its scores spread, and with no vector left at plain zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                width = 1.0 if any(part in name for part in EMBEDDINGS) else min(weight.shape[-2:])
                weight.copy_(noise * width**-0.5)
            else:
                weight.add_(0.3 * noise)
            if any(part in name for part in SCORING):
                weight.mul_(2.0)
        saved = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in saved and buffer.is_floating_point():
                buffer.add_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model.eval()


def apart(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest magnitude."""
    assert found.shape == wanted.shape
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def spread(theirs: Any, ids: Tensor) -> float:
    """Return the smallest standard deviation of any layer's scores, read off the logarithms of its weights."""
    implementation = theirs.config._attn_implementation
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        weights = theirs(input_ids=ids, output_attentions=True).attentions
    theirs.set_attn_implementation(implementation)
    # A row's logarithms are its scores less the same number for all.
    rows = [[row[row.isfinite()].var() for row in layer[:, :, -1].log().flatten(0, 1)] for layer in weights]
    return min(torch.stack(layer).mean().sqrt().item() for layer in rows)


def parity(theirs: Any, folder: Path, *, length: int = 23, attention: str = "sdpa") -> float:
    """Return the largest error of all that is compared, and check that it is small; the model stays in `folder`.

    Compared: logits and last hidden states, plain and with padding on both sides; 16 steps with a state; and the
    weights, bit for bit, on their way back.
    """
    theirs.set_attn_implementation(attention)
    theirs.save_pretrained(folder / "hf")
    _, ours = import_checkpoint(folder / "hf")
    ids = torch.randint(theirs.config.vocab_size, (3, length), generator=torch.Generator().manual_seed(2))
    assert spread(theirs, ids) > 2, spread(theirs, ids)
    errors = [*_passes(theirs, ours, ids), _steps(ours, ids)]
    assert _gradients(theirs, ours, ids) < 10 * TOLERANCE
    back = export_checkpoint(import_run(folder / "hf", None, folder / "run"), folder / "back")
    again = type(theirs).from_pretrained(back).state_dict()
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.state_dict().items())
    return checked(theirs, errors)


def checked(theirs: Any, errors: list[float]) -> float:
    """Return the largest of the errors of a model, and check that it is small; `MEASURED` keeps the type's worst."""
    worst, kind = max(errors), str(theirs.config.model_type)
    assert worst < TOLERANCE, errors
    MEASURED[kind] = max(worst, MEASURED.get(kind, 0.0))
    return worst


@torch.no_grad()
def _passes(theirs: Any, ours: Any, ids: Tensor) -> list[float]:
    """Return the errors of whole passes."""
    length = ids.shape[1]
    lengths = torch.tensor([length, length - 6, 9])
    column = torch.arange(length)
    right = (column < lengths[:, None]).long()
    errors = []
    for mask in (torch.ones_like(ids), right, right.flip(1)):
        places = (mask.cumsum(1) - 1).clamp(min=0)
        wanted = theirs(input_ids=ids, attention_mask=mask, position_ids=places, output_hidden_states=True)
        found = ours(input_ids=ids, attention_mask=mask)
        real = mask.bool()
        errors.append(apart(found.logits[real], wanted.logits[real]))
        errors.append(apart(found.hidden[real], wanted.hidden_states[-1][real]))
    return errors


def _gradients(theirs: Any, ours: Any, ids: Tensor) -> float:
    """Return how far the gradients of the embedding are apart, the peer's padding left out: it has none there."""
    asked = torch.randn(theirs.config.vocab_size, generator=torch.Generator().manual_seed(3))
    tables = theirs.get_input_embeddings(), ours.decoder.embedding
    for model, table in zip((theirs, ours), tables, strict=True):
        table.weight.grad = None
        (model(input_ids=ids).logits @ asked).sum().backward()
    real = torch.arange(len(tables[0].weight)) != tables[0].padding_idx
    return apart(tables[1].weight.grad[real], tables[0].weight.grad[real])


@torch.no_grad()
def _steps(ours: Any, ids: Tensor) -> float:
    """Return how far 16 steps after a prompt are from the whole pass."""
    whole, start = ours(input_ids=ids).logits, ids.shape[1] - 16
    out = ours(input_ids=ids[:, :start], state=ours.empty_state(len(ids)))
    logits = [out.logits]
    for column in range(start, ids.shape[1]):
        out = ours(input_ids=ids[:, column : column + 1], state=out.state)
        logits.append(out.logits)
    return apart(torch.cat(logits, 1), whole)


def changed(folder: Path, ids: Tensor, *overrides: str) -> float:
    """Return how far a model is from itself with some options changed: what a parity test would see."""
    from transom.interop import family_spec

    _, ours = import_checkpoint(folder / "hf")
    _, other = import_checkpoint(folder / "hf", family_spec(folder / "hf", overrides))
    with torch.no_grad():
        return apart(other(input_ids=ids).logits, ours(input_ids=ids).logits)
