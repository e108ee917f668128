"""Configs as text: strict YAML, and overrides of its keys."""

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from rl2meta.errors import UserError


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys and reads ``1e-3`` as a number."""

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


# PyYAML's constructors raise other errors, too: for dates, numbers of 5,000 digits, and deep nesting.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_EXPECTED = "a number, a string, a boolean, None, or lists and mappings of them"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse(text: str, source: str) -> dict[str, Any]:
    """Return the sections of a config.

    Raises:
        UserError: if the text is not YAML or has no sections; the message names ``source``.
    """
    try:
        raw = yaml.load(text, _Loader)  # a SafeLoader
    except _NOT_YAML as error:
        raise UserError(f"{source}: expected YAML, got {error!s:.1000}") from None
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
    """Return the sections of a config as text.

    Raises:
        UserError: for a value that no config can hold.
    """
    try:
        text: str = yaml.safe_dump(dict(sections), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        value = error.args[-1]
        raise UserError(f"config: expected {_EXPECTED}, got {type(value).__name__} {value!r:.80}") from None
    return text


def _as_text(key: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)  # YAML reads it as the same value
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{key}: expected {_EXPECTED}, got {type(value).__name__} {value!r:.80} ({error})"
        ) from None


def _names_a_part(keys: Sequence[str]) -> bool:
    """Return whether a key names a family, an agent, or a part of an agent, such as ``agent.core.name``."""
    return keys[-1] == "name" and (len(keys) == 2 or keys[0] == "agent")


def apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Apply ``a.b=value`` in place; return None, or a message if the override is wrong."""
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        return f"{override!r}: expected an override of the form key.subkey=value"
    section = raw
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            return f"{override!r}: {key} is a value, not a section"
    try:
        parsed = yaml.load(value, _Loader)  # a SafeLoader
    except _NOT_YAML:
        return f"{override!r}: expected a YAML value after '='"
    if _names_a_part(keys) and section.get("name") != parsed:
        section.clear()  # settings of the old part do not belong to the new one
    section[keys[-1]] = parsed
    return None
