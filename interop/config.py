"""From the `config.json` of a Hugging Face folder to a spec, as a family's own section `hf.config` says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..registry.configured import LAYERS, ConfigSettings, FieldSettings
from ..registry.marks import BrokenSpec, Mark, Node, Problem, nearest, node_of, piece_at, shown
from ..registry.read import read_plain
from ..registry.spec import Spec
from .heads import Heads
from .layers import Layers, text_of

# Fields of every family's file that say nothing of what the model computes: of training, of text, of how to load it.
IGNORED = (
    "_name_or_path", "_num_labels", "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_*_token_id", "from_tf", "gradient_checkpointing",
    "id2label", "initializer_*", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pad_token_id", "prefix", "problem_type",
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
    "quantization_config": None,
    "tie_encoder_decoder": False,
}
QUANTISED = "quantization_config"


def laid_over(config: Mapping[str, Any], source: str, family: Spec) -> list[Node]:
    """Return the pieces of a spec that a `config.json` comes to, in the order that they are laid over the family's.

    `source`: what messages call the file.

    Raises:
        SpecError: with each field that is missing, is not known, or has a value that is not known, at its place; or the
            family itself speaks of heads that it does not have.
    """
    assert family.hf is not None
    assert family.hf.config is not None
    settings, heads = family.hf.config, Heads(family)
    if odd := list(heads.problems(settings)):
        raise BrokenSpec(odd)
    patterns = (*IGNORED, *settings.ignored)
    theirs = {
        name: _bounded(value)
        for name, value in config.items()
        if name in settings.readings or not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    reader = _Reader(read_plain(theirs, source, []), settings, heads)
    reader.architecture(config.get("architectures") or settings.unnamed or list(settings.architectures)[:1])
    reader.read()
    if reader.problems:
        raise BrokenSpec(reader.problems)
    return reader.laid


class _Reader:
    """Turn the fields of one file into pieces of a spec, and note what is wrong with them."""

    def __init__(self, config: Node, settings: ConfigSettings, heads: Heads) -> None:
        self.config = config
        self.settings = settings
        self.heads = heads
        self.problems: list[Problem] = []
        self.laid: list[Node] = []
        self.layers = Layers(settings.layers, settings.depth, lambda node, message: self._note(node.mark, message))
        self.parents = {name.rpartition(".")[0] for name in settings.readings if "." in name}
        self.parents |= {parent.partition(".")[0] for parent in self.parents}
        self.found = self._by_name()
        self.given = dict(self.found)

    def architecture(self, named: object) -> None:
        """Lay over what the architecture of the file asks for."""
        names = named if isinstance(named, list) else [named]
        known = self.settings.architectures
        place = Mark(self.config.mark.source, path="architectures")
        asked = [name for name in names if isinstance(name, str)]
        named = [name for name in asked if name in known][:1]
        likely = [name for name in known if name not in asked and any(fnmatchcase(given, name) for given in asked)]
        if self.settings.start is not None:
            self.laid.append(self.settings.start)
        if found := [self.settings.architecture(name) for name in dict.fromkeys([*likely, *named])]:
            pieces = [self.heads.chosen(found), *(architecture.piece for architecture in found)]
            self.laid += [piece for piece in pieces if piece is not None]
        else:
            given = ", ".join(map(str, names))
            why = next((self.settings.reasons[name] for name in asked if name in self.settings.reasons), None)
            message = f"{shown(given)} is not known to the family{nearest(given, known)}"
            self.problems.append(Problem(place, message if why is None else f"{message}: {why}"))

    def read(self) -> None:
        """Read every field: those of the family in its order, then look at what is left."""
        for name, reading in self.settings.readings.items():
            node = self.found.pop(name, None) if reading.of is None else self.given.get(reading.of)
            name = reading.of or name
            if not all(self._is(other, wanted) for other, wanted in reading.when.items()):
                continue
            if node is None:
                node = self.settings.defaults.get(name)
                if node is None and "." not in name and reading.of is None:
                    self._note(self.config.mark.below(name), "is missing: the family knows no default of it")
            if node is not None:
                self._apply(name, reading, node)
        if groups := self.layers.groups():
            self.laid.append(piece_at("model.layers", groups))
        for name, node in self.found.items():
            self._same(name, node)

    def _by_name(self) -> dict[str, Node]:
        """Return the fields by name, and note those that are there under an older name too, with another value."""
        found: dict[str, Node] = {}
        for name, node in self._fields(self.config, ""):
            other = found.setdefault(name, node)
            if other.plain() != node.plain():
                said = f"{shown(other.plain())} by {other.mark.path}, which is the same field"
                self._note(node.mark, f"is {shown(node.plain())}, and {said}: leave one of them out")
        return found

    def _fields(self, config: Node, path: str) -> Iterator[tuple[str, Node]]:
        """Yield the fields by name, those of maps that the family looks into among them."""
        for key, node in config.items.items():
            name = self.settings.renamed.get(f"{path}{key}", f"{path}{key}")
            if name not in self.parents or not isinstance(node.value, dict | None):
                yield name, node
            elif node.value is not None:
                yield from self._fields(node, f"{name}.")

    def _is(self, name: str, wanted: Node) -> bool:
        """Say whether a field, or its default where the file leaves it out, has a value, or one of several."""
        node = self.given.get(name) or self.settings.defaults.get(name)
        allowed = [item.plain() for item in (wanted.value if isinstance(wanted.value, tuple) else (wanted,))]
        return node is not None and node.plain() in allowed

    def _apply(self, name: str, reading: FieldSettings, node: Node) -> None:
        """Lay over what one field comes to."""
        value = reading.parted(node)
        text = text_of(value)
        if text in reading.refused:
            self._note(node.mark, f"{shown(node.plain())} is not read: it {reading.refused[text]}")
        elif text in reading.cases:
            self.laid.append(reading.cases[text])
        elif reading.per_layer is not None and (one := _one(node)) is not None:
            self.laid.append(piece_at(f"model.layer.{reading.per_layer}", one))
        elif reading.chooses:
            given = node is not self.settings.defaults.get(name)
            self.layers.choose(name, reading, node, self._value(str(self.settings.depth)), given)
        elif reading.ours and text not in reading.ours:
            self._refuse(node, {*reading.ours, *reading.cases})
        elif reading.counted:
            if isinstance(node.value, dict | tuple):
                self._set(reading, node_of(len(node.value), node.mark))
            else:
                self._note(node.mark, f"should be a map or a list, not {shown(node.plain())}")
        elif reading.to:
            self._set(reading, reading.ours.get(text, value))
        else:
            self._refuse(node, reading.cases)

    def _set(self, reading: FieldSettings, value: Node) -> None:
        """Lay a value over the options that a field goes to."""
        for path in (path for to in reading.to for path in self.heads.paths(to)):
            if path.startswith(f"{LAYERS}."):
                self.layers.set(path.removeprefix(f"{LAYERS}."), value)
            else:
                self.laid.append(piece_at(path, value))

    def _value(self, name: str) -> object:
        """Return what a field is, or its default; None where there is neither."""
        node = self.given.get(name) or self.settings.defaults.get(name)
        return None if node is None else node.value

    def _same(self, name: str, node: Node) -> None:
        """Note a field that no option stands for, unless it has the one value that changes nothing."""
        if name == QUANTISED and node.value is not None:
            method = node.items["quant_method"].plain() if "quant_method" in node.items else "in some way"
            advice = "weights are read as they are, in fp32, bf16 or fp16: convert the folder first"
            self._note(node.mark, f"the weights are quantised ({method}); {advice}")
            return
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
        self._note(node.mark, f"{shown(node.plain())} is not known to the family{nearest(text_of(node), known)}")

    def _note(self, mark: Mark, message: str) -> None:
        why = self.settings.reasons.get(mark.path)
        problem = Problem(mark, message if why is None else f"{message}: {why}")
        if problem not in self.problems:  # a field may be read more than once
            self.problems.append(problem)


def _bounded(value: Any) -> Any:
    """Return a value with null for every limit that is infinite, as JSON has it or as transformers writes it."""
    if value == math.inf or value == {"__float__": "Infinity"}:
        return None
    return [_bounded(item) for item in value] if isinstance(value, list) else value


def _one(node: Node) -> Node | None:
    """Return what all layers have: a value that is no list, or all items of one that are alike."""
    if not isinstance(node.value, tuple):
        return node
    return node.value[0] if len({text_of(item) for item in node.value}) == 1 else None
