"""Configs as text: the numbers of YAML 1.2, what is written reads back equal, and limits."""

import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rl2meta.errors import UserError
from rl2meta.experiments.yaml_text import apply_override, overrides_of, parse, read, text_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1f", 31),
        ("+12", 12),
        ("-09", -9),
        ("1:30", "1:30"),
        ("-1:30.5", "-1:30.5"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("0x_", "0x_"),
        ("1e-3", 1e-3),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("+.Inf", float("inf")),
        ("1__0.5", "1__0.5"),
        ("2020-01-31", "2020-01-31"),
        ("2020-99-99", "2020-99-99"),
        ("2020-01-31 10:00:00", "2020-01-31 10:00:00"),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("<<", "<<"),
        ("=", "="),
        ("٣", "٣"),
    ],
)
def test_what_a_plain_word_is(text: str, value: Any) -> None:
    for found in (read(f"key: {text}", "x")["key"], overridden(f"key={text}")):
        assert found == value and type(found) is type(value)


def overridden(override: str) -> Any:
    raw: dict[str, Any] = {}
    assert apply_override(raw, override) is None
    return raw["key"]


TRICKY = [
    *[
        "0o7",
        "0x1",
        "010",
        "1e3",
        "1_0",
        "1:30",
        ".5",
        "5.",
        ".inf",
        ".NaN",
        "2020-01-31",
        "yes",
        "NO",
        "on",
        "null",
        "~",
        "<<",
        "=",
        "-",
        "?",
        ":",
        "#",
        "&",
        "*",
        "!",
        "|",
        ">",
        "%",
    ]
]
TRICKY += [
    *"\x85\u2028\ufeff\t\r\n\x7f\x9f🙂",
    "a: b",
    "a\x85b",
    "a\u2028\n b",
    " a",
    "a ",
    "a\n\n b",
    "--- a",
    "...",
    "",
]
TEXTS = (
    st.text(max_size=40) | st.sampled_from(TRICKY) | st.from_regex(r"[-+.0-9xobeE_:]{1,8}", fullmatch=True)
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.integers(), inner, max_size=4),
    max_leaves=12,
)


def alike(some: Any, other: Any) -> bool:
    """Compare with types: 1, 1.0 and True are equal in Python."""
    return repr(some) == repr(other)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    text = text_of(value)
    assert alike(read(text, "x"), value)
    assert alike(yaml.safe_load(text), value)  # any other reader, too


@given(VALUES)
@settings(max_examples=80, deadline=None)
def test_an_override_is_read_back(value: Any) -> None:
    (override,) = overrides_of({"key": value})
    assert "\n" not in override
    assert alike(overridden(override), value)


def test_a_long_text_is_read_back() -> None:
    value = {"words": "a  b c " * 200, "lines": "x y\n" * 50, "keys": {"k " * 2000: ["v" * 3000]}}
    assert read(text_of(value), "x") == value


def test_anchors_are_copies() -> None:
    raw = parse("a: &a {x: [1]}\nb: *a\nc: [*a, *a]", "x")
    assert raw == {"a": {"x": [1]}, "b": {"x": [1]}, "c": [{"x": [1]}] * 2}
    assert apply_override(raw, "b.x=2") is None
    assert raw["a"] == {"x": [1]} and raw["c"][0] is not raw["c"][1]
    shared = [1, 2]
    assert read(text_of({"a": shared, "b": shared}), "x") == {"a": [1, 2], "b": [1, 2]}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
KEYS = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{k: *a{i - 1}, l: *a{i - 1}}}\n" for i in range(1, 40))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))


@pytest.mark.parametrize(
    "text",
    [
        "kwargs: &a {x: *a}",
        "kwargs: &a [*a]",
        "? &a [*a]\n: 1",
        "a: &a\n  b: &b [*a]\n  c: *b",
        BOMB,
        KEYS,
        CHAIN,
        "a: " + "[" * 100_000,
        "a: " + "{b: " * 100_000,
        "- " * 100_000,
        "a:\n" + "".join(" " * i + "b:\n" for i in range(1, 1000)),
        "a: " + "x" * 5_000_000,
        "a: [" + "1, " * 3_000_000 + "]",
        "a: !!timestamp 2020-01-31",
        "a: !!set {b}",
        "a: !!binary aGk=",
        "a: !!int 1_000",
        "a: !!float x",
        "a: 0x" + "f" * 5000,
        'a: "\\ud800"',
        'a: "\\ud83d\\ude00"',
        "a: *b",
    ],
    ids=lambda text: text[:20].strip(),
)
def test_what_is_refused_within_a_second(text: str) -> None:
    began = time.process_time()  # other programs may want the cores, too
    with pytest.raises(UserError, match="x: expected YAML, got"):
        parse(text, "x")
    assert time.process_time() - began < 1


def test_odd_overrides_and_values_are_refused() -> None:
    for override in ("a=&a [*a]", "a=" + "[" * 1000, "a." * 1000 + "b=1", "a=\ud800", "a=\x00"):
        assert "expected" in str(apply_override({}, override))
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (loop, deep, {1}, b"x", 10**5000, float("nan")):
        with pytest.raises(UserError, match="key: expected"):
            overrides_of({"key": value})
    for value in (loop, deep, {1}, b"x", 10**5000):
        with pytest.raises(UserError, match="expected"):
            read(text_of({"key": value}), "x")
