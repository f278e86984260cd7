"""An exported folder takes text and gives text, vectors and classes, as PyTorch does with the same run."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

import transom
from transom.data import Tokenizer
from transom.deploy import Label
from transom.deploy.chat import ChatTemplate
from transom.deploy.manifest import sha256
from transom.deploy.runtime import POOLS
from transom.deploy.words import TOKENIZER
from transom.errors import CheckpointError, ExportError, InputError
from transom.generation import Sampling, generate
from transom.registry.compose import compose
from transom.registry.spec import dump_spec, parse_spec
from transom.registry.weights import WEIGHTS, digest
from transom.training.text import writing

SHARED = """
  d_model: 16
  max_seq_len: 48
  embedding: {kind: token, vocab_size: 320}
  position: rope
  layer: {norm: rms, attention: {kind: full, n_heads: 2}, feedforward: {kind: mlp, d_ff: 24}}
  norm: rms
"""
DECODER = f"model:\n  topology: decoder{SHARED}  layers: [{{}}]\n  head: lm\n"
SCORER = (
    f"model:\n  topology: decoder{SHARED}  layers: [{{}}]\n  head: {{kind: classifier, n_classes: 3, pool: last}}\n"
)
ENCODER = f"""model:
  topology: encoder{SHARED}
  layers: [{{}}]
  head:
    words: lm
    vector: {{kind: pooled, pool: max, normalise: true}}
    classes: {{kind: classifier, n_classes: 5, pool: mean}}
""".replace("vocab_size: 320", "vocab_size: 320, n_types: 2")
PAIR = f"""model:
  topology: encoder_decoder{SHARED}
  encoder: {{layers: [{{}}]}}
  decoder: {{layer: {{cross_attention: {{kind: full, n_heads: 2}}}}, layers: [{{}}]}}
  head: lm
data: {{kind: pairs, source: stdlib, seq_len: 48, tokenizer: {{kind: bpe, vocab_size: 320}}}}
"""
TEXTS = ["größe und 漢字, größe und 🙂", "der die das", "", "den 漢字 der die größe <|end|>"]
CHAT = [
    {"role": "user", "content": "größe?"},
    {"role": "assistant", "content": "das"},
    {"role": "user", "content": "und"},
]
TEMPLATE = """
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant"] %}{{ raise_exception("no role " + message.role) }}{% endif %}
    {{- bos_token + message["role"] + ":" + message["content"] | trim }}
{%- endfor %}
{%- if add_generation_prompt %}{{ bos_token }}assistant:{% endif %}"""


def made(folder: Path, text: str, **files: str) -> Path:
    """Make a run's folder by hand, weights drawn and tokenizer trained, with files beside."""
    spec = parse_spec(text, ["train.seed=5"])
    (folder / "model").mkdir(parents=True)
    (folder / "spec.yaml").write_text(dump_spec(spec))
    weights = {name: tensor * 2 for name, tensor in compose(spec).state_dict().items()}
    save_file(weights, folder / WEIGHTS, {"sha256": digest(weights)})
    Tokenizer.train(TEXTS * 3, 300).save(folder / TOKENIZER)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a run that writes, with a chat template, and its export."""
    folder = tmp_path_factory.mktemp("writer")
    run = made(folder / "run", DECODER + "data: {kind: text, seq_len: 48}\n", chat_template__jinja=TEMPLATE)
    transom.export(run, folder / "out")
    return run, folder / "out"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a run that reads, with three heads and named classes, and its export."""
    folder = tmp_path_factory.mktemp("reader")
    run = made(folder / "run", ENCODER, data__json=json.dumps({"classes": ["bad", "fair", "good"]}))
    transom.export(run, folder / "out")
    return run, folder / "out"


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_new_tokens=30), Sampling(max_new_tokens=30, temperature=4.0, top_k=90, seed=3, stop=("e",))],
    ids=["greedy", "drawn"],
)
def test_text_goes_on_as_in_pytorch(writer: tuple[Path, Path], sampling: Sampling) -> None:
    run, out = writer
    ready, runtime = writing(run, TEXTS), transom.Runtime(out)
    wanted = generate(
        ready.stepper, ready.prompts, Sampling.of(**{**vars(sampling), "eos_id": ready.eos_id}), ready.tokenizer.decode
    )
    assert runtime.generate(TEXTS, sampling) == wanted
    assert runtime.generate(TEXTS[0], sampling) == wanted[0]
    pieces = list(runtime.stream(TEXTS, sampling))
    assert ["".join(p.text for p in pieces if p.row == row) for row in range(4)] == [row.text for row in wanted]
    assert runtime.generate([]) == []


