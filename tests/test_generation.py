"""Check the loop and its text against slow twins, on a stepper that refuses to be misused."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import decoders, pre_tokenizers

from transom.errors import InputError
from transom.generation import Generation, Sampling, Stepper, generate, stream
from transom.generation.sampling import choose

Ids = NDArray[np.int64]
EOS = 3


class Past:
    """What each row has seen; it serves one step, as a state whose buffers are written in place would."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.used = False


class Table:
    """A model whose logits are any function of a row's whole past."""

    def __init__(self, rule: Callable[[list[int]], Sequence[float]], vocab_size: int, max_seq_len: int = 1000) -> None:
        self.rule = rule
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.widths: list[int] = []
        self.past = Past([])

    def start(self, batch: int) -> Past:
        return Past([[] for _ in range(batch)])

    def step(self, input_ids: Ids, attention_mask: Ids | None, state: Past) -> tuple[NDArray[np.float32], Past]:
        assert not state.used, "the state was used before"
        state.used = True
        assert attention_mask is None or not attention_mask.all(), "a mask that masks nothing"
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        assert input_ids.dtype == mask.dtype == np.int64
        assert input_ids.shape == mask.shape == (len(state.rows), input_ids.shape[1])
        assert (np.diff(mask, axis=1) <= 0).all(), "padding stands on the right"
        assert mask.any(), "a step for nobody"
        self.widths.append(input_ids.shape[1])
        logits = np.full((len(state.rows), self.vocab_size), np.nan, dtype=np.float32)
        rows = []
        for row, past in enumerate(state.rows):
            new = input_ids[row, mask[row] == 1].tolist()
            rows.append(past + new)
            assert len(rows[-1]) <= self.max_seq_len, "more tokens than the model holds"
            if new:
                logits[row] = self.rule(rows[-1])
        self.past = Past(rows)
        return logits, self.past


def hashed(vocab_size: int) -> Callable[[list[int]], Sequence[float]]:
    """Give logits that differ for every past."""
    return lambda past: np.random.default_rng([99, *past]).normal(size=vocab_size).tolist()


def scripted(script: list[int], vocab_size: int) -> Callable[[list[int]], Sequence[float]]:
    """Give logits that write `script` after a prompt of one token, and token 0 after that."""
    return lambda past: np.eye(vocab_size)[([*script, *[0] * 99])[len(past) - 1]].tolist()


def spell(vocabulary: Sequence[bytes]) -> Callable[[list[int]], str]:
    """Decode as byte-level tokenizers do: join the bytes, put U+FFFD where they make no character."""
    return lambda ids: b"".join(vocabulary[token] for token in ids).decode(errors="replace")


utf8 = spell([bytes([byte]) for byte in range(256)])


def write(
    script: list[int], stop: tuple[str, ...] = (), decode: Callable[[list[int]], str] = utf8
) -> tuple[Generation, list[str]]:
    """Run a script as the second row of three and give its result and the pieces that were shown of it."""
    pieces: list[tuple[int, str]] = []
    sampling = Sampling(max_new_tokens=len(script), stop=stop)
    stepper: Stepper = Table(scripted(script, 256), 256)
    results = generate(stepper, [[1], [2], [4]], sampling, decode, lambda row, piece: pieces.append((row, piece)))
    assert results[0] == results[1] == results[2]
    assert results[1] == generate(stepper, [[9]], sampling, decode)[0]
    return results[1], [piece for row, piece in pieces if row == 1]


# The loop

WAYS = [
    Sampling(max_new_tokens=9, eos_id=EOS),
    Sampling(max_new_tokens=9, eos_id=EOS, repetition_penalty=1.9),
    Sampling(max_new_tokens=9, eos_id=EOS, temperature=1.3, seed=5),
    Sampling(max_new_tokens=9, eos_id=EOS, temperature=0.8, top_k=7, top_p=0.85, repetition_penalty=0.6, seed=2**40),
]
PROMPTS = [[5], [7, 1, 2, 10, 10, 6], [0, 5], [5], [3, 3, 3], [4, 9, 4, 9, 4], [8]]


