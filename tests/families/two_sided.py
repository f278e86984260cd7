"""How encoders and encoder-decoders made by transformers are held against the same models here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from peers import apart, checked
from torch import Tensor

from transom.interop import export_checkpoint, import_checkpoint, import_run

LENGTHS = (23, 17, 9)


EMBEDDINGS = re.compile(r"emb|shared|transformer\.w\.")
SCORING = re.compile(r"query|key|Wqkv|[qk]_proj|\.[qk]\.|\.W[qk]\.")


@torch.no_grad()
def sharpened(model: Any, by: float = 2.0) -> Any:
    """Return a model with weights so large that its scores spread, and with no vector left at plain zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:  # positions that are no weights
            continue
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() > 1:
            weight.copy_(noise if EMBEDDINGS.search(name) else noise * min(weight.shape) ** -0.5)
        else:
            weight.add_(0.3 * noise)
        if SCORING.search(name):
            weight.mul_(by)
    for name, weight in model.named_buffers():
        if name == "final_logits_bias":
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model.eval()


def drawn(high: int, length: int, seed: int) -> Tensor:
    """Draw ids (3, T) below `high`; 0 to 3 are left to padding and other special tokens."""
    return torch.randint(min(4, high - 1), high, (3, length), generator=torch.Generator().manual_seed(seed))


