"""Prepared data: the split, the tokenizer, and batches that follow from their number alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.core.data import Data, DataConfig, Example, ImageField, LabelField, TextField, TokenizerOptions
from transom.data import Dataset, Tokenizer, load_tokenizer, prepare
from transom.data import tokens as storage
from transom.data.survey import is_held_out
from transom.errors import DataError, PluginError

Batch = dict[str, np.ndarray[Any, Any]]
OPTIONS: dict[str, Any] = {"hold_out": 0.2, "seq_len": 11, "tokenizer": TokenizerOptions(vocab_size=280)}
WORDS = ("alpha", "beta", "gamma", "delta", "épsilon", "字", "<|end|>", "\n", "(x)")


def sentences(count: int, longest: int = 60) -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS, int(rng.integers(1, longest)))) for _ in range(count)]


class Lines(Data):
    """Give sentences as a stream."""

    rows = "stream"
    fields = {"text": TextField()}  # noqa: RUF012
    texts: tuple[str, ...] = tuple(sentences(331))

    def examples(self) -> Iterator[Example]:
        for number, text in enumerate(self.texts):
            yield Example(f"{number}", {"text": text})


class Captions(Data):
    """Give images with a caption and a label, as another package might."""

    fields = {"image": ImageField(), "text": TextField(), "kind": LabelField("kind_labels")}  # noqa: RUF012

    def examples(self) -> Iterator[Example]:
        for number, text in enumerate(sentences(97, 9)):
            image = np.full((3, 2, 5), number, np.float32)
            yield Example(text, {"image": image, "text": text, "kind": (10, 9, 100)[number % 3]})


class Mapped(Data):
    """Give pairs that a model opens by itself."""

    fields = {"target": TextField("target_ids", "target_mask", opened=False)}  # noqa: RUF012

    def examples(self) -> Iterator[Example]:
        for number, text in enumerate(sentences(53)):
            yield Example(f"{number}", {"target": text})


def lines(out: Path, seed: int = 3, **options: Any) -> Dataset:
    return prepare(Lines(DataConfig(**{**OPTIONS, **options})), out, lookahead=1, seed=seed)


def same(first: Batch, second: Batch) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return lines(tmp_path_factory.mktemp("lines"))


def test_a_batch_follows_from_its_number(dataset: Dataset, tmp_path: Path) -> None:
    epoch = dataset.batches_per_epoch(7)
    wanted = [0, 1, epoch - 1, epoch, 3 * epoch + 2]
    batches = {number: dataset.batch(number, 7) for number in wanted}
    other = lines(tmp_path)
    assert all(same(batches[number], other.batch(number, 7)) for number in reversed(wanted))
    assert not same(batches[0], batches[epoch])
    assert not same(batches[0], lines(tmp_path, seed=4).batch(0, 7))


def test_an_epoch_shows_rows_once_and_every_row_in_time(dataset: Dataset) -> None:
    size, epoch = 7, dataset.batches_per_epoch(7)
    rows = len(dataset.train_rows.uneven)
    assert epoch == rows // size
    seen = dataset._epoch(0, size).ravel()
    assert len(set(seen.tolist())) == epoch * size
    assert {row for number in range(9) for row in dataset._epoch(number, size).ravel().tolist()} == set(range(rows))


def test_batches_need_masks_only_where_rows_are_packed(dataset: Dataset) -> None:
    names = [set(dataset.batch(number, 7)) for number in range(dataset.batches_per_epoch(7))]
    plain = names.count({"input_ids"})
    full = int((~dataset.train_rows.uneven).sum())
    assert 5 < full // 7 - 1 <= plain < len(names)
    assert all("document_ids" in each for each in names if each != {"input_ids"})
    packed = [len(each) > 1 for each in names]
    assert packed != sorted(packed)  # their place in the epoch is drawn
    assert all(dataset.batch(number, 7)["input_ids"].shape == (7, 12) for number in range(len(names)))


def test_processes_share_a_batch(dataset: Dataset) -> None:
    for number in range(0, dataset.batches_per_epoch(6), 5):
        parts = [dataset.batch(number, 2, rank, world=3) for rank in range(3)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert same(joined, dataset.batch(number, 6))


def test_more_rows_than_there_are_is_refused(dataset: Dataset) -> None:
    rows = len(dataset.train_rows.uneven)
    with pytest.raises(DataError, match=rf"batch_size: {rows + 1} .* takes {rows + 1} rows, .* has {rows}: lower"):
        dataset.batch(0, rows + 1)


def test_the_held_out_text_is_whole(dataset: Dataset) -> None:
    assert dataset.tokenizer is not None
    lengths = dataset.tokenizer.byte_lengths()
    asked = rows = 0
    for batch in dataset.held_out(5):
        ids = batch["input_ids"]
        documents = batch.get("document_ids", np.zeros_like(ids))
        real = (documents[:, 1:] == documents[:, :-1]) & (batch.get("attention_mask", np.ones_like(ids))[:, 1:] == 1)
        asked += int(lengths[ids[:, 1:]][real].sum())
        rows += len(ids)
    texts = [text for number, text in enumerate(Lines.texts) if is_held_out(f"{number}", 0.2)]
    report = dataset.report
    assert texts == list(dataset.held_out_texts("text"))
    assert asked == sum(len(text.encode()) for text in texts) == report.held_out.bytes
    assert dict(report.text_bytes) == {"input_ids": asked}
    assert rows == report.held_out.rows
    assert report.train.examples + len(texts) == len(Lines.texts)
    assert report.train.bytes + asked == sum(len(text.encode()) for text in Lines.texts)
    assert f"held out: {len(texts)} examples, {asked:,} bytes" in str(report)


def test_the_split_looks_at_the_key_alone() -> None:
    keys = [f"folder/{number}.txt" for number in range(20_000)]
    share = np.mean([is_held_out(key, 0.04) for key in keys])
    assert abs(share - 0.04) < 0.005
    assert {key for key in keys if is_held_out(key, 0.04)} < {key for key in keys if is_held_out(key, 0.1)}
    assert [is_held_out(key, 0.5) for key in "abcdefgh"] == [is_held_out(key, 0.5) for key in "abcdefgh"[::-1]][::-1]


def test_the_tokenizer_sees_the_training_side_alone(dataset: Dataset, tmp_path: Path) -> None:
    other = Lines(DataConfig(**OPTIONS))
    other.texts = tuple("qq" * 99 if is_held_out(f"{at}", 0.2) else text for at, text in enumerate(Lines.texts))
    trained = prepare(other, tmp_path, lookahead=1, seed=3).tokenizer
    assert trained is not None
    assert dataset.tokenizer is not None
    assert trained.to_json() == dataset.tokenizer.to_json()


def test_tokens_on_disk_give_the_same_batches(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(storage, "TOGETHER", 50)
    mapped = lines(tmp_path)
    assert list((tmp_path / "tokens").rglob("*.arrow"))
    assert all(same(mapped.batch(number, 7), dataset.batch(number, 7)) for number in range(60))
    assert all(same(*both) for both in zip(mapped.held_out(4), dataset.held_out(4), strict=True))
    assert mapped.report == dataset.report
    monkeypatch.setattr(storage, "encode", lambda *_: pytest.fail("the stored tokens were not used"))
    assert same(lines(tmp_path).batch(9, 7), dataset.batch(9, 7))


def test_a_run_keeps_its_tokenizer_and_its_data(dataset: Dataset, tmp_path: Path) -> None:
    lines(tmp_path)
    stored = (tmp_path / "tokenizer.json").read_bytes()
    again = lines(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == stored
    assert same(again.batch(5, 7), dataset.batch(5, 7))
    assert dataset.tokenizer is not None
    assert load_tokenizer(tmp_path).to_json() == dataset.tokenizer.to_json()
    record = json.loads((tmp_path / "data.json").read_text())
    assert record["held_out"]["bytes"] == dataset.report.held_out.bytes
    with pytest.raises(DataError, match=r"vocab_size: 270 is less than the tokenizer's 280 .*stored in"):
        lines(tmp_path, tokenizer=TokenizerOptions(vocab_size=270))
    changed = Lines(DataConfig(**OPTIONS))
    changed.texts = (*Lines.texts[:-1], "another")
    with pytest.raises(DataError, match="data is not what this run began with"):
        prepare(changed, tmp_path, lookahead=1, seed=3)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(DataError, match=r"data\.json: can't be read as the record"):
        lines(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: is no tokenizer"):
        lines(tmp_path)


def test_a_tokenizer_from_elsewhere_is_taken(tmp_path: Path) -> None:
    given = Tokenizer.train(["zzzz zzzz"] * 9, 262)
    taken = prepare(Lines(DataConfig(**OPTIONS)), tmp_path, lookahead=0, seed=1, tokenizer=given)
    assert taken.tokenizer is given
    assert load_tokenizer(tmp_path).to_json() == given.to_json()


def test_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number, text in enumerate(sentences(150)):
        (tmp_path / "corpus" / f"{number}.txt").write_text(text, encoding="utf-8")
    code = (
        "import hashlib, sys; from pathlib import Path; from transom.core.data import TokenizerOptions\n"
        "from transom.data import prepare; torch = 'torch' in sys.modules\n"
        "from transom.plugins.data.text import TextData\n"
        "bpe = TokenizerOptions(vocab_size=277)\n"
        "options = TextData.Config(path='corpus', seq_len=9, hold_out=0.2, tokenizer=bpe)\n"
        "data = prepare(TextData(options), Path(sys.argv[1]), lookahead=1, seed=5)\n"
        "digest = hashlib.sha256(data.tokenizer.to_json().encode())\n"
        "for batch in [*(data.batch(i, 4) for i in range(50)), *data.held_out(3)]:\n"
        "    [digest.update(name.encode() + array.tobytes()) for name, array in batch.items()]\n"
        "print(digest.hexdigest(), torch)\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, f"run{seed}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed, threads in (("1", "1"), ("2", "3"))
    ]
    assert said[0] == said[1]
    assert said[0][1] == "False"


def test_any_declared_fields_make_batches(tmp_path: Path) -> None:
    options = {**OPTIONS, "seq_len": 8}
    captions = prepare(Captions(DataConfig(**options)), tmp_path, lookahead=1, seed=2)
    assert captions.report.classes == ("9", "10", "100")
    assert captions.report.train.cut + captions.report.held_out.cut > 9
    assert captions.tokenizer is not None
    batch = captions.batch(4, 13)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "pixel_values": ((13, 3, 2, 5), "float32"),
        "input_ids": ((13, 8), "int64"),
        "attention_mask": ((13, 8), "int64"),
        "kind_labels": ((13,), "int64"),
    }
    for row in range(13):
        number = int(batch["pixel_values"][row, 0, 0, 0])
        length = int(batch["attention_mask"][row].sum())
        text = captions.tokenizer.encode(sentences(97, 9)[number])
        assert batch["kind_labels"][row] == (1, 0, 2)[number % 3]
        assert batch["input_ids"][row, :length].tolist() == [0, *text, 0][:8]
        assert (batch["input_ids"][row, length:] == captions.tokenizer.vocabulary.pad).all()
        assert batch["attention_mask"][row, :length].all()
    held = [each["input_ids"] for each in captions.held_out(1)]
    kept = sum(int(captions.tokenizer.byte_lengths()[ids].sum()) for ids in held)
    assert captions.report.text_bytes == {"input_ids": kept}
    assert kept < captions.report.held_out.bytes


def test_widths_follow_the_longest_of_the_batch_and_texts_may_be_unopened(tmp_path: Path) -> None:
    mapped = prepare(Mapped(DataConfig(**{**OPTIONS, "seq_len": 500})), tmp_path, lookahead=1, seed=2)
    assert mapped.tokenizer is not None
    batch = mapped.batch(0, 3)
    lengths = batch["target_mask"].sum(1)
    assert batch["target_ids"].shape == (3, lengths.max())
    texts = {text: mapped.tokenizer.encode(text) for text in sentences(53)}
    for ids, length in zip(batch["target_ids"], lengths, strict=True):
        assert [*texts[mapped.tokenizer.decode(ids)], 0] == ids[:length].tolist()
    parts = [mapped.batch(0, 1, rank, world=3) for rank in range(3)]
    assert np.array_equal(np.concatenate([part["target_ids"] for part in parts]), batch["target_ids"])


class Wrong(Data):
    """Break the contract in one way or another."""

    def __init__(self, config: DataConfig, fields: dict[str, Any], *given: dict[str, Any]) -> None:
        super().__init__(config)
        self.fields = fields
        self.given = given

    def examples(self) -> Iterator[Example]:
        for number, fields in enumerate(self.given):
            yield Example(f"{number}", fields)


@pytest.mark.parametrize(
    ("fields", "given", "said"),
    [
        ({"label": LabelField()}, [], "`wrong` gives no examples"),
        ({"label": LabelField()}, [{"label": 1}], "of 1 examples with hold_out 0.5, none is"),
        ({"label": LabelField()}, [{"text": "a"}], r"example '0': gives \['text'\], not the declared \['label'\]"),
        ({"label": LabelField()}, [{"label": 0.5}], "`label` is of type float: it must be str or int"),
        (
            {"image": ImageField()},
            [{"image": np.zeros((1, 2, 2))}, {"image": np.zeros((1, 2, 3))}],
            r"example '1': `image` is \(1, 2, 3\), the first is \(1, 2, 2\)",
        ),
        ({"text": TextField()}, [{"text": "a"}], "data.seq_len: `wrong` gives text, text, and needs it"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, fields: Any, given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        prepare(Wrong(DataConfig(hold_out=0.5), fields, *given), tmp_path, lookahead=1, seed=0)
    assert not list(tmp_path.iterdir())


def test_options_and_declarations_must_agree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seq_len: `wrong` gives label, no text: leave it out"):
        prepare(Wrong(DataConfig(seq_len=5), {"label": LabelField()}), tmp_path, lookahead=1, seed=0)
    stream = Wrong(DataConfig(**OPTIONS), {"text": TextField(), "label": LabelField()})
    stream.rows = "stream"
    with pytest.raises(PluginError, match="a stream must declare one field, of text"):
        prepare(stream, tmp_path, lookahead=1, seed=0)


def test_a_corpus_too_small_for_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"seq_len: a row takes 1000001 tokens, and the training side has \d+"):
        lines(tmp_path, seq_len=1_000_000)


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"tokenizer\.json: can't be written"):
        lines(tmp_path / "file" / "run")


@given(st.text())
def test_any_text_survives_the_tokenizer(dataset: Dataset, text: str) -> None:
    tokenizer = dataset.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids
    assert sum(map(tokenizer.byte_length, ids)) == len(text.encode())
    assert min(ids, default=3) >= 3


def test_special_tokens_come_from_nowhere_else(dataset: Dataset) -> None:
    tokenizer = dataset.tokenizer
    assert tokenizer is not None
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.mask, vocabulary.size) == (0, 0, 1, 2, 280)
    assert not {0, 1, 2} & set(tokenizer.encode("a <|end|><|pad|> <|mask|>"))
    assert tokenizer.decode([0, *tokenizer.encode("<|end|>b"), 2, 1]) == "<|end|>b"
    assert [tokenizer.byte_length(special) for special in (0, 1, 2)] == [0, 0, 0]


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match=r"tokenizer\.json: can't be read"):
        Tokenizer.load(path)
    Tokenizer.train(["abc"], 259).save(path)
    path.write_text(path.read_text().replace("<|mask|>", "<mask>"))
    with pytest.raises(DataError, match=r"tokenizer\.json: has no token <\|mask\|>"):
        Tokenizer.load(path)