def slow(prompt: list[int], sampling: Sampling, max_seq_len: int) -> tuple[list[int], str]:
    """Continue one prompt, its whole past looked at anew for every token."""
    random, past = np.random.default_rng([sampling.seed, 0, *prompt]), list(prompt)
    while len(past) < max_seq_len:
        logits = np.array([hashed(11)(past)], dtype=np.float32).astype(float)
        seen = np.array([[token in past for token in range(11)]])
        token = int(choose(logits, seen, np.array([random.random()]), sampling)[0])
        if token == EOS:
            return past[len(prompt) :], "eos"
        past.append(token)
        if len(past) - len(prompt) == sampling.max_new_tokens:
            return past[len(prompt) :], "length"
    return past[len(prompt) :], "full"


@pytest.mark.parametrize("sampling", WAYS)
def test_rows_equal_the_slow_loop_alone_and_together(sampling: Sampling) -> None:
    stepper = Table(hashed(11), 11, max_seq_len=12)
    together = generate(stepper, PROMPTS, sampling)
    assert stepper.widths == [6] + [1] * (len(stepper.widths) - 1)
    for index, prompt in enumerate(PROMPTS):
        alone = generate(stepper, [prompt], sampling)[0]
        if index != 3:  # the second copy of [5] draws anew
            assert together[index] == alone
            assert (alone.ids, alone.ended) == slow(prompt, sampling, 12)
            assert alone.text is None
    assert {"eos", "length", "full"} >= {row.ended for row in together}


def test_copies_and_seeds_draw_apart_and_repeat() -> None:
    stepper = Table(lambda past: [0.0] * 50, 50)
    first, second, third = generate(stepper, [[7]] * 3, Sampling(temperature=1, seed=1))
    assert len({tuple(row.ids) for row in (first, second, third)}) == 3
    assert generate(stepper, [[6], [7], [8], [7]], Sampling(temperature=1, seed=1))[1::2] == [first, second]
    assert generate(stepper, [[7]], Sampling(temperature=1, seed=2))[0] != first


def test_every_way_to_end() -> None:
    stepper = Table(scripted([65, 66, EOS], 256), 256, max_seq_len=5)
    one, two, four, five = [[1], [1, 1], [1] * 4, [1] * 5]

    def ends(prompts: list[list[int]], **options: int) -> list[tuple[list[int], str]]:
        results = generate(stepper, prompts, Sampling(**options), utf8)  # type: ignore[arg-type]
        assert all(row.text == utf8(row.ids) for row in results)
        return [(row.ids, row.ended) for row in results]

    assert ends([one, two, four, five], eos_id=EOS) == [([65, 66], "eos"), ([66], "eos"), ([0], "full"), ([], "full")]
    assert ends([one, four, five], max_new_tokens=1) == [([65], "length"), ([0], "length"), ([], "full")]
    assert ends([one], max_new_tokens=2, eos_id=EOS) == [([65, 66], "length")]
    assert ends([one]) == [([65, 66, EOS, 0], "full")]
    assert ends([one], eos_id=255) == ends([one])
    assert ends([five]) == [([], "full")]
    assert ends([]) == []


def test_a_row_that_waits_is_padding_to_the_model() -> None:
    # Table gives NaN where a row has no token and counts every valid one, so it notices.
    stepper = Table(lambda past: [0.0, 1.0] if past[0] else [1.0, 0.0], 2, max_seq_len=30)
    results = generate(stepper, [[1] * 30, [1] * 28, [0, 1], [1]], Sampling(max_new_tokens=25, eos_id=0))
    assert [(len(row.ids), row.ended) for row in results] == [(0, "full"), (2, "full"), (0, "eos"), (25, "length")]
    assert [len(past) for past in stepper.past.rows] == [30, 29, 2, 25]  # the last token of a row is not read again


@pytest.mark.parametrize("sampling", WAYS)
def test_a_stream_is_the_same_rows_step_by_step(sampling: Sampling) -> None:
    stepper = Table(hashed(256), 256, max_seq_len=12)
    prompts = [*PROMPTS, [1] * 12]  # the last is full before the first step
    wanted = generate(stepper, prompts, sampling, utf8)
    for decode in (utf8, None):
        pieces = list(stream(stepper, prompts, sampling, decode))
        for row, result in enumerate(wanted):
            own = [piece for piece in pieces if piece.row == row]
            assert [token for piece in own for token in piece.ids] == result.ids
            assert "".join(piece.text for piece in own) == (result.text if decode else "")
            assert [piece.result is None for piece in own] == [True] * (len(own) - 1) + [False]
            assert own[-1].result == (result if decode else Generation(result.ids, None, result.ended))