def test_options_come_plain_and_over_those_of_a_sampling(writer: tuple[Path, Path]) -> None:
    runtime = transom.Runtime(writer[1])
    plain = runtime.generate("der", max_new_tokens=7)
    assert len(plain.ids) == 7
    assert runtime.generate("der", Sampling(max_new_tokens=3, temperature=2.0), temperature=0.0).ids == plain.ids[:3]
    token = plain.ids[4]
    ended = runtime.generate("der", max_new_tokens=7, stop_ids=[token])
    assert (ended.ids, ended.ended) == (plain.ids[: plain.ids.index(token)], "eos")
    with pytest.raises(InputError, match=r"sampling\.max_tokens: .*did you mean max_new_tokens"):
        runtime.stream("der", max_tokens=3)
    with pytest.raises(InputError, match=r"prompt 1 has .* tokens, but the model holds 48"):
        runtime.generate(["der", "漢字 🙂" * 20])


def test_a_chat_is_written_by_its_template(writer: tuple[Path, Path]) -> None:
    run, out = writer
    runtime, tokenizer = transom.Runtime(out), Tokenizer.load(run / TOKENIZER)
    end = tokenizer.vocabulary.bos
    parts = [tokenizer.encode(text) for text in ("user:größe?", "assistant:das", "user:und", "assistant:")]
    assert runtime.words is not None
    assert runtime.words.chat(CHAT, {}) == [token for part in parts for token in (end, *part)]
    assert runtime.words.chat(CHAT, {"add_generation_prompt": False}) == [t for part in parts[:3] for t in (end, *part)]
    answer = runtime.generate(CHAT, max_new_tokens=9)
    assert runtime.generate([CHAT, CHAT[:1], "der"], max_new_tokens=9)[0] == answer
    ids = [token for part in parts for token in (end, *part)]
    ready = writing(run, [""])
    assert generate(ready.stepper, [ids], Sampling(9, eos_id=ready.eos_id), tokenizer.decode) == [answer]
    with pytest.raises(InputError, match=r"chat_template\.jinja: can't render this chat: no role system"):
        runtime.generate([{"role": "system", "content": ""}])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"chat_template": TEMPLATE, "bos_token": "<|end|>"}),
        ("tokenizer_config.json", {"chat_template": [{"name": "tool_use", "template": "x"},
                                                     {"name": "default", "template": TEMPLATE}]}),
        ("chat_template.json", {"chat_template": TEMPLATE}),
    ],
)  # fmt: skip
def test_a_template_is_found_wherever_the_field_keeps_it(name: str, content: Any, tmp_path: Path) -> None:
    from transom.deploy.source import read_source

    run = made(tmp_path / "run", DECODER, **{name.replace(".", "__"): json.dumps(content)})
    (tmp_path / "out").mkdir()
    read_source(run).copy_text(tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    (run / name).write_text("[")
    with pytest.raises(CheckpointError, match=rf"{name}: can't be read"):
        read_source(run).copy_text(tmp_path / "out")


HARD = """{%- set ns = namespace(first=true) %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- for message in messages %}
    {%- if message.role == "system" %}{% continue %}{% endif %}
    {%- if ns.first %}{{ bos_token }}{% set ns.first = false %}{% endif %}
    {% generation %}<{{ message.role }}>{{ message.content | tojson }}{{ unk_token }}{% endgeneration %}

{% endfor %}
{{ extra if extra is defined else "nothing" }}"""


def test_templates_render_as_the_field_s_library_renders_them(tmp_path: Path) -> None:
    Tokenizer.train(TEXTS, 280).save(tmp_path / TOKENIZER)
    peer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / TOKENIZER), bos_token="<|end|>")
    messages = [{"role": "system", "content": "no"}, *CHAT, {"role": "user", "content": "<b>'größe' & \"漢\""}]
    for variables in ({}, {"extra": "more", "tools": [{"name": "ä", "type": "function"}]}):
        ours = ChatTemplate(HARD, "here", {"bos_token": "<|end|>"}).render(messages, variables)
        assert ours == peer.apply_chat_template(
            messages, chat_template=HARD, tokenize=False, add_generation_prompt=True, **variables
        )


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_stays_in_its_box(hostile: str) -> None:
    with pytest.raises(InputError, match="here: can't render this chat"):
        ChatTemplate(hostile, "here", {}).render(CHAT, {})


