"""Objectives that make their own questions out of plain text: what they ask, and that specs train with them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import transom
from transom.core.losses import IGNORED
from transom.core.vocabulary import Vocabulary
from transom.errors import SpecError
from transom.registry.manager import default
from transom.registry.spec import parse_spec
from transom.training import evaluate

SIZE = 61
VOCABULARY = Vocabulary(SIZE, pad=0, bos=1, eos=2, mask=3)

MODEL = """
name: pretraining
model:
  topology: {topology}
  d_model: 24
  max_seq_len: 40
  embedding: {{kind: token, vocab_size: {vocab_size}}}
  position: rope
  layer: {{norm: rms, attention: {{kind: full, n_heads: 2}}, feedforward: {{kind: mlp, d_ff: 30}}}}
  layers: [{{repeat: 1}}]
  norm: rms
  {more}
objective: {objective}
data: {{kind: text, path: {path}, seq_len: 32, hold_out: 0.3, tokenizer: {{kind: bpe, vocab_size: 280}}}}
train: {{steps: 100, batch_size: 8, lr: 1.0e-2, schedule: constant, eval_every: 100, checkpoint_every: 0}}
"""
WRITER = """decoder: {layer: {cross_attention: {kind: full, n_heads: 2}}}
  head: {kind: lm, tied: true}"""
TELLER = "head: {kind: lm, vocab_size: 1, bias: true, transform: gelu}"


def spec_of(folder: Path, **options: object) -> str:
    """Return a spec that reads sentences in which each word says which one follows."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(3)
    words = ["river", "stone", "cloud", "forest", "window", "garden"]
    for number in range(40):
        start = draw.randrange(6)
        (folder / f"{number}.txt").write_text(" ".join(words[(start + place) % 6] for place in range(60)))
    return MODEL.format(path=folder, **options)


def prepared(name: str, options: dict[str, Any], ids: torch.Tensor, **more: torch.Tensor) -> Any:
    cls: Any = default().get("objective", name)
    objective = cls(cls.Config(**options), VOCABULARY)
    return objective.prepare({"input_ids": ids, **more}, torch.Generator().manual_seed(4))