def test_who_stops_asking_stops_the_writing() -> None:
    stepper = Table(hashed(11), 11)
    rows = stream(stepper, [[1], [2]], Sampling())
    assert stepper.widths == []
    assert [(next(rows).row, len(stepper.widths)) for _ in range(5)] == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]
    with pytest.raises(InputError, match="prompt 0 has no tokens"):  # at once, not at the first step
        stream(stepper, [[]], Sampling())


def test_sampling_of_plain_options() -> None:
    assert Sampling.of() == Sampling()
    assert Sampling.of(stop="END", eos_id=[3, 5], top_k=4) == Sampling(stop=("END",), eos_id=(3, 5), top_k=4)
    assert Sampling.of(stop=["a", "b"]).stop == ("a", "b")
    with pytest.raises(
        InputError, match=r"sampling\.temprature: there is no such option \(did you mean temperature\?\)"
    ):
        Sampling.of(temprature=1.0)
    with pytest.raises(
        InputError, match=r"sampling\.x: there is no such option \(there are max_new_tokens, .*eos_id\)"
    ):
        Sampling.of(x=1)
    with pytest.raises(InputError, match=r"sampling\.stop: \('',\) is not"):
        Sampling.of(stop="")


# Text


def test_stop_strings_cut_the_text_across_tokens() -> None:
    result, pieces = write(list(b"one STOP two"), stop=("STOP",))
    assert result == Generation(list(b"one STOP"), "one ", "stop")
    assert pieces == ["o", "n", "e", " "]
    result, pieces = write(list(b"a STO STOP"), stop=("STOP", "nothing"))
    assert (result.text, result.ended) == ("a STO ", "stop")
    assert pieces == ["a", " ", "STO "]
    result, pieces = write(list(b"and STO"), stop=("STOP",))  # held back to the end, then shown: it was none
    assert (result.text, result.ended, pieces) == ("and STO", "length", ["a", "n", "d", " ", "STO"])
    assert write(list(b"xaab"), stop=("aab", "ab"))[0].text == "x"
    for script, vocabulary in [([0, 1, 2, 3], [b"x", b"a", b"b", b"c"]), ([0], [b"xabc"]), ([0, 1], [b"xa", b"bc"])]:
        for stop in [("abc", "b"), ("b", "abc")]:  # "b" is complete first
            assert write(script, stop, spell(vocabulary))[0].text == "xa"


def test_half_characters_are_never_shown() -> None:
    text = "é€𝄞\ufffd!"
    result, pieces = write(list(text.encode()))
    assert (result.text, pieces) == (text, ["é", "€", "𝄞", "\ufffd!"])
    result, pieces = write(list("né".encode())[:-1])  # the end came within a character
    assert (result.text, pieces) == ("n\ufffd", ["n", "\ufffd"])
    result, pieces = write([*b"ok", 0xFF, 0x80, *b"go"], stop=("g",))
    assert (result.text, result.ended, pieces) == ("ok\ufffd\ufffd", "stop", ["o", "k", "\ufffd\ufffd"])


def test_a_stop_string_beside_a_half_character_is_found_at_once() -> None:
    result, pieces = write([0, 1, 2], ("END",), spell([b"a", b"END\xe2", b"\x82\xac"]))
    assert (result, pieces) == (Generation([0, 1], "a", "stop"), ["a"])


