"""Configs as text: strict YAML, and overrides of its keys.

Numbers are those of YAML 1.2's core schema: ``010`` is 10, ``0o10`` is 8, ``0x10`` is 16, ``1e-3`` is 0.001;
``1:30``, ``1_000`` and ``2020-01-31`` are text. ``yes``, ``no``, ``on`` and ``off`` stay booleans, as in YAML
1.1. What is written here is read back equal, also by a reader of YAML 1.1.
"""

import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError, SafeConstructor

from rl2meta.errors import UserError

MOST_CHARACTERS, MOST_NODES, DEEPEST = 1_000_000, 100_000, 64
"""Limits of a config: its text, its values with every alias written out, and its levels."""
_MOST_DIGITS = 1_000
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
)
_BOOL = re.compile(r"(?:yes|no|true|false|on|off)\Z|(?:Yes|No|True|False|On|Off|YES|NO|TRUE|FALSE|ON|OFF)\Z")
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ODD = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd]")
"""What only double quotes keep in every place of a text: line breaks, control characters and the like."""


class _Extent(NamedTuple):
    """How much a part of a config is with every alias written out: its number of values and of levels."""

    nodes: int
    levels: int


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads numbers, text, booleans, null, and lists and mappings of them, and no more.

    It refuses duplicate keys, and what is too large, too deep or contains itself before it builds anything.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open = 0
        self._extents: dict[int, _Extent] = {}  # of nodes by id; the document keeps them alive

    def compose_node(self, parent: yaml.Node | None, index: int) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self._open >= DEEPEST:
            raise ComposerError(None, None, f"expected at most {DEEPEST} levels, got more", event.start_mark)
        self._open += 1
        node: Any = super().compose_node(parent, index)
        self._open -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._extents[id(node)] = self._extent(node)
        elif id(node) not in self._extents:
            said = f"the part &{event.anchor} contains itself; write it out"
            raise ComposerError(None, None, said, node.start_mark)
        return node

    def _extent(self, node: Any) -> _Extent:
        parts = [self._extents[id(part)] for part in _parts(node)]
        nodes = 1 + sum(part.nodes for part in parts)
        levels = 1 + max((part.levels for part in parts), default=0)
        if nodes > MOST_NODES or levels > DEEPEST:
            limits = f"expected at most {MOST_NODES:,} values on at most {DEEPEST} levels"
            said = f"{limits}, got more with every alias written out"
            raise ComposerError(None, None, said, node.start_mark)
        return _Extent(nodes, levels)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                raise ConstructorError(
                    None, None, f"the key {key!r} is there twice; remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        if not _INT.match(text) or len(text) > _MOST_DIGITS:
            raise ValueError(f"expected an integer of at most {_MOST_DIGITS:,} digits, got {text:.80}")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node))
        if not _FLOAT.match(text):
            raise ValueError(f"expected a number, got {text:.80}")
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)  # .inf, .nan

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        if _SURROGATE.search(text):
            raise ConstructorError(
                None, None, "expected text, got half a character (U+D800 to U+DFFF)", node.start_mark
            )
        return text


def _parts(node: Any) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes all text that YAML 1.1 or this module's reader takes for something else."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(f"{_TAG}str", str.__str__(text), '"' if _ODD.search(text) else None)


_Loader.yaml_implicit_resolvers, _Loader.yaml_constructors = {}, {}
_Dumper.yaml_representers = {}
_RESOLVED = (
    ("null", _NULL, [*"~nN", ""]),
    ("bool", _BOOL, [*"yYnNtTfFoO"]),
    ("int", _INT, [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
)
for _name, _pattern, _first in _RESOLVED:  # the first that matches counts
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)
_CONSTRUCTORS: dict[str | None, Any] = {
    f"{_TAG}null": SafeConstructor.construct_yaml_null,
    f"{_TAG}bool": SafeConstructor.construct_yaml_bool,
    f"{_TAG}int": _Loader.construct_int,
    f"{_TAG}float": _Loader.construct_float,
    f"{_TAG}str": _Loader.construct_text,
    f"{_TAG}seq": SafeConstructor.construct_yaml_seq,
    f"{_TAG}map": SafeConstructor.construct_yaml_map,
    None: SafeConstructor.construct_undefined,
}
for _tag, _constructor in _CONSTRUCTORS.items():
    _Loader.add_constructor(_tag, _constructor)
_REPRESENTERS: dict[Any, Any] = {
    type(None): yaml.SafeDumper.represent_none,
    bool: yaml.SafeDumper.represent_bool,
    int: lambda dumper, number: dumper.represent_int(int(number)),
    float: lambda dumper, number: dumper.represent_float(float(number)),
    str: _quoted,
    list: yaml.SafeDumper.represent_list,
    tuple: yaml.SafeDumper.represent_list,
    dict: yaml.SafeDumper.represent_dict,
    None: yaml.SafeDumper.represent_undefined,
}
for _kind, _represent in _REPRESENTERS.items():
    _Dumper.add_representer(_kind, _represent)
    _Dumper.add_multi_representer(_kind, _represent)

# PyYAML's constructors raise other errors, too: for explicit tags, and numbers of 5,000 digits.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_EXPECTED = "a number, a string, a boolean, None, or lists and mappings of them"


def read(text: str, source: str) -> Any:
    """Return what a text in YAML says; no two places of it share a list or a mapping.

    Raises:
        UserError: if the text is not YAML, or too much; the message names ``source``.
    """
    try:
        return _read(text)
    except _NOT_YAML as error:
        raise UserError(f"{source}: expected YAML, got {error!s:.1000}") from None


def _read(text: str) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text):,} characters; the most are {MOST_CHARACTERS:,}")
    return _written_out(_loaded(text))