def restored(source: list[int], target: list[int]) -> list[int]:
    """Return a text with its spans back in their places."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= SIZE:
            spans[token] = here = []
        else:
            here.append(token)
    assert source[-1] == target[-1] == VOCABULARY.eos
    assert sorted(spans) == [SIZE + number for number in range(len(spans))]
    assert all(spans.values())
    return [each for token in source[:-1] for each in (spans.pop(token) if token >= SIZE else [token])]


@pytest.mark.parametrize(("rate", "span"), [(0.15, 3.0), (0.5, 1.0), (0.3, 7.5)])
def test_spans_put_back_give_the_text(rate: float, span: float) -> None:
    options = {"rate": rate, "span": span, "sentinels": 9}
    ids = torch.randint(4, SIZE, (5, 43))
    mask = (torch.arange(43) < torch.tensor([[43], [20], [7], [2], [1]])).long()
    made = prepared("span_corruption", options, ids, attention_mask=mask)
    for row in range(5):
        source = made.inputs["input_ids"][row][made.inputs["attention_mask"][row].bool()].tolist()
        target = made.targets[row][made.targets[row] != IGNORED].tolist()
        text = ids[row][mask[row].bool()].tolist()
        assert restored(source, target) == text
        cut = sum(token < SIZE for token in target[:-1])
        assert cut == min(max(round(rate * len(text)), 1), len(text) - 1)


@pytest.mark.parametrize(("rate", "span"), [(0.3, 3.0), (0.6, 1.0), (0.5, 8.0)])
def test_each_mask_stands_for_some_tokens(rate: float, span: float) -> None:
    ids = torch.randperm(200)[None] + SIZE  # no token twice: what is shown says where it stood
    made = prepared("infilling", {"rate": rate, "span": span}, ids)
    source, target = made.inputs["input_ids"][0].tolist(), made.targets[0].tolist()
    assert target == [*ids[0].tolist(), VOCABULARY.eos]
    shown = [token for token in source if token != VOCABULARY.mask]
    assert shown == [token for token in target if token in set(shown)]
    assert len(shown) == 1 + 200 - round(200 * rate)
    gone = [len(run) for run in runs(source, target)]
    assert len(gone) == source.count(VOCABULARY.mask)
    assert (0 in gone) == (span < 5)
    assert 0.6 * span < sum(gone) / len(gone) < 1.6 * span


def runs(source: list[int], target: list[int]) -> list[list[int]]:
    """Return what each mask of a source stands for."""
    found, rest = [], iter(target)
    for place, token in enumerate(source):
        if token == VOCABULARY.mask:
            following = next(each for each in source[place + 1 :] if each != VOCABULARY.mask)
            found.append([])
            while (each := next(rest)) != following:
                found[-1].append(each)
            rest = itertools.chain([following], rest)
        else:
            assert next(rest) == token
    return found


def test_of_a_shared_row_the_first_document_is_read() -> None:
    ids, doc = torch.arange(4, 44)[None], torch.tensor([[0] * 13 + [1] * 27])
    made = prepared("span_corruption", {}, ids, document_ids=doc)
    assert restored(made.inputs["input_ids"][0].tolist(), made.targets[0].tolist()) == list(range(4, 17))


def test_what_is_asked_of_each_token_is_whether_it_was_replaced() -> None:
    ids, mask = torch.randint(4, SIZE, (6, 50)), torch.ones(6, 50, dtype=torch.int64)
    mask[3:, -11:] = 0
    made = prepared("replaced_token", {"rate": 0.3}, ids, attention_mask=mask)
    shown, real = made.inputs["input_ids"], mask.bool()
    assert torch.equal((shown != ids)[real], made.targets[real] == 1)
    assert torch.equal(shown[~real], ids[~real])
    assert (made.targets[~real] == IGNORED).all()
    assert 0.2 < (made.targets[real] == 1).float().mean() < 0.4


def test_the_last_of_an_order_are_asked_for_by_its_share_of_each_row() -> None:
    ids, mask = torch.randint(4, SIZE, (5, 60)), torch.ones(5, 60, dtype=torch.int64)
    mask[1, 20:], mask[2, :55], mask[3, 1:], mask[4] = 0, 0, 0, 0
    made = prepared("permuted_lm", {"rate": 0.25}, ids, attention_mask=mask)
    assert (made.targets != IGNORED).sum(1).tolist() == [15, 5, 1, 1, 0]
    assert torch.equal(made.targets != IGNORED, made.mask.bool())
    for row in range(5):
        columns = made.inputs["asked"][row][made.mask[row].bool()]
        assert mask[row, columns].all()
        assert made.inputs["order"][row, columns].tolist() == list(range(2, 2 + len(columns)))
        assert (made.inputs["order"][row] == 1).sum() == 60 - len(columns)
    whole = prepared("permuted_lm", {"rate": 1.0}, ids)
    assert whole.inputs["order"].sort(1).values.tolist() == [list(range(2, 62))] * 5


WRITING = "{kind: encoder_decoder, share_embedding: true}"


@pytest.mark.parametrize(
    "options",
    [
        {"topology": "encoder", "objective": "{kind: replaced_token, rate: 0.3}", "vocab_size": 280, "more": TELLER},
        {"topology": WRITING, "objective": "{kind: span_corruption, sentinels: 20}", "vocab_size": 300, "more": WRITER},
        {"topology": WRITING, "objective": "infilling", "vocab_size": 280, "more": WRITER},
        {"topology": "encoder", "objective": "permuted_lm", "vocab_size": "280, blank: true", "more": "head: lm"},
    ],
    ids=["replaced_token", "span_corruption", "infilling", "permuted_lm"],
)
def test_a_spec_trains_on_plain_text(tmp_path: Path, options: dict[str, Any]) -> None:
    spec = spec_of(tmp_path / "text", **options)
    short = evaluate(transom.train(parse_spec(spec, ["train.steps=1"]), out=tmp_path / "short"))
    long = evaluate(transom.train(parse_spec(spec), out=tmp_path / "long"))
    assert long["loss"] < 0.7 * short["loss"], (long, short)
    assert "bits_per_byte" not in long


def test_a_table_without_room_for_sentinels_is_refused(tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "text", topology=WRITING, objective="span_corruption", vocab_size=300, more=WRITER)
    with pytest.raises(SpecError, match="100 of the objective among them"):
        transom.train(parse_spec(spec), out=tmp_path / "run")
