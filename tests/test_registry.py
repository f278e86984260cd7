"""The registry: what is found, by which name, what is imported for it, and what is refused."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from transom.core.component import KINDS, spec_name
from transom.errors import PluginError, SpecError
from transom.registry import manager
from transom.registry.manager import GROUP, Registry, UnknownName
from transom.registry.spec import dump_spec, parse_spec

HEAD = """
from dataclasses import dataclass
from typing import Annotated
from transom.core.component import Component, Part
TRANSOM_API = 1

class RingAttention(Component):
    kind = "attention"
    @dataclass(frozen=True, kw_only=True)
    class Config:
        n_heads: int
        size: float = 2.0
        norm: Annotated[Part | None, "norm"] = None
        def __post_init__(self):
            if self.size < 0:
                raise ValueError("size: is negative")
            if self.n_heads > 100:
                raise ValueError("too much")
            if self.n_heads == 13:
                raise KeyError("thirteen")
"""
GIVE = """
def transom_components():
    return {}
"""
RING = HEAD + GIVE.format("[RingAttention]")
MARKED = "import pluggy\n@pluggy.HookimplMarker('transom')\n"
Install = Callable[..., Path]


def fresh(allowed: list[str] | None = None, blocked: tuple[str, ...] = ()) -> Registry:
    return Registry(entry_points(group=GROUP), allowed, blocked)


def test_each_built_in_file_is_registered_under_its_name(root: Path) -> None:
    written = {
        (path.parent.name, path.stem) for path in (root / "plugins").glob("*/*.py") if path.stem not in ("__init__",)
    }
    assert written == {(kind, name) for kind in KINDS for name in manager.names(kind)}
    for kind, name in written:
        cls = manager.get(kind, name)
        assert (cls.kind, cls.name, cls.__module__) == (kind, name, f"transom.plugins.{kind}.{name}")
        assert manager.default().full_name(cls) == name


def test_a_component_is_registered_by_one_line(root: Path) -> None:
    source = (root / "plugins" / "__init__.py").read_text()
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.level == 1]
    assert all(len(node.names) == 1 and node.lineno == node.end_lineno for node in imports)
    assert len(imports) == sum(len(manager.names(kind)) for kind in KINDS)
    for node in imports:
        assert len(re.findall(rf"\b{node.names[0].name}\b", source)) == 1


def test_names_follow_from_classes() -> None:
    assert spec_name(type("LocalAttention", (), {"kind": "attention"})) == "local"
    assert spec_name(type("CausalLmObjective", (), {"kind": "objective"})) == "causal_lm"
    assert spec_name(type("GluFeedForward", (), {"kind": "feedforward"})) == "glu"


def test_a_package_brings_components_under_its_name(install: Install) -> None:
    install("acme", RING)
    install("other", "raise RuntimeError('imported though nobody asked')")
    registry = fresh()
    cls = registry.get("attention", "acme/ring")
    assert (cls.name, registry.full_name(cls)) == ("ring", "acme/ring")
    assert "acme/ring" not in registry.names("attention")
    text = """
model:
  {topology: decoder, d_model: 8, max_seq_len: 9, embedding: {kind: token, vocab_size: 11}, position: none, norm: rms,
   head: lm, layer: {norm: rms, feedforward: mlp, attention: {kind: acme/ring, n_heads: 2, norm: {kind: rms, eps: 3}}},
   layers: [{}]}
