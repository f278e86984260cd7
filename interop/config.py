"""From the `config.json` of a Hugging Face folder to a spec, as a family's own section `hf.config` says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import cycle, islice
from typing import Any

from ..registry.marks import BrokenSpec, Mark, Node, Problem, nearest, node_of, shown
from ..registry.read import read_plain
from ..registry.typed import ConfigSettings, FieldSettings

# Fields of every family's file that say nothing of what the model computes: of training, of text, of how to load it.
IGNORED = (
    "_name_or_path", "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "cache_implementation", "chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_*_token_id", "id2label", "initializer_*", "label2id", "length_penalty", "max_length",
    "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_cache", "*_dropout",
    "*dropout_prob", "*_pdrop", "dropout", "unsloth_*",
)  # fmt: skip
# Fields that every family's file may have, and that change what is computed.
SAME: Mapping[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}


def laid_over(config: Mapping[str, Any], source: str, settings: ConfigSettings) -> list[Node]:
    """Return the pieces of a spec that a `config.json` comes to, in the order that they are laid over the family's.

    `source`: what messages call the file.

    Raises:
        SpecError: with each field that is missing, is not known, or has a value that is not known, at its place.
    """
    patterns = (*IGNORED, *settings.ignored)
    theirs = {
        name: _bounded(value)
        for name, value in config.items()
        if name in settings.readings or not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    reader = _Reader(read_plain(theirs, source, []), settings)
    reader.architecture(config.get("architectures") or list(settings.architectures)[:1])
    reader.read()
    if reader.problems:
        raise BrokenSpec(reader.problems)
    return reader.laid


class _Reader:
    """Turn the fields of one file into pieces of a spec, and note what is wrong with them."""

    def __init__(self, config: Node, settings: ConfigSettings) -> None:
        self.config = config
        self.settings = settings
        self.problems: list[Problem] = []
        self.laid: list[Node] = []
        self.parents = {name.rpartition(".")[0] for name in settings.readings if "." in name}
        self.parents |= {parent.partition(".")[0] for parent in self.parents}
        self.found = dict(self._fields(config, ""))

    def architecture(self, named: object) -> None:
        """Lay over what the architecture of the file asks for."""
        names = named if isinstance(named, list) else [named]
        known = self.settings.architectures
        place = Mark(self.config.mark.source, path="architectures")
        found = next((name for name in names if isinstance(name, str) and name in known), None)
        if found is None:
            given = ", ".join(map(str, names))
            message = f"{shown(given)} is not known to the family{nearest(given, known)}"
            self.problems.append(Problem(place, message))
        else:
            self.laid.append(known[found])

    def read(self) -> None:
        """Read every field: those of the family in its order, then look at what is left."""
        for name, reading in self.settings.readings.items():
            node = self.found.pop(name, None)
            if node is None:
                node = self.settings.defaults.get(name)
                if node is None and "." not in name:
                    self._note(self.config.mark.below(name), "is missing: the family knows no default of it")
            if node is not None:
                self._apply(name, reading, node)
        for name, node in self.found.items():
            self._same(name, node)

    def _fields(self, config: Node, path: str) -> Iterator[tuple[str, Node]]:
        """Yield the fields by name, those of maps that the family looks into among them."""
        for key, node in config.items.items():
            name = self.settings.renamed.get(f"{path}{key}", f"{path}{key}")
            if name not in self.parents or not isinstance(node.value, dict | None):
                yield name, node
            elif node.value is not None:
                yield from self._fields(node, f"{name}.")

    def _apply(self, name: str, reading: FieldSettings, node: Node) -> None:
        """Lay over what one field comes to."""
        text = _text(node)
        if text in reading.cases:
            self.laid.append(reading.cases[text])
        elif reading.each:
            self._each(name, reading, node)
        elif reading.values and text not in reading.values:
            self._refuse(node, {*reading.values, *reading.cases})
        elif reading.counted:
            if isinstance(node.value, dict | tuple):
                self._set(reading, node_of(len(node.value), node.mark))
            else:
                self._note(node.mark, f"should be a map or a list, not {shown(node.plain())}")
        elif reading.to:
            self._set(reading, reading.values.get(text, node))
        else:
            self._refuse(node, reading.cases)

    def _set(self, reading: FieldSettings, value: Node) -> None:
        """Lay a value over the options that a field goes to."""
        self.laid += [_piece(to, value) for to in reading.to]

    def _counted(self, reading: FieldSettings, node: Node) -> None:
        """Lay over how many items one field has."""
        if isinstance(node.value, dict | tuple):
            self.laid += [_piece(to, node_of(len(node.value), node.mark)) for to in reading.to]
        else:
            self._note(node.mark, f"should be a map or a list, not {shown(node.plain())}")

    def _each(self, name: str, reading: FieldSettings, node: Node) -> None:
        """Lay over a list of layers, those that come again and again as groups."""
        items = node.value if isinstance(node.value, tuple) else ()
        texts = [_text(item) for item in items]
        counted = self.config.items.get(str(reading.count))
        count = counted.value if counted and type(counted.value) is int else len(texts)
        assert isinstance(count, int)
        if odd := [item for item, text in zip(items, texts, strict=True) if text not in reading.each]:
            self._refuse(odd[0], reading.each)
            return
        if node is self.settings.defaults.get(name):
            texts = list(islice(cycle(texts), max(count, 0)))
        if not texts or count != len(texts):
            self._note(node.mark, f"should be a list of {count}, as {reading.count} says, not of {len(texts)}")
            return
        groups = []
        for start, size, times in _groups(texts):
            pattern = tuple(reading.each[text] for text in texts[start : start + size])
            group = {"repeat": node_of(times, node.mark), "pattern": node_of(pattern, node.mark)}
            groups.append(node_of(group, node.mark))
        self.laid.append(_piece("model.layers", node_of(tuple(groups), node.mark)))

    def _same(self, name: str, node: Node) -> None:
        """Note a field that no option stands for, unless it has the one value that changes nothing."""
        if name in self.settings.same:
            allowed = self.settings.same[name].plain()
        elif name in SAME:
            allowed = SAME[name]
        else:
            known = {*self.settings.readings, *self.settings.same}
            self._note(node.mark, f"is not known to the family, and may change what is computed{nearest(name, known)}")
            return
        if json.dumps(node.plain()) != json.dumps(allowed):
            self._note(node.mark, f"{shown(node.plain())} is not supported; only {shown(allowed)} is")

    def _refuse(self, node: Node, known: Sequence[str] | Mapping[str, Node] | set[str]) -> None:
        self._note(node.mark, f"{shown(node.plain())} is not known to the family{nearest(_text(node), known)}")

    def _note(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(mark, message))


def _bounded(value: Any) -> Any:
    """Return a value with null for every limit that is infinite, as JSON has it or as transformers writes it."""
    if value == math.inf or value == {"__float__": "Infinity"}:
        return None
    return [_bounded(item) for item in value] if isinstance(value, list) else value


def _text(node: Node) -> str:
    """Return a value as the keys of `values`, `cases` and `each` spell it: texts plain, the rest as JSON does."""
    return node.value if isinstance(node.value, str) else json.dumps(node.plain())


def _piece(path: str, value: Node) -> Node:
    """Return a piece of a spec that says one thing: the value at a dotted path."""
    for key in reversed(path.split(".")):
        value = node_of({key: value}, value.mark, {key: value.mark})
    return value


def _groups(items: Sequence[str]) -> list[tuple[int, int, int]]:
    """Cut items into a pattern that repeats and what is left of it: (start, size, times) of each group."""
    total = len(items)
    size = next(size for size in range(1, total + 1) if list(items) == list(islice(cycle(items[:size]), total)))
    times, rest = divmod(total, size)
    return [(0, size, times), *([(times * size, rest, 1)] if rest else [])]