def test_a_broken_template_is_refused() -> None:
    with pytest.raises(ExportError, match="here: is no chat template"):
        ChatTemplate("{% for %}", "here", {})


def test_texts_are_classified_and_embedded_as_in_pytorch(reader: tuple[Path, Path]) -> None:
    run, out = reader
    model, tokenizer, runtime = transom.load(run), Tokenizer.load(run / TOKENIZER), transom.Runtime(out)
    bos, eos = tokenizer.vocabulary.bos, tokenizer.vocabulary.eos
    texts: list[Any] = [*TEXTS, ("der", "die größe")]
    first, second = tokenizer.encode("der"), tokenizer.encode("die größe")
    rows = [[bos, *tokenizer.encode(text), eos] for text in TEXTS] + [[bos, *first, eos, *second, eos]]
    kinds = [[0] * len(row) for row in rows[:-1]] + [[0] * (len(first) + 2) + [1] * (len(second) + 1)]
    with torch.no_grad():
        wanted = [
            model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kind]))
            for ids, kind in zip(rows, kinds, strict=True)
        ]
    classes = [
        dict(zip(("bad", "fair", "good", "3", "4"), out.logits["classes"][0].softmax(-1).tolist(), strict=True))
        for out in wanted
    ]
    vectors = np.stack([out.logits["vector"][0].numpy() for out in wanted])
    for count in (1, 2, 32):
        found = runtime.classify(texts, rows=count)
        for labels, scores in zip(found, classes, strict=True):
            assert [label.name for label in labels] == sorted(scores, key=lambda name: -scores[name])
            assert all(abs(label.score - scores[label.name]) < 1e-5 for label in labels)
        assert np.abs(runtime.encode(texts, rows=count) - vectors).max() < 1e-5
    assert isinstance(runtime.classify("der")[0], Label)
    assert np.abs(runtime.encode(texts[-1]) - vectors[-1]).max() < 1e-5
    assert runtime.encode([]).shape == (0, 16)
    for pool, place in (("first", 0), ("last", -1)):
        assert np.abs(runtime.encode(texts, pool=pool)[0] - wanted[0].hidden[0, place].numpy()).max() < 1e-5
    assert np.abs(runtime.encode(TEXTS, pool="mean")[2] - wanted[2].hidden[0].mean(0).numpy()).max() < 1e-5
    assert np.abs(runtime.encode(texts, pool="max")[1] - wanted[1].hidden[0].amax(0).numpy()).max() < 1e-5
    given = {"input_ids": np.array(rows[:1]), "token_type_ids": np.array(kinds[:1])}
    assert runtime.classify(given) == [runtime.classify(TEXTS[0])]


def test_long_texts_are_cut_when_asked(reader: tuple[Path, Path]) -> None:
    runtime = transom.Runtime(reader[1])
    long = "漢字 🙂 " * 40
    with pytest.raises(InputError, match="tokens in a row; this model takes at most max_seq_len = 48"):
        runtime.encode(long)
    assert runtime.words is not None
    row, pair = runtime.words.whole([long, (long, "der")], 48)
    ends = [runtime.arrays.manifest.special_ids[role] for role in ("bos", "eos")]
    assert (len(row.ids), row.ids[0], row.ids[-1]) == (48, *ends)
    assert (len(pair.ids), pair.types.count(1)) == (48, len(runtime.words.whole(["der"])[0].ids) - 1)
    assert runtime.encode(long, truncate=True).shape == (16,)


@pytest.mark.parametrize(("pool", "place"), [("mean", None), ("max", None), ("first", 1), ("last", 3)])
def test_padding_is_never_pooled(pool: str, place: int | None) -> None:
    hidden = np.random.default_rng(4).standard_normal((2, 5, 7), dtype=np.float32)
    real = np.array([[0, 1, 0, 1, 0], [0] * 5], dtype=bool)
    found = POOLS[pool](hidden, real)
    two = hidden[0, [1, 3]]
    wanted = hidden[0, place] if place else (two.mean(0) if pool == "mean" else two.max(0))
    assert np.array_equal(found, np.stack([wanted, np.zeros(7, dtype=np.float32)]))


def test_a_source_is_answered_in_text(tmp_path: Path) -> None:
    run = made(tmp_path / "run", PAIR)
    transom.export(run, tmp_path / "out")
    ready, sampling = writing(run, TEXTS), Sampling(max_new_tokens=12, temperature=2.0)
    wanted = generate(
        ready.stepper, ready.prompts, Sampling.of(**{**vars(sampling), "eos_id": ready.eos_id}), ready.tokenizer.decode
    )
    assert transom.Runtime(tmp_path / "out").generate(TEXTS, sampling) == wanted


