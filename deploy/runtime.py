"""Run an exported folder on text with ONNX Runtime alone: write, answer, embed and classify."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..generation import Generation, Piece, Sampling, stream
from .arrays import ArrayRuntime, begun, padded
from .chat import Chat
from .words import TOKENIZER, Row, Text, Words

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]
Texts = list[str] | list[tuple[str, str]] | list[Text]
Prompt = str | Chat


@dataclass(frozen=True)
class Label:
    """Hold one class that a text may belong to, and how likely the model holds it to be."""

    name: str
    score: float


class Runtime:
    """Run an exported folder on text: `generate` and `stream`, `encode`, `classify`, as its model can.

    `arrays`: the same folder on arrays. `words`: its tokenizer; None where it has none. `provider` is
    `ArrayRuntime`'s.

    Raises:
        ExportError: a file is missing, altered or broken, or the provider does not run here.
    """

    def __init__(self, folder: str | os.PathLike[str], provider: str | None = None) -> None:
        self.arrays = ArrayRuntime(folder, provider)
        there = (self.arrays.folder / TOKENIZER).is_file()
        self.words = Words(self.arrays.folder, self.arrays.manifest) if there else None

    # -- writing ----------------------------------------------------------------------------------------------------

    @overload
    def generate(self, prompts: Prompt, sampling: Sampling | None = None, **options: Any) -> Generation: ...

    @overload
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, **options: Any
    ) -> list[Generation]: ...

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | None = None, **options: Any
    ) -> Generation | list[Generation]:
        """Continue a text or a chat, or each of a list; a model that reads a source writes about each text instead.

        Args:
            prompts: texts; or chats, lists of messages, which the folder's chat template turns to text.
            sampling: how tokens are chosen and when rows end; its own defaults unless given.
            options: single options of `Sampling` (`max_new_tokens`, `temperature`, `seed`, `stop`, ...), which come
                before those of `sampling`; and `stop_ids`, tokens that end a row besides those that the folder names,
                and `template`, variables of the chat template.

        Raises:
            InputError: prompts, options and model do not fit each other.
        """
        found = {piece.row: piece.result for piece in self.stream(prompts, sampling, **options) if piece.result}
        rows = [found[row] for row in range(len(found))]
        return rows[0] if _is_one(prompts) else rows

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        stop_ids: Sequence[int] = (),
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        """Write as `generate` does, and give each row's text piece by piece: whole characters, as soon as it is sure.

        Raises:
            InputError: as `generate` does; before the first piece is asked for.
        """
        words = self._words()
        asked = [cast(Prompt, prompts)] if _is_one(prompts) else list(cast(Sequence[Prompt], prompts))
        rows = [self._prompt(words, prompt, template or {}) for prompt in asked]
        chosen = Sampling.of(**{**({} if sampling is None else asdict(sampling)), **options})
        return stream(*begun(self.arrays, rows, chosen, stop_ids), words.decode)

    def _prompt(self, words: Words, prompt: Prompt, template: Mapping[str, Any]) -> list[int]:
        if not isinstance(prompt, str):
            return words.chat(prompt, template)
        return (words.sources if self.arrays.reads_source else words.prompts)([prompt])[0]

    # -- reading ----------------------------------------------------------------------------------------------------

    def encode(
        self, texts: Text | Texts | Arrays, *, pool: str | None = None, truncate: bool = False, rows: int = 32
    ) -> Floats:
        """Return one vector a text, (N, C); (C,) for a single text.

        Args:
            texts: one text or several, in which a tuple is a pair that is read as one; or arrays by the names of a
                graph's inputs, such as an encoder of images takes.
            pool: how the hidden states of real tokens become a vector: `mean`, `first`, `last`, or `max` of each entry.
                None takes what a head of the model pools.
            truncate: cut the end of a text that is longer than the model reads; else it is refused.
            rows: how many texts are read at a time.

        Raises:
            InputError: no head pools and `pool` is not given, or texts and model do not fit each other.
        """
        manifest = self.arrays.manifest
        if pool is None and not manifest.pools:
            raise InputError(f"{self.arrays.folder}: no head of this model pools: say pool=, one of {', '.join(POOLS)}")
        if pool is not None and pool not in POOLS:
            raise InputError(f"pool: {pool!r} is no way to pool; {', '.join(POOLS)} are")
        output = manifest.pools[0] if pool is None else "hidden"

        def vectors(found: Floats, mask: NDArray[Any]) -> Floats:
            return found if pool is None else POOLS[pool](found, mask.astype(bool))

        given = [cast(Text, texts)] if _is_text(texts) else cast(Texts | Arrays, texts)
        read = self._read(output, given, truncate, rows, vectors)
        width = self.arrays.outputs[output].dims[-1]
        found = np.stack(read) if read else np.zeros((0, int(width)), dtype=np.float32)
        return cast(Floats, found[0]) if _is_text(texts) else found

    @overload
    def classify(
        self, texts: Text, *, output: str | None = ..., truncate: bool = ..., rows: int = ...
    ) -> list[Label]: ...

    @overload
    def classify(
        self, texts: Texts | Arrays, *, output: str | None = ..., truncate: bool = ..., rows: int = ...
    ) -> list[list[Label]]: ...

    def classify(
        self, texts: Any, *, output: str | None = None, truncate: bool = False, rows: int = 32
    ) -> list[Label] | list[list[Label]]:
        """Return the classes of a text, the likeliest first; a list of such for several.

        Args:
            texts: as `encode` takes them.
            output: the graph's output that scores classes; the first one that does unless given.
            truncate: as `encode` takes it.
            rows: as `encode` takes it.

        Scores are probabilities; that of an only class, by which texts are compared, is what the head gives. Classes
        are named where the run says how, else numbered.

        Raises:
            InputError: no head scores classes of a whole text, or texts and model do not fit each other.
        """
        manifest = self.arrays.manifest
        scoring = [n for n, facts in self.arrays.outputs.items() if len(facts.dims) == 2 and n not in manifest.pools]
        if not scoring:
            raise InputError(f"{self.arrays.folder}: no head of this model scores classes of a whole text")
        if output is not None and output not in scoring:
            raise InputError(f"output: {output!r} scores no classes of a whole text; {', '.join(scoring)} does")
        given = [texts] if _is_text(texts) else texts
        read = self._read(output or scoring[0], given, truncate, rows, lambda found, mask: _shares(found))
        found = [self._labels(scores) for scores in read]
        return found[0] if _is_text(texts) else found

    def _labels(self, scores: Floats) -> list[Label]:
        names = self.arrays.manifest.labels
        if len(names) != len(scores):
            names = tuple(map(str, range(len(scores))))
        order = np.argsort(-scores, kind="stable").tolist()
        return [Label(names[number], float(scores[number])) for number in order]

    def _read(
        self,
        output: str,
        texts: Texts | Arrays,
        truncate: bool,
        rows: int,
        make: Callable[[Floats, NDArray[Any]], Floats],
    ) -> list[Floats]:
        """Return what `make` makes of an output and the mask (B, T) of its real tokens, for each text in its order."""
        if rows < 1:
            raise InputError(f"rows: {rows} leaves nothing to read at a time; at least 1")
        if isinstance(texts, Mapping):
            found, mask = self.arrays.whole(output, texts)
            return list(make(found.astype(np.float32, copy=False), mask))
        most = self.arrays.max_seq_len if truncate else None
        given = self._words().whole(texts, most)
        order = sorted(range(len(given)), key=lambda number: len(given[number].ids))  # little padding in a batch
        read: dict[int, Floats] = {}
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            inputs = self._inputs(output, [given[number] for number in part])
            found, mask = self.arrays.whole(output, inputs)
            read.update(zip(part, make(found.astype(np.float32, copy=False), mask), strict=True))
        return [read[number] for number in range(len(given))]

    def _inputs(self, output: str, rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
        """Return the inputs of the graph that gives an output, for texts: their tokens, and which are of a second."""
        ids, mask = padded([row.ids for row in rows])
        types, _ = padded([row.types for row in rows])
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: known[name] for name in self.arrays.graph_with(output).inputs if name in known}

    def _words(self) -> Words:
        if self.words is None:
            raise InputError(f"{self.arrays.folder}: has no {TOKENIZER}, so it takes no text: use ArrayRuntime")
        return self.words


def _is_text(texts: object) -> bool:
    """Say whether it is one text, or one pair of texts."""
    return isinstance(texts, str | tuple)


def _is_one(prompts: object) -> bool:
    """Say whether it is one prompt: a text, or the messages of one chat."""
    return isinstance(prompts, str) or (
        isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], Mapping)
    )


def _shares(scores: Floats) -> Floats:
    """Return the probabilities of classes (B, V); the scores themselves where there is one class only."""
    if scores.shape[-1] == 1:
        return scores
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return cast(Floats, weights / weights.sum(axis=-1, keepdims=True))


def _mean(hidden: Floats, real: NDArray[np.bool_]) -> Floats:
    summed = (hidden * real[..., None]).sum(axis=1)
    return cast(Floats, summed / np.maximum(real.sum(axis=1, keepdims=True), 1).astype(np.float32))


def _at(hidden: Floats, real: NDArray[np.bool_], column: NDArray[np.int64]) -> Floats:
    """Return the hidden states at one column of each row (B,); 0 for a row without real tokens."""
    return hidden[np.arange(len(hidden)), column] * real.any(axis=1, keepdims=True)


def _first(hidden: Floats, real: NDArray[np.bool_]) -> Floats:
    return _at(hidden, real, real.argmax(axis=1))


def _last(hidden: Floats, real: NDArray[np.bool_]) -> Floats:
    return _at(hidden, real, real.shape[1] - 1 - real[:, ::-1].argmax(axis=1))


def _largest(hidden: Floats, real: NDArray[np.bool_]) -> Floats:
    found = np.where(real[..., None], hidden, -np.inf).max(axis=1)
    return cast(Floats, np.where(real.any(axis=1, keepdims=True), found, np.float32(0)))


POOLS: Mapping[str, Callable[[Floats, NDArray[np.bool_]], Floats]] = {
    "mean": _mean,
    "first": _first,
    "last": _last,
    "max": _largest,
}
"""Ways to make one vector (B, C) of hidden states (B, T, C), of which some are of real tokens (B, T)."""
