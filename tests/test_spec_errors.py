"""How a wrong spec is refused: all at once, each problem at its place, within limits, and giving nothing away."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from transom.errors import SpecError
from transom.registry.marks import BrokenSpec
from transom.registry.read import MAX_NODES
from transom.registry.spec import load_spec, parse_spec

GOOD = Path(__file__).with_name("good.yaml").read_text()


def refused(text: str, *changes: str) -> tuple[str, ...]:
    """Return the lines of the one error that a spec is refused with."""
    with pytest.raises(BrokenSpec) as caught:
        parse_spec(text, changes)
    assert [str(problem) for problem in caught.value.errors] == str(caught.value).splitlines()
    return tuple(str(caught.value).splitlines())


def test_all_problems_are_told_at_once() -> None:
    text = GOOD.replace("norm: rms\n  head", "norm: rns\n  head").replace("kind: local", "kind: locl")
    text = text.replace("lr:", "lrr:").replace("name: good", "name: yes").replace("n_heads: 6, n_kv", "n_kv")
    assert [line.split(": ")[1] for line in refused(text, "train.steps=ten", "modle.d_model=3", "5")] == [
        "name",
        "model.layer.attention.n_heads",
        "model.layers.0.pattern.0.attention.kind",
        "model.norm",
        "train.lrr",
        "train.steps",
        "modle",
        "'5' should be key=value, such as train.steps=100",
    ]


def test_problems_beyond_fifty_are_counted() -> None:
    with pytest.raises(BrokenSpec) as caught:
        parse_spec(GOOD.replace("opset: 24", ", ".join(f"x{i}: 1" for i in range(77))))
    assert len(caught.value.errors) == 77
    assert str(caught.value).splitlines()[50:] == ["... and 27 more"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model.d_modl=3", "override 1: model.d_modl: unknown option 'd_modl' (did you mean 'd_model'?)"),
        ("model.d_model", "override 1: 'model.d_model' should be key=value, such as train.steps=100"),
        ("model..d_model=3", "override 1: 'model..d_model=3' should be key=value, such as train.steps=100"),
        ("train.steps=010", "override 1: train.steps: 010 without quotes is 8 to some YAML readers: write"),
        ("train.lr={", "override 1: train.lr: not valid YAML"),
        ("train.lr=a\x00", "override 1: train.lr: the character U+0000 can't stand in YAML"),
        ("train={lr: 1, lr: 2}", "override 1: train.lr: 'lr' is given twice"),
        ("extends=tiny_gpt", "override 1: extends: only a file can say what it extends"),
        ("model.layers.7.repeat=2", "override 1: model.layers.7: there is no item 7: the list has 1"),
        ("model.layer.attention.window=5", "override 1: model.layer.attention.window: unknown option 'window'"),
        ("model.layer.attention={kind: local, n_heds: 3}", "override 1: model.layer.attention.n_heds: unknown option"),
        (".".join("a" * 40) + "=1", "override 1: is too long"),
    ],
)
def test_overrides_are_located(change: str, expected: str) -> None:
    assert any(line.startswith(expected) for line in refused(GOOD, change))


def test_a_swap_does_not_excuse_an_option_beside_the_new_kind() -> None:
    assert refused(GOOD, "model.layer.attention={kind: linear, window: 3}")[0].startswith(
        "override 1: model.layer.attention.window: unknown option 'window'"
    )


def test_a_part_of_a_reference_can_not_be_changed() -> None:
    text = GOOD.replace("  norm: rms\n  head", "  norm: ${model.layer.norm}\n  head")
    assert refused(text, "model.norm.eps=1")[0].startswith(
        "override 1: model.norm: can't change a part of the reference"
    )


def test_a_stack_that_the_topology_has_not() -> None:
    text = GOOD.replace("topology: decoder", "topology: encoder_decoder\n  encodr: {norm: none}")
    assert refused(text) == ("<text>:4:3: model.encodr: unknown option 'encodr' (did you mean 'encoder'?)",)


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def loaded(path: Path | str) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    return str(caught.value)


def test_a_problem_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    write(tmp_path, child="extends: base.yaml\nmodel: {d_modle: 3}\n", base=GOOD.replace("tied", "tide"))
    assert loaded(tmp_path / "child.yaml").splitlines() == [
        f"{tmp_path}/base.yaml:19:20: model.head.tide: unknown option 'tide' (did you mean 'tied'?)",
        f"{tmp_path}/child.yaml:2:9: model.d_modle: unknown option 'd_modle' (did you mean 'd_model'?)",
    ]


def test_circles_and_chains_of_parents(tmp_path: Path) -> None:
    write(tmp_path, a="extends: b.yaml\nname: a\n", b="extends: c.yaml\n", c="extends: b.yaml\n")
    assert loaded(tmp_path / "a.yaml") == f"{tmp_path}/c.yaml:1:10: extends: 'b.yaml' extends itself, in a circle"
    write(tmp_path, **{f"n{i}": f"extends: n{i + 1}.yaml\n" for i in range(30)}, n30=GOOD)
    assert loaded(tmp_path / "n0.yaml") == f"{tmp_path}/n16.yaml:1:10: extends: more than 16 specs extend each other"


@pytest.mark.parametrize(
    "secret", ["root:x:0:0:hunter2:/root\n", "password: hunter2\n", "a: 'hunter2\n", "- hunter2", "a: *hunter2"]
)
def test_what_is_no_spec_is_not_told(tmp_path: Path, secret: str) -> None:
    write(tmp_path, child="extends: secret.yaml\n", secret=secret)
    for message in (loaded(tmp_path / "child.yaml"), loaded(tmp_path / "secret.yaml")):
        assert re.match(rf"{tmp_path}/secret.yaml:\d+:\d+: ", message)
        assert "hunter2" not in message
        assert "password" not in message


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", spec=GOOD)
    (tmp_path / "latin.yaml").write_bytes(GOOD.replace("good", "g\u00f6\u00f6d").encode("latin-1"))
    (tmp_path / "big.yaml").write_text("# " + "x" * 1_000_000)
    (tmp_path / "empty.yaml").touch()
    assert (
        loaded(tmp_path / "none.yaml")
        == f"{tmp_path}/none.yaml:1:1: {tmp_path}/none.yaml can't be read: No such file or directory"
    )
    assert loaded(tmp_path / "run").endswith(f"{tmp_path}/run is not a file; did you mean {tmp_path}/run/spec.yaml?")
    assert loaded(tmp_path / "latin.yaml") == f"{tmp_path}/latin.yaml:1:8: not UTF-8: save it as UTF-8 text"
    assert loaded(tmp_path / "big.yaml").startswith(f"{tmp_path}/big.yaml:1:1: ")
    assert loaded(tmp_path / "empty.yaml").startswith(f"{tmp_path}/empty.yaml:1:1: there is nothing")
    assert loaded("tiny_gtp").startswith("tiny_gtp: no bundled spec is named 'tiny_gtp' (did you mean 'tiny_gpt'?)")


def bombs() -> dict[str, str]:
    """Return texts that would cost a reader its stack, its memory or its evening."""
    letters = "abcdefgh"
    lists = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise(letters)]
    merges = [f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}], k{b}: *{a}}}" for a, b in itertools.pairwise(letters)]
    doubles = [f'x{i}: "${{train.x{i - 1}}}${{train.x{i - 1}}}"' for i in range(1, 19)]
    maps = [f'x{i}: ["${{train.x{i - 1}}}", "${{train.x{i - 1}}}"]' for i in range(1, 19)]
    return {
        "lists": "model: " + "[" * 5000 + "]" * 5000,
        "maps": "model: " + "{a: " * 5000 + "1" + "}" * 5000,
        "open": "model: " + "[" * 100_000,
        "aliases": "\n".join(["name: x", "a: &a [1, 1]", *lists]),
        "merges": "\n".join(["name: x", "a: &a {b: 1}", *merges]),
        "self": "model: &m {layer: *m}",
        "values": f"model: [{'1, ' * (MAX_NODES + 1)}]",
        "texts": GOOD.replace("steps: 10", ", ".join(["x0: abcdefgh", *doubles])),
        "copies": GOOD.replace("steps: 10", ", ".join(["x0: [1]", *maps])),
        "references": GOOD.replace("steps: 10", ", ".join(f'x{i}: "${{name}}{i}"' for i in range(1500))),
        "nested": GOOD.replace("name: good", f'name: "{"${" * 1500}"'),
        "circle": GOOD.replace("steps: 10", ", ".join(f'x{i}: "${{train.x{(i + 1) % 900}}}"' for i in range(900))),
        "long": "name: " + "x" * 2_000_000,
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_with_a_place(name: str) -> None:
    with pytest.raises(BrokenSpec) as caught:
        parse_spec(bombs()[name])
    assert all(re.match(r"<text>:\d+:\d+: ", str(problem)) for problem in caught.value.errors)


def test_plain_data_has_limits_too() -> None:
    endless: dict[str, object] = {"name": "x"}
    endless["model"] = endless
    odd = [{1: 2}, {"d_model": object()}, {"d_model": 10**400}, {"d_model": "\ud800"}, [[0]] * 9999]
    for given in (endless, {}, *({"model": model} for model in odd)):
        with pytest.raises(BrokenSpec):
            parse_spec(given)


def test_a_message_is_one_line_that_no_terminal_obeys() -> None:
    for line in refused(GOOD.replace("tied: true", '"a\\e[31m\\n": 1'), "a\udcff=1", "model.\x1b=2"):
        assert line.isprintable()