def masks(length: int) -> tuple[Tensor, Tensor]:
    """Return masks (3, T) of rows that are padded right, and left."""
    lengths = torch.tensor([count * length // LENGTHS[0] for count in LENGTHS])
    right = (torch.arange(length) < lengths[:, None]).long()
    return right, right.flip(1)


def heads_of(logits: Any, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return logits by what the peer's output calls them; a model of one head gives them without its name."""
    several = logits if isinstance(logits, dict) else {next(iter(names)): logits}
    return {names[own]: each for own, each in several.items()}


def given_by(out: Any, name: str) -> Tensor:
    """Return what the peer's output has under a name; several, joined by +, are the columns of one tensor."""
    several = [out[each] for each in name.split("+")]
    return several[0] if len(several) == 1 else torch.stack(several, -1)


def spread(found: Any) -> float:
    """Return the smallest standard deviation of any layer's scores, read off the logarithms of its weights."""
    kinds = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    layers = [layer[:, :, -1].log().flatten(0, 1) for kind in kinds for layer in getattr(found, kind, None) or ()]
    # A row's logarithms are its scores less the same number for all.
    return min(torch.stack([row[row.isfinite()].var() for row in layer]).mean().sqrt().item() for layer in layers)


def there_and_back(theirs: Any, folder: Path, unread: Set[str] = frozenset()) -> Any:
    """Return the imported model, and check that its weights go back bit for bit, but those that the peer never reads.

    `unread`: these, by name.
    """
    theirs.save_pretrained(folder / "hf")
    _, ours = import_checkpoint(folder / "hf")
    back = export_checkpoint(import_run(folder / "hf", None, folder / "run"), folder / "back")
    again = theirs.from_pretrained(back).state_dict()
    assert again.keys() == theirs.state_dict().keys()
    assert unread <= again.keys()
    assert all(torch.equal(again[name], there) for name, there in theirs.state_dict().items() if name not in unread)
    return ours


def spreads(theirs: Any, **inputs: Tensor) -> float:
    """Return the spread of the peer's scores, which its slow path alone gives."""
    fast = theirs.config._attn_implementation
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        found = spread(theirs(**inputs, output_attentions=True))
    theirs.set_attn_implementation(fast)
    return found


@torch.enable_grad()
def gradients(theirs: Any, ours: Any, names: Mapping[str, str], inputs: Mapping[str, Tensor]) -> float:
    """Return how far the gradients of the tables of tokens are apart, for the same gradient of all logits."""
    wanted, found = theirs(**inputs), ours(**inputs)
    pairs = [(each, given_by(wanted, name)) for name, each in heads_of(found.logits, names).items()]
    for mine, other in pairs or [(found.hidden, given_by(wanted, "last_hidden_state"))]:
        push = torch.randn(mine.shape, generator=torch.Generator().manual_seed(5))
        (mine * push).sum().backward(retain_graph=True)
        (other.reshape(push.shape) * push).sum().backward(retain_graph=True)
    first = getattr(ours, next(iter(ours.stacks)))
    table = theirs.get_input_embeddings().weight
    if table.grad is None:  # what stands for the tables of both stacks where these are one, and for none where not
        table = theirs.get_encoder().embed_tokens.weight
    found, there = first.embedding.weight.grad, table.grad
    kept = there.abs().sum(1) > 0  # the peer gives padding's vector none
    return apart(found[kept], there[kept])


@torch.no_grad()
def encoder_parity(
    theirs: Any,
    folder: Path,
    highs: Mapping[str, int],
    names: Mapping[str, str],
    length: int = LENGTHS[0],
    unread: Set[str] = frozenset(),
) -> float:
    """Return the largest error of hidden states and logits, plain and padded on both sides, and check that it is small.

    `highs`: inputs by name, with what their ids are below. `names`: our heads -> the peer's outputs. Rows that are
    padded left are compared with the peer's own rows without padding, whose positions they have here.
    """
    ours = there_and_back(theirs, folder, unread)
    inputs = {name: drawn(high, length, seed) for seed, (name, high) in enumerate(highs.items())}
    assert (found := spreads(theirs, **inputs)) > 2, found
    errors = []
    plain = torch.ones(3, length, dtype=torch.int64)
    for mask in (plain, *masks(length)):
        found = ours(**inputs, attention_mask=mask)
        for row in range(3):
            real = mask[row].bool()
            alone = {name: ids[row : row + 1, real] for name, ids in inputs.items()}
            wanted = theirs(**alone, output_hidden_states=True)
            errors.append(apart(found.hidden[row, real], wanted.hidden_states[-1][0]))
            for name, logits in heads_of(found.logits, names).items():
                mine = logits[row][real] if logits.dim() == 3 else logits[row]
                errors.append(apart(mine, given_by(wanted, name)[0].reshape(mine.shape)))
        right = theirs(**inputs, attention_mask=mask)  # the peer's own masks, where its positions are ours
        if not bool(mask[:, 0].eq(0).any()):
            for name, logits in heads_of(found.logits, names).items():
                kept = mask.bool() if logits.dim() == 3 else slice(None)
                errors.append(apart(logits[kept], given_by(right, name).reshape(logits.shape)[kept]))
    error = gradients(theirs, ours, names, inputs)
    assert error < 1e-4, error
    return checked(theirs, errors)


@torch.no_grad()
def seq2seq_parity(
    theirs: Any,
    folder: Path,
    vocab_size: int,
    source: int = LENGTHS[0],
    target: int = 19,
    unread: Set[str] = frozenset(),
) -> float:
    """Return the largest error of hidden states and logits, padded and not, and of steps; check that it is small."""
    ours = there_and_back(theirs, folder, unread)
    ids, written = drawn(vocab_size, source, 2), drawn(vocab_size, target, 3)
    assert (found := spreads(theirs, input_ids=ids, decoder_input_ids=written)) > 2, found
    errors = []
    for mask in (torch.ones_like(ids), *masks(source)):
        given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": written}
        found = ours(**given)
        for row in range(3):
            alone = {"input_ids": ids[row : row + 1, mask[row].bool()], "decoder_input_ids": written[row : row + 1]}
            wanted = theirs(**alone, output_hidden_states=True)
            errors.append(apart(found.hidden[row], wanted.decoder_hidden_states[-1][0]))
            errors.append(apart(found.logits[row], wanted.logits[0]))
        if not bool(mask[:, 0].eq(0).any()):
            errors.append(apart(found.logits, theirs(**given).logits))
        state, logits = ours.start(input_ids=ids, attention_mask=mask), []
        for piece in written.split([target - 16, *[1] * 16], dim=1):
            out = ours(decoder_input_ids=piece, state=state)
            state, logits = out.state, [*logits, out.logits]
        errors.append(apart(torch.cat(logits, 1), found.logits))
    right = masks(target)[0]
    found = ours(input_ids=ids, decoder_input_ids=written, decoder_attention_mask=right)
    wanted = theirs(input_ids=ids, decoder_input_ids=written, decoder_attention_mask=right)
    errors.append(apart(found.logits[right.bool()], wanted.logits[right.bool()]))
    given = {"input_ids": ids, "decoder_input_ids": written}
    error = gradients(theirs, ours, {"head": "logits"}, given)
    assert error < 1e-4, error
    return checked(theirs, errors)


@torch.no_grad()
def broken_by(folder: Path, inputs: Mapping[str, int], *overrides: str) -> dict[str, float]:
    """Return how far each override alone takes a model from itself: what a parity test would see."""
    from transom.interop import family_spec

    drawn_inputs = {name: drawn(high, 17, seed) for seed, (name, high) in enumerate(inputs.items())}
    _, ours = import_checkpoint(folder / "hf")
    found = {}
    for override in overrides:
        _, other = import_checkpoint(folder / "hf", family_spec(folder / "hf", [override]))
        found[override] = apart(other(**drawn_inputs).hidden, ours(**drawn_inputs).hidden)
    return found