"""
    spec = parse_spec(text, ["model.layer.attention.size=3"], registry=registry)
    attention = spec.model.stacks["decoder"].layers[0].attention
    assert attention is not None
    assert (attention.cls, attention.config.size, attention.config.norm.name) == (cls, 3.0, "rms")
    assert "acme/ring" in dump_spec(spec)
    assert parse_spec(dump_spec(spec), registry=registry) == spec
    for change, message in [
        ("size=-1", "size: is negative"),
        ("kind=acme/rng", "kind: no attention named 'acme/rng' (did you mean 'acme/ring'?)"),
        ("kind=acne/ring", "kind: no installed package 'acne' brings components (did you mean 'acme'?)"),
    ]:
        with pytest.raises(SpecError) as caught:
            parse_spec(text, [f"model.layer.attention.{change}"], registry=registry)
        assert str(caught.value) == f"override 1: model.layer.attention.{message}"
    with pytest.raises(SpecError, match=r"^override 1: model.layer.attention: too much$"):
        parse_spec(text, ["model.layer.attention.n_heads=101"], registry=registry)
    with pytest.raises(PluginError, match="Config can't check its options: KeyError: 'thirteen'"):
        parse_spec(text, ["model.layer.attention.n_heads=13"], registry=registry)
    with pytest.raises(PluginError, match=r"<text>:4:69: model.layer.attention.kind: package 'other'.*nobody asked"):
        parse_spec(text.replace("acme/ring", "other/ring"), registry=registry)


def test_everything_is_imported_only_when_asked_for(install: Install) -> None:
    install("acme", RING)
    registry = fresh()
    assert registry.get("norm", "rms").name == "rms"
    registry.names("attention")
    assert "acme_module" not in sys.modules
    assert "acme/ring" in registry.names("attention", everything=True)
    assert "acme_module" in sys.modules


def test_installed_tells_from_metadata_alone(install: Install) -> None:
    install("acme", "raise SystemExit(3)", distribution="acme-parts")
    found = {item.name: item for item in fresh([]).installed()}
    acme = found["acme"]
    assert (acme.distribution, acme.version, acme.module, acme.allowed) == ("acme-parts", "1.2", "acme_module", False)
    assert (found["transom"].distribution, found["transom"].module) == ("transom", "transom.plugins")
    assert found["transom"].allowed


BROKEN = [
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("x = (", "SyntaxError"),
    ("TRANSOM_API = 1", "it should implement the hook transom_components"),
    ("x = 1", "declares no API version; this Transom offers 1: write TRANSOM_API = 1 in acme_module"),
    ("TRANSOM_API = '1'", "declares TRANSOM_API = '1'; this Transom offers 1: write TRANSOM_API = 1 in acme_module"),
    ("TRANSOM_API = 2", "was written for API 2, and this Transom offers 1: install a newer Transom"),
    ("TRANSOM_API = 0", "was written for API 0, and this Transom offers 1: install a newer acme-parts"),
    (
        HEAD + "def transom_componets(): return []",
        "has a function transom_componets, and there is no such hook (did you mean 'transom_components'?)",
    ),
    (HEAD + MARKED + "def transom_componets(): return []", "PluginValidationError: unknown hook 'transom_componets'"),
    (HEAD + "def transom_components(kind): return []", "PluginValidationError"),
    (HEAD + "def transom_components(): raise SystemExit(4)", "SystemExit: 4"),
    (HEAD + GIVE.format("[3]"), "gives 3, which is not a component class"),
    (HEAD + GIVE.format("[dict]"), "gives <class 'dict'>, which is not a component class"),
    (HEAD + "class Odd(Component): pass" + GIVE.format("[Odd]"), "Odd is of no kind; kinds are attention, position"),
    (HEAD + "class Odd(Component): kind = 'norm'" + GIVE.format("[Odd]"), "Odd needs a frozen dataclass named Config"),
    (HEAD.replace("frozen=True", "frozen=False") + GIVE.format("[RingAttention]"), "Config must be frozen"),
    (HEAD.replace("size: float", "kind: float") + GIVE.format("[RingAttention]"), "has an option named kind"),
    (HEAD + "RingAttention.name = 'none'" + GIVE.format("[RingAttention]"), "has the name 'none'"),
    (HEAD + "RingAttention.name = 'a/b'" + GIVE.format("[RingAttention]"), "has the name 'a/b'"),
    (
        HEAD + "class Ring(RingAttention): name = 'ring'" + GIVE.format("[RingAttention, Ring]"),
        "two components of kind attention named 'ring': acme_module.RingAttention and acme_module.Ring",
    ),
    (RING.replace("kind =", "since = {'sise': '1.2'}; kind ="), "since speaks of 'sise', which is no option"),
    (RING.replace("kind =", "renamed = {'sz': 'sise'}; kind ="), "renamed speaks of 'sise', which is no option"),
    (RING.replace("kind =", "renamed = {'size': 'norm'}; kind ="), "renamed speaks of 'size', which is one still"),
    (RING.replace("kind =", "gone = {'size': 'give norm'}; kind ="), "gone speaks of 'size', which is one still"),
    (
        HEAD
        + "from transom.core.norm import Norm\nclass Half(Norm):\n  Config = RingAttention.Config"
        + GIVE.format("[Half]"),
        "Half is abstract: it still needs",
    ),
]


@pytest.mark.parametrize(("source", "message"), BROKEN)
def test_a_broken_package_is_one_error_that_names_it(install: Install, source: str, message: str) -> None:
    install("acme", source, distribution="acme-parts")
    registry = fresh()
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            registry.get("attention", "acme/ring")
        assert str(caught.value).startswith("package 'acme' (acme-parts, acme_module)")
        assert message in str(caught.value)
    assert registry.get("norm", "rms").name == "rms"


def test_options_of_impossible_types_name_the_option(install: Install) -> None:
    install("acme", RING.replace("size: float = 2.0", "size: complex = 2j").replace("if self.size < 0", "if False"))
    with pytest.raises(PluginError, match=r"RingAttention.Config.size: an option can't be of type <class 'complex'>"):
        parse_spec("model: {layer: {attention: acme/ring}}", registry=fresh())


def test_two_distributions_with_one_name_are_both_named(install: Install) -> None:
    install("acme", RING, distribution="acme-one")
    install("acme", RING, distribution="acme-two", module="second_module")
    with pytest.raises(PluginError, match=r"acme-(one|two) \(\w+_module\) and acme-(one|two) \(\w+_module\)"):
        fresh().get("attention", "acme/ring")
    assert fresh().get("attention", "full").name == "full"


def test_a_package_that_takes_transoms_name_is_refused(install: Install) -> None:
    install("transom", RING, distribution="impostor")
    with pytest.raises(PluginError, match=r"two distributions bring the package name 'transom'.*impostor"):
        fresh().get("attention", "full")


def test_the_variable_narrows(install: Install) -> None:
    install("acme", RING)
    assert fresh(["acme"]).get("attention", "acme/ring").name == "ring"
    registry = fresh(["other"])
    with pytest.raises(PluginError, match="package 'acme' is installed, but TRANSOM_PLUGINS does not allow it"):
        registry.get("attention", "acme/ring")
    assert "acme/ring" not in registry.names("attention", everything=True)
    assert registry.get("attention", "full").name == "full"


def test_a_package_can_be_blocked(install: Install) -> None:
    install("acme", RING)
    install("other", RING)
    registry = fresh(["acme", "other"], blocked=("acme",))
    assert {item.name: item.barred for item in registry.installed()} == {
        "acme": "-p no:acme blocks it",
        "other": "",
        "transom": "",
    }
    assert registry.get("attention", "other/ring").name == "ring"
    registry.block("other")  # loaded, and still refused
    for name in ("acme", "other"):
        with pytest.raises(PluginError, match=f"package '{name}' is installed, but -p no:{name} blocks it"):
            registry.get("attention", f"{name}/ring")
    assert "acme_module" not in sys.modules
    with pytest.raises(PluginError, match="package 'transom' can't be blocked"):
        registry.block("transom")


def test_hooks_may_be_decorated(install: Install) -> None:
    install("acme", RING.replace("def transom_components", MARKED + "def transom_components"))
    assert fresh().get("attention", "acme/ring").name == "ring"


def test_the_variable_is_a_comma_list(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    install("acme", RING)
    for value, allowed in [("", False), ("acme", True), (" other , acme ", True), ("other", False)]:
        monkeypatch.setenv("TRANSOM_PLUGINS", value)
        manager.default.cache_clear()
        assert {item.name: item.allowed for item in manager.installed()} == {"acme": allowed, "transom": True}
    manager.default.cache_clear()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("attention", "ful", "no attention named 'ful' (did you mean 'full'?)"),
        ("attention", "rope", "no attention named 'rope' ('rope' is a position)"),
        ("norm", "zzz", f"no norm named 'zzz' (allowed: {', '.join(manager.names('norm'))})"),
        ("norm", "transom/rms", "built-in components have bare names: write 'rms'"),
    ],
)
def test_unknown_names(kind: str, name: str, message: str) -> None:
    with pytest.raises(UnknownName) as caught:
        manager.get(kind, name)
    assert str(caught.value) == message


def test_without_transoms_own_entry_point_it_says_so() -> None:
    with pytest.raises(PluginError, match="Transom itself is not installed"):
        Registry([]).get("norm", "rms")
    with pytest.raises(UnknownName, match=r"no installed package 'acme' brings components \(there is none\)"):
        Registry([EntryPoint("transom", "transom.plugins", GROUP)]).get("norm", "acme/rms")


def test_the_registry_itself_needs_no_torch() -> None:
    code = (
        "import sys, transom.registry.spec, transom.registry.schema; from transom.registry.manager import installed;"
        "assert installed(); assert not {'torch', 'transom.plugins'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_class_has_its_name_in_a_registry_that_has_not_handed_it_out() -> None:
    cls = manager.get("attention", "full")
    other = Registry(entry_points(group=GROUP))
    assert other.full_name(cls) == "full"
    with pytest.raises(KeyError):
        other.full_name(type("Unknown", (cls,), {"__module__": "elsewhere"}))
