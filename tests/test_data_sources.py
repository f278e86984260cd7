"""The built-in data: what each source gives, and what it says when a file is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transom.core.data import Data, TokenizerOptions
from transom.errors import DataError
from transom.plugins.data.labelled import LabelledData
from transom.plugins.data.pairs import PairsData, described_functions
from transom.plugins.data.text import DOCUMENT, LONGEST, TextData

BPE = TokenizerOptions(vocab_size=300)


def text(path: Path) -> TextData:
    return TextData(TextData.Config(path=str(path)))


def pairs(path: Path) -> PairsData:
    return PairsData(PairsData.Config(path=str(path)))


def labelled(path: Path) -> LabelledData:
    return LabelledData(LabelledData.Config(path=str(path), seq_len=7, tokenizer=BPE))


def images(path: Path) -> LabelledData:
    return LabelledData(LabelledData.Config(path=str(path)))


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/é.txt", "a/skip.bin", ".hidden/x.txt", "a/.x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name} 字\n", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n")
    examples = list(text(tmp_path).examples())
    assert [example.key for example in examples] == ["b.txt", "a/z.md", "a/é.txt"]
    assert examples[2].fields == {"text": "a/é.txt 字\n"}


def test_one_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = "".join(f"{'word ' * (number % 7)}\nline {number}\n\n" for number in range(2000))
    whole = paragraphs + "no blank line\n" * (2 * LONGEST // 14)
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    documents = [example.fields["text"] for example in text(tmp_path / "a.txt").examples()]
    assert "".join(map(str, documents)) == whole
    assert all(str(each).endswith("\n\n") and len(str(each)) >= DOCUMENT for each in documents[:-3])
    assert max(len(str(each)) for each in documents) < LONGEST + DOCUMENT
    keys = [example.key for example in text(tmp_path / "a.txt").examples()]
    assert len(set(keys)) == len(keys) > 4
    assert keys[:2] == ["a.txt:1", f"a.txt:{1 + str(documents[0]).count(chr(10))}"]


def test_stdlib_is_a_few_megabytes_without_tests() -> None:
    documents = {example.key: str(example.fields["text"]) for example in TextData(TextData.Config()).examples()}
    assert 5e6 < sum(map(len, documents.values())) < 2e7
    assert {"ast.py", "json/decoder.py", "pydoc_data/topics.py"} < documents.keys()
    assert not any({"test", "idlelib", "encodings"} & set(key.split("/")) for key in documents)


def test_functions_are_paired_with_what_they_say() -> None:
    code = (
        "class A:\n"
        "    @staticmethod\n"
        "    async def f(x,\n"
        "                y=1):\n"
        '        """Do this\n        at once. Then that.\n\n        More."""\n'
        "        return x\n"
        "\f\n"
        'def one(): "Short."; return 1\n'
        'def flat():\n    """Say it."""\n    return """\\\nx"""\n'
        'def only():\n    """Nothing but words."""\n'
        'def dots():\n    """..."""\n    return 3\n'
        "def silent():\n    return 2\n"
    )
    assert list(described_functions(code)) == [
        ('def flat():\n    return """\\\nx"""', "Say it."),
        ("async def f(x,\n            y=1):\n    return x", "Do this at once."),
    ]


def test_stdlib_gives_thousands_of_pairs() -> None:
    examples = list(PairsData(PairsData.Config()).examples())
    assert len(examples) > 3000
    assert all(str(example.fields["source"]).startswith(("def ", "async def ")) for example in examples)
    assert not any("\n" in str(example.fields["target"]) for example in examples)


def test_tables_of_both_kinds_give_the_same(tmp_path: Path) -> None:
    rows = [("eins", "one"), ("zwei é", "two"), ("drei", "three")]
    (tmp_path / "a.tsv").write_text("\ufeff" + "".join(f"{a}\t{b}\r\n" for a, b in rows), encoding="utf-8")
    lines = [json.dumps({"source": a, "more": 1, "target": b}) for a, b in rows]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    tsv, jsonl = (list(pairs(tmp_path / name).examples()) for name in ("a.tsv", "a.jsonl"))
    assert tsv == jsonl
    assert tsv[1].fields == {"source": "zwei é", "target": "two"}


def test_digits_are_images_in_zero_to_one() -> None:
    examples = list(LabelledData(LabelledData.Config()).examples())
    pixels = np.stack([np.asarray(example.fields["image"]) for example in examples])
    assert (pixels.shape, pixels.dtype.name) == ((1797, 1, 8, 8), "float32")
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert {example.fields["label"] for example in examples} == set(range(10))


def test_a_folder_of_images_gives_its_folders_as_classes(tmp_path: Path) -> None:
    for name, mode, colour in (("cat/b.png", "L", 51), ("cat/a.png", "L", 0), ("dog/a.png", "L", 255)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new(mode, (5, 3), colour).save(tmp_path / name)
    examples = list(images(tmp_path).examples())
    assert [(e.key, e.fields["label"]) for e in examples] == [
        ("cat/a.png", "cat"), ("cat/b.png", "cat"), ("dog/a.png", "dog")
    ]  # fmt: skip
    pixels = np.asarray(examples[1].fields["image"])
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, np.full((1, 3, 5), np.float32(51 / 255)))
    Image.new("RGB", (5, 3), (255, 0, 51)).save(tmp_path / "dog" / "b.png")
    coloured = np.asarray(list(images(tmp_path).examples())[-1].fields["image"])
    np.testing.assert_allclose(coloured[:, 1, 2], [1, 0, 0.2], rtol=1e-6)


Make = Callable[[Path], Data]


@pytest.mark.parametrize(
    ("make", "name", "content", "said"),
    [
        (text, "a.txt", b"good\nbad \xff\n", "a.txt:2: byte 9 (0xff) is not UTF-8"),
        (text, "a.txt", b"cut \xe2\x82", "a.txt:1: byte 4 (0xe2) is not UTF-8"),
        (text, "missing.txt", None, "missing.txt' is no file or folder"),
        (pairs, "a.tsv", b"a\tb\n\nonly\n", "a.tsv:3: 1 columns, not 2: a line is source and target"),
        (pairs, "a.tsv", b"a\tb\tc\n", "a.tsv:1: 3 columns, not 2"),
        (pairs, "a.tsv", b"a\t \n", "a.tsv:1: `target` is empty"),
        (pairs, "a.csv", b"a,b\n", "a.csv: can't tell its format from its name: it must end in .tsv or .jsonl"),
        (pairs, "none.tsv", None, "none.tsv: can't be read: No such file"),
        (pairs, "a.jsonl", b'{"source": "a", "target": "b"}\n{"source": \n', "a.jsonl:2:12: Expecting value"),
        (pairs, "a.jsonl", b'{"source": "a"}', "a.jsonl:1: `target` is missing: the object has 'source'"),
        (pairs, "a.jsonl", b'{"source": "a", "target": 3}', "a.jsonl:1: `target` is 3, of type int: it must be str"),
        (pairs, "a.jsonl", b'{"source": "a", "target": "\\ud800"}', "a.jsonl:1: `target` holds half a surrogate pair"),
        (pairs, "a.jsonl", b'["a", "b"]', "a.jsonl:1: a JSON list, not an object with source and target"),
        (pairs, "a.jsonl", b"[" * 100_000, "a.jsonl:1: nested too deep"),
        (pairs, "a.jsonl", b"1" * 5000, "a.jsonl:1: nested too deep, or a number too long"),
        (labelled, "a.jsonl", b'{"text": "a"}', "a.jsonl:1: `label` is missing"),
        (labelled, "a.jsonl", b'{"text": "a", "label": true}', "`label` is True, of type bool: it must be str or int"),
        (labelled, "a.tsv", b"a\t\n", "a.tsv:1: `label` is empty"),
        (images, "a.png", b"", "a.png' is neither a folder of images nor a .tsv or .jsonl of texts"),
        (lambda path: images(path.parent), "a.png", b"", "a.png: has no label"),
        (lambda path: images(path.parent.parent), "a.png", b"no image", "a.png: can't be read as an image"),
    ],
)
def test_wrong_files_are_refused_at_their_place(
    tmp_path: Path, make: Make, name: str, content: bytes | None, said: str
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(make(folder / name).examples())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("I;16", (3, 3)).save(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match=r"x\.png: has pixels of mode I;16: it must have 8 bits"):
        list(images(tmp_path).examples())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"digits needs scikit-learn .*install it with `pip install scikit-learn`"):
        list(LabelledData(LabelledData.Config()).examples())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TextData.Config(hold_out=0.0), "hold_out: 0.0 is no share"),
        (lambda: TextData.Config(hold_out=1.0), "hold_out: 1.0 is no share"),
        (lambda: PairsData.Config(seq_len=1), "seq_len: 1 is too short"),
        (lambda: TokenizerOptions(vocab_size=258), "vocab_size: 258 is too small"),
        (lambda: TextData.Config(suffixes=("txt",)), "suffixes: 'txt' must begin with a dot"),
        (lambda: LabelledData.Config(seq_len=9), "seq_len: images have no tokens: leave it out"),
        (lambda: LabelledData.Config(path="a.tsv", seq_len=9), "tokenizer: labelled text needs it"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