def slow_cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """Write character by character until a stop string stands at the end."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=150, deadline=None)
@given(
    st.text("abé𝄞", min_size=1, max_size=14),
    st.lists(st.text("abé𝄞", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 4), max_size=20),
)
def test_text_is_cut_alike_however_tokens_fall(text: str, stops: list[str], lengths: list[int]) -> None:
    data, ends = text.encode(), np.cumsum([0, *lengths]).tolist()
    tokens = [data[start:end] for start, end in pairwise([*ends, len(data)]) if start < len(data)]
    result, pieces = write(list(range(len(tokens))), tuple(stops), spell(tokens))
    expected, stopped = slow_cut(text, tuple(stops))
    assert (result.text, result.ended == "stop") == (expected, stopped)
    assert "".join(pieces) == expected
    assert all(pieces)


def decode_with(decoder: decoders.Decoder, vocabulary: list[str]) -> Callable[[list[int]], str]:
    return lambda ids: decoder.decode([vocabulary[token] for token in ids])


def test_real_decoders_stream_what_they_decode_at_once() -> None:
    text = "Größe  ist 漢字, 🙂 fin"
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    bytelevel = sorted({c for word, _ in letters for c in word})
    script = [bytelevel.index(c) for word, _ in letters for c in word]
    for decoder, vocabulary, ids in [
        (decoders.ByteLevel(), bytelevel, script),
        (decoders.Metaspace(), ["▁the", "▁", "cat", "s", "▁"], [0, 1, 2, 3, 4, 4, 0]),
        (
            decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
            ["▁a", "<0xE6>", "<0xBC>", "<0xA2>", "▁b"],
            [0, 1, 2, 3, 1, 2, 3, 4, 1, 2, 3],
        ),
    ]:
        whole = decoder.decode([vocabulary[token] for token in ids])
        result, pieces = write(ids, decode=decode_with(decoder, vocabulary))
        assert result.text == "".join(pieces) == whole
        assert len(pieces) >= 5
        assert not any("\ufffd" in piece for piece in pieces)


def test_only_the_last_tokens_are_decoded_again() -> None:
    lengths: list[int] = []

    def decode(ids: list[int]) -> str:
        lengths.append(len(ids))
        return utf8(ids)

    sampling = Sampling(max_new_tokens=200, stop=("\n",))
    result = generate(Table(scripted([*b"so" * 60], 256), 256), [[1]], sampling, decode)[0]
    assert result.text == "so" * 60 + "\0" * 80
    assert max(lengths) <= 2
    lengths.clear()
    generate(Table(scripted([*b"so" * 60], 256), 256), [[1]], Sampling(max_new_tokens=90), decode)
    assert lengths == [90]  # nobody looked before the end


# Errors


@pytest.mark.parametrize(
    ("prompts", "sampling", "message"),
    [
        ([[1], []], Sampling(), "prompt 1 has no tokens.*bos or eos"),
        ([[1, 2, 3, 4]], Sampling(), "prompt 0 has 4 tokens, but the model holds 3"),
        ([[2], [7]], Sampling(), "prompt 1: 7 is not a token of this model, which knows 0 to 6"),
        ([[-1]], Sampling(), "prompt 0: -1 is not a token"),
        (["hi"], Sampling(), "prompt 0: 'h' is not a token"),
        ([[1]], Sampling(eos_id=7), "sampling.eos_id: 7 is not a token of this model, which knows 0 to 6"),
        ([[1]], Sampling(stop=("x",)), "sampling.stop needs the text"),
    ],
)
def test_what_does_not_fit_is_refused(prompts: list[list[int]], sampling: Sampling, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(Table(hashed(7), 7, max_seq_len=3), prompts, sampling)


def test_pieces_of_text_need_a_decoder() -> None:
    with pytest.raises(InputError, match="on_token needs the text"):
        generate(Table(hashed(7), 7), [[1]], Sampling(), on_token=lambda row, piece: None)


@pytest.mark.parametrize(
    ("logits", "held"),
    [([0, math.nan, 1], "NaN"), ([math.inf, 0, 1], r"\+inf"), ([-math.inf] * 3, "nothing but -inf")],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_name_row_and_step(logits: list[float], held: str, temperature: float) -> None:
    def rule(past: list[int]) -> list[float]:
        return logits if past[0] == 2 and len(past) == 4 else [0, -math.inf, 1]

    with pytest.raises(InputError, match=rf"row 1, step 3: the logits hold {held}"):
        generate(Table(rule, 3), [[1], [2], [0, 1]], Sampling(temperature=temperature))


def test_logits_of_a_wrong_shape_are_refused() -> None:
    stepper = Table(hashed(7), 7)
    plain_step = stepper.step
    stepper.step = lambda *args: (plain_step(*args)[0][:, None], None)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"step 0: the model gave logits of shape \(2, 1, 7\), not \(2, 7\)"):
        generate(stepper, [[1], [2]], Sampling())


def test_the_room_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, transom.generation; print({'torch', 'onnx', 'onnxruntime', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