def test_a_decoder_that_scores_classes_reads_whole_texts(tmp_path: Path) -> None:
    run = made(tmp_path / "run", SCORER, hf_config__json='{"id2label": {"0": "x", "2": "z", "1": "y"}}')
    transom.export(run, tmp_path / "out")
    runtime, model, tokenizer = transom.Runtime(tmp_path / "out"), transom.load(run), Tokenizer.load(run / TOKENIZER)
    for labels, text in zip(runtime.classify(TEXTS), TEXTS, strict=True):
        ids = [tokenizer.vocabulary.bos, *tokenizer.encode(text), tokenizer.vocabulary.eos]
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        assert labels[0].name == "xyz"[int(scores.argmax())]
        assert abs(labels[0].score - float(scores.max())) < 1e-5
    with pytest.raises(InputError, match="this model writes no tokens"):
        runtime.generate("der")


def test_whatever_lies_in_a_file_it_runs_or_is_refused(
    writer: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Alter each file, and let transom.json tell of it as it is then."""
    ran = refused = 0
    for seed in range(120):
        draw, folder = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(writer[1], folder)
        path = draw.choice(sorted(folder.iterdir()))
        held, place = bytearray(path.read_bytes()), draw.randrange(path.stat().st_size)
        held[place : place + draw.randrange(9)] = draw.randbytes(draw.randrange(1, 9))
        path.write_bytes(held if draw.random() < 0.8 else held[:place])
        if path.name != "transom.json":
            said = json.loads((folder / "transom.json").read_text())
            said["files"] = {name: sha256(folder / name) for name in said["files"]}
            (folder / "transom.json").write_text(json.dumps(said))
        try:
            transom.Runtime(folder).generate(CHAT, max_new_tokens=2)
            ran += 1
        except (ExportError, InputError) as error:
            assert str(folder) in str(error), seed  # noqa: PT017
            refused += 1
        shutil.rmtree(folder)
    assert ran > 20
    assert refused > 40
    assert not any(capfd.readouterr())


@pytest.mark.parametrize("made", ["writer", "reader"])
def test_a_folder_fits_the_schema_that_it_names(made: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(made)[1]
    said = json.loads((folder / "transom.json").read_text())
    described = json.loads((folder / said["$schema"]).read_text())
    jsonschema.validate(said, described, jsonschema.Draft202012Validator)
    assert described["properties"].keys() == said.keys()
    for name in said["graphs"]:
        broken = {**said, "graphs": {**said["graphs"], name: {**said["graphs"][name], "file": 3}}}
        with pytest.raises(jsonschema.ValidationError, match="3 is not of type 'string'"):
            jsonschema.validate(broken, described)


def test_it_takes_text_without_torch(writer: tuple[Path, Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import transom\n"
        f"runtime = transom.Runtime({str(writer[1])!r})\n"
        f"print(''.join(piece.text for piece in runtime.stream({CHAT!r}, max_new_tokens=5)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{transom.Runtime(writer[1]).generate(CHAT, max_new_tokens=5).text}\n"


def test_what_a_model_can_t_do_is_refused(writer: tuple[Path, Path], reader: tuple[Path, Path], tmp_path: Path) -> None:
    writing, reading = transom.Runtime(writer[1]), transom.Runtime(reader[1])
    refused: Sequence[tuple[str, Callable[[], object]]] = [
        ("no head of this model scores classes of a whole text", lambda: writing.classify("der")),
        (r"no head of this model pools: say pool=, one of mean, first, last, max", lambda: writing.encode("der")),
        (r"no graph of this model gives hidden; they give logits", lambda: writing.encode("der", pool="mean")),
        ("pool: 'sum' is no way to pool", lambda: reading.encode("der", pool="sum")),
        (
            r"output: 'logits' scores no classes .*; logits\.classes does",
            lambda: reading.classify("der", output="logits"),
        ),
        ("rows: 0 leaves nothing", lambda: reading.classify(["der"], rows=0)),
        ("has no chat_template.jinja, so a chat can't", lambda: reading.generate(CHAT)),
        ("this model writes no tokens", lambda: reading.generate("der")),
    ]
    for message, call in refused:
        with pytest.raises(InputError, match=message):
            call()
