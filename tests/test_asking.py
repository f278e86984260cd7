"""Objectives that ask several heads, or make pairs, gaps and choices: what they ask, and that it is learned."""

from __future__ import annotations

import json
import sysconfig
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import transom
from transom.core.losses import IGNORED
from transom.core.rewriting import sentences
from transom.core.vocabulary import Vocabulary, ends_a_sentence
from transom.errors import SpecError
from transom.registry.manager import default
from transom.registry.spec import parse_spec
from transom.training import evaluate

VOCABULARY = Vocabulary(90, pad=0, bos=1, eos=2, mask=3, sentence_ends=(10, 11))
MODEL = """
model:
  topology: {topology}
  d_model: 36
  max_seq_len: 99
  embedding: {{kind: token, vocab_size: 310, n_types: 2, norm: layer}}
  position: learned
  layer: {{placement: post, norm: layer, attention: {{kind: full, n_heads: 3}}, feedforward: {{kind: mlp, d_ff: 50}}}}
  layers: [{{repeat: 2}}]
  norm: none
  {more}
objective: {objective}
data: {{kind: text, path: {path}, seq_len: 61, tokenizer: {{kind: bpe, vocab_size: 300}}}}
train: {{steps: 60, batch_size: 12, lr: 5.0e-3, schedule: constant, eval_every: 0, checkpoint_every: 0}}
"""
WORDS = "{kind: lm, tied: true, bias: true, transform: gelu, norm: layer}"
POOLED = "{kind: classifier, n_classes: 2, pool: first, transform: tanh}"
ENCODER = {"topology": "encoder"}
WRITER = {
    "topology": "{kind: encoder_decoder, share_embedding: true}",
    "more": "decoder: {layer: {cross_attention: {kind: full, n_heads: 3}}}\n  head: {kind: lm, tied: true}",
}
SUM = "{kind: sum, parts: {next: next_sentence, words: {kind: masked_lm, edges: false}}}"
SPECS: dict[str, dict[str, str]] = {
    "sum": ENCODER | {"objective": SUM, "more": f"head: {{words: {WORDS}, next: {POOLED}}}"},
    "next_sentence": ENCODER | {"objective": "next_sentence", "more": f"head: {POOLED}"},
    "masked_lm": ENCODER | {"objective": "masked_lm", "more": f"head: {WORDS}"},
    "replaced_token": ENCODER | {"objective": "replaced_token", "more": "head: {kind: lm, vocab_size: 1, bias: true}"},
    "generated_token": {
        "topology": "{kind: encoder_with_generator, generator_width: 20}",
        "objective": "{kind: generated_token, weight: 5.0}",
        "more": "generator: {layer: {attention: {n_heads: 2}, feedforward: {d_ff: 30}}, layers: [{repeat: 1}]}\n"
        f"  head: {{generated: {WORDS}, replaced: {{kind: lm, vocab_size: 1, bias: true, transform: gelu}}}}",
    },
    "gap_sentences": WRITER | {"objective": "gap_sentences"},
    "infilling": WRITER | {"objective": "{kind: infilling, permute_sentences: true}"},
    "span_corruption": WRITER | {"objective": "{kind: span_corruption, sentinels: 9}"},
    "span_extraction": ENCODER
    | {"objective": "{kind: span_extraction, length: 99}", "more": "head: {kind: lm, vocab_size: 2, bias: true}"},
    "multiple_choice": ENCODER
    | {"objective": "{kind: multiple_choice, length: 99}", "more": f"head: {POOLED.replace('2', '1')}"},
    "seq2seq_classification": WRITER
    | {"objective": "seq2seq_classification", "more": WRITER["more"].replace("{kind: lm, tied: true}", POOLED)},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few modules of the standard library, and with what is asked about it."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "code").mkdir()
    root = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse", "ast", "textwrap", "calendar", "string", "typing"):
        (folder / "code" / f"{name}.py").write_text((root / f"{name}.py").read_text()[:16_000])
    answers: Any = default().get("data", "answers")
    with (folder / "answers.jsonl").open("w") as file:
        for example in islice(answers(answers.Config()).examples(), 600):
            fields = example.fields
            record = {"question": fields["question"], "context": example.key, "answer": fields["answer"]}
            file.write(json.dumps(record | {"start": len(fields["before"])}) + "\n")
    with (folder / "choices.jsonl").open("w") as file:
        for number in range(300):
            several = [f"raise Error({place})" for place in range(3)]
            several.insert(number % 4, "return value")
            file.write(json.dumps({"text": f"def f{number}(value):", "choices": several, "label": number % 4}) + "\n")
    (folder / "topics").mkdir()
    for number in range(120):
        word = ("river", "stone", "cloud")[number % 3]
        (folder / "topics" / f"{number}.txt").write_text(f"{word} {word}. " * 60)
    with (folder / "labels.tsv").open("w") as file:
        for number in range(240):
            file.write(f"{'for each' if number % 2 else 'return'} {number}\t{'loop' if number % 2 else 'end'}\n")
    return folder


def spec_of(name: str, texts: Path, *overrides: str, **changes: str) -> Any:
    data = {
        "next_sentence": f"{{kind: text, path: {texts / 'topics'}, seq_len: 61, ",
        "span_extraction": f"{{kind: answers, path: {texts / 'answers.jsonl'}, seq_len: 40, ",
        "multiple_choice": f"{{kind: choices, path: {texts / 'choices.jsonl'}, seq_len: 60, ",
        "seq2seq_classification": f"{{kind: labelled, path: {texts / 'labels.tsv'}, seq_len: 40, ",
    }.get(name, f"{{kind: text, path: {texts / 'code'}, seq_len: 61, ")
    data += "hold_out: 0.2, tokenizer: {kind: bpe, vocab_size: 300}}"
    text = MODEL.format(path=texts, **SPECS[name] | changes).splitlines()
    return parse_spec("\n".join(f"data: {data}" if line.startswith("data:") else line for line in text), overrides)


def prepared(name: str, options: dict[str, Any], **batch: torch.Tensor) -> Any:
    cls: Any = default().get("objective", name)
    return cls(cls.Config(**options), VOCABULARY).prepare(batch, torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", SPECS)
def test_the_loss_falls(name: str, texts: Path, tmp_path: Path) -> None:
    short = evaluate(transom.train(spec_of(name, texts, "train.steps=1", "train.lr=1.0e-6"), out=tmp_path / "short"))
    long = evaluate(transom.train(spec_of(name, texts), out=tmp_path / "long"))
    assert long["loss"] < 0.93 * short["loss"], (short, long)


def test_a_sentence_is_what_tokens_end() -> None:
    text = torch.tensor([5, 6, 10, 11, 7, 8, 11, 9])
    assert [piece.tolist() for piece in sentences(text, VOCABULARY)] == [[5, 6, 10, 11], [7, 8, 11], [9]]
    assert [len(piece) for piece in sentences(torch.tensor([5, 6, 7, 10]), VOCABULARY)] == [2, 2]
    assert [len(piece) for piece in sentences(torch.tensor([5]), VOCABULARY)] == [1]
    ends = [".", "end.", '?"', "Ċ", "ĠĠĊĊ", "<0x0A>", ".▁", "!)"]
    assert all(map(ends_a_sentence, ends))
    assert not any(map(ends_a_sentence, ["a", ".a", ",", "Ġ", "##s", ""]))


def test_half_of_the_pairs_go_on() -> None:
    rows, length = 64, 41
    ids = torch.arange(12, 12 + length).repeat(rows, 1)
    ids += torch.arange(rows)[:, None] * 100  # of which row a token is
    ids[:, 20] = 10
    made = prepared("next_sentence", {}, input_ids=ids)
    shown, kinds = made.inputs["input_ids"], made.inputs["token_type_ids"]
    assert 20 < int(made.targets.sum()) < 44
    for row in range(rows):
        first = shown[row][kinds[row] == 0].tolist()
        second = shown[row][kinds[row] == 1].tolist()
        assert (first[0], first[-1], second[-1]) == (1, 2, 2)
        assert first[1:-1] == ids[row, :19].tolist()
        wanted = ids[row, 21 : 20 + len(second)].tolist()
        assert (second[:-1] == wanted) == (int(made.targets[row]) == 0)


def test_the_length_does_not_tell_what_goes_on() -> None:
    ids = torch.randint(12, 90, (512, 61), generator=torch.Generator().manual_seed(1))
    ids[torch.rand(512, 61, generator=torch.Generator().manual_seed(2)) < 0.1] = 10
    made = prepared("next_sentence", {}, input_ids=ids)
    lengths = made.inputs["attention_mask"].sum(1).float()
    gone = made.targets.bool()
    assert abs(float(lengths[gone].mean() - lengths[~gone].mean())) < 3 * float(lengths.std()) * (2 / 256) ** 0.5


def test_principal_sentences_are_what_the_others_say() -> None:
    text = torch.tensor([[12, 13, 14, 10, 20, 21, 22, 10, 12, 13, 20, 21, 10, 30, 31, 10]])
    made = prepared("gap_sentences", {"rate": 0.25}, input_ids=text)
    assert made.targets[0].tolist() == [12, 13, 20, 21, 10, 2]
    assert made.inputs["input_ids"][0].tolist() == [*text[0, :8].tolist(), 3, 30, 31, 10, 2]
    first = prepared("gap_sentences", {"rate": 0.5, "choose": "first"}, input_ids=text)
    assert first.targets[0].tolist() == [*text[0, :8].tolist(), 2]
    assert first.inputs["input_ids"][0].tolist() == [3, 3, *text[0, 8:].tolist(), 2]


def test_sentences_come_in_any_order_and_are_asked_for_in_theirs() -> None:
    text = torch.tensor([[12, 13, 10, 20, 21, 10, 30, 31, 10, 40, 41, 10]])
    made = prepared("infilling", {"rate": 0.01, "permute_sentences": True}, input_ids=text)
    shown = made.inputs["input_ids"][0, :-1]
    assert made.targets[0].tolist() == [*text[0].tolist(), 2]
    assert not torch.equal(shown, text[0])
    assert sorted(map(tuple, shown.view(4, 3).tolist())) == sorted(map(tuple, text.view(4, 3).tolist()))


def test_an_answer_is_asked_for_where_it_stands() -> None:
    rows = {"question": [[30, 31, 2]], "before": [[40, 41, 42, 2]], "answer": [[50, 51, 2]], "after": [[60, 2]]}
    batch = {f"{name}_ids": torch.tensor(ids) for name, ids in rows.items()}
    made = prepared("span_extraction", {}, **batch)
    first, last = made.targets[0].tolist()
    assert made.inputs["input_ids"][0, first : last + 1].tolist() == [50, 51]
    cut = prepared("span_extraction", {"length": 9}, **batch)
    assert cut.targets[0].tolist() == [IGNORED, IGNORED]


def test_the_right_choice_stands_anywhere() -> None:
    batch = {"text_ids": torch.full((40, 2), 30), "right_ids": torch.full((40, 1), 50)}
    batch |= {f"wrong_{number}_ids": torch.full((40, 1), 60 + number) for number in (1, 2)}
    made = prepared("multiple_choice", {}, **batch)
    shown = made.inputs["input_ids"].view(40, 3, -1)
    assert set(made.targets.tolist()) == {0, 1, 2}
    assert (shown[torch.arange(40), made.targets] == torch.tensor([1, 30, 30, 2, 50, 2])).all()


def test_a_judge_goes_on_without_its_generator(texts: Path, tmp_path: Path) -> None:
    run = transom.train(spec_of("generated_token", texts, "train.steps=2"), out=tmp_path / "run")
    overrides = ["train.steps=1", "train.lr=1.0e-9", f"train.init={tmp_path / 'run'}"]
    more = "head: {replaced: {kind: lm, vocab_size: 1, bias: true, transform: gelu}}"
    spec = spec_of("generated_token", texts, *overrides, topology="encoder", objective="replaced_token", more=more)
    later = transom.train(spec, out=tmp_path / "later")
    before, after = transom.load(run).state_dict(), transom.load(later).state_dict()
    assert not any(name.startswith("generator") for name in after)
    assert all(torch.allclose(before[name], tensor, atol=1e-6) for name, tensor in after.items())


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("sum", "objective.parts.next=none", "objective.parts.next: "),
        ("sum", "objective.parts.tags=masked_lm", "asks the head 'tags', and the model has 'words', 'next'"),
        ("sum", "objective.parts.next=masked_lm", "model.head.next: head 'classifier' does not compose"),
        ("sum", "objective.parts.words=infilling", "makes rows of its own out of the data: let it come first"),
        ("sum", "objective.weights={tags: 2.0}", "objective.weights: 'tags' is none of the parts"),
        ("sum", "objective=generated_token", "it trains the stack 'generator', which the topology has not"),
        ("gap_sentences", "objective.choose=best", "objective.choose: "),
    ],
)
def test_what_does_not_fit_is_refused_where_it_stands(name: str, override: str, message: str, texts: Path) -> None:
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        transom.compose(spec_of(name, texts, override), "meta")