@lru_cache(maxsize=64)
def _loaded(text: str) -> Any:
    """Return what a text says, not to be changed in place; the same text is read several times."""
    return yaml.load(text, _Loader)  # a SafeLoader


def _written_out(value: Any) -> Any:
    """Return a copy in which each alias is a copy, so that a change of one place changes no other."""
    if isinstance(value, dict):
        return {key: _written_out(part) for key, part in value.items()}
    return [_written_out(part) for part in value] if isinstance(value, list) else value


def parse(text: str, source: str) -> dict[str, Any]:
    """Return the sections of a config.

    Raises:
        UserError: if the text is not YAML or has no sections; the message names ``source``.
    """
    raw = read(text, source)
    if raw is None:
        raise UserError(f"{source}: expected a config, got an empty file; see 'rl2meta list' for examples")
    if not isinstance(raw, dict):
        raise UserError(f"{source}: expected 'key: value' lines, got {type(raw).__name__}")
    return raw


def overrides_of(given: Mapping[str, Any] | Sequence[str] | None) -> list[str]:
    """Return overrides as text, ``key.subkey=value``; they are given as text, or as a mapping of dotted keys.

    Raises:
        UserError: for a value that a config cannot hold.
    """
    if not isinstance(given, Mapping):
        return [given] if isinstance(given, str) else list(given or ())
    return [f"{key}={_as_text(key, value)}" for key, value in given.items()]


def text_of(sections: Mapping[str, Any]) -> str:
    """Return the sections of a config as text, from which ``read`` gives equal sections.

    Raises:
        UserError: for a value that no config can hold.
    """
    return _written(dict(sections), "config", default_flow_style=False)


def _written(value: Any, key: str, **style: Any) -> str:
    try:
        text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    except yaml.YAMLError as error:
        odd = error.args[-1]
        raise UserError(f"{key}: expected {_EXPECTED}, got {_shown(odd)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: expected {_EXPECTED}, got too much ({error!s:.200})") from None
    return text


def _shown(value: Any) -> str:
    try:
        return f"{type(value).__name__} {value!r:.80}"
    except (ValueError, RecursionError):  # an integer of 5,000 digits, 1,000 levels
        return type(value).__name__


def _as_text(key: str, value: Any) -> str:
    """Return a value in one line."""
    try:
        json.dumps(value, allow_nan=False)  # what JSON refuses, too, such as NaN, no setting takes
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: expected {_EXPECTED}, got {_shown(value)} ({error!s:.200})") from None
    text = _written(value, key, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _names_a_part(keys: Sequence[str]) -> bool:
    """Return whether a key names a family, an agent, or a part of an agent, such as ``agent.core.name``."""
    return keys[-1] == "name" and (len(keys) == 2 or keys[0] == "agent")


def apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Apply ``a.b=value`` in place; return None, or a message if the override is wrong."""
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        return f"{override!r:.200}: expected an override of the form key.subkey=value"
    if len(keys) > DEEPEST:
        return f"{override!r:.200}: expected at most {DEEPEST} keys, got {len(keys)}"
    section = raw
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            return f"{override!r:.200}: {key} is a value, not a section"
    try:
        parsed = _read(value)
    except _NOT_YAML:
        return f"{override!r:.200}: expected a YAML value after '='"
    if _names_a_part(keys) and section.get("name") != parsed:
        section.clear()  # settings of the old part do not belong to the new one
    section[keys[-1]] = parsed
    return None
