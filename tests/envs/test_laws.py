"""How parameters are drawn: ranges and moments that the laws' names promise, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from rl2meta.envs.laws import Law, draw, draw_all

LAWS = TypeAdapter(dict[str, Law])


def checked(law: Any) -> Any:
    return LAWS.validate_python({"x": law})["x"]


def draws(law: Any, count: int = 4000) -> list[Any]:
    rng = np.random.default_rng(0)
    return [draw(checked(law), rng) for _ in range(count)]


@pytest.mark.parametrize("law", [[2, 6], {"uniform": [2, 6]}, (2.0, 6.0)])
def test_bounds_are_a_uniform_law(law: Any) -> None:
    values = np.array(draws(law))
    assert values.min() >= 2 and values.max() <= 6
    counts = np.histogram(values, bins=8, range=(2, 6))[0]
    assert abs(counts - 500).max() < 5 * math.sqrt(500)


def test_the_logarithm_of_a_log_uniform_law_is_uniform() -> None:
    values = np.log10(draws({"log_uniform": [0.001, 1000]}))
    counts = np.histogram(values, bins=6, range=(-3, 3))[0]
    assert counts.sum() == 4000 and abs(counts - 4000 / 6).max() < 5 * math.sqrt(4000 / 6)


def test_rounding_does_not_leave_the_bounds() -> None:
    assert set(draws({"log_uniform": [0.1, 0.1]}, 10)) == {0.1}
    assert set(draws([0.3, 0.3], 10)) == {0.3}


def test_integers_have_both_ends_and_choices_every_value() -> None:
    assert {value: 0 for value in draws({"integers": [-1, 2]}, 200)}.keys() == {-1, 0, 1, 2}
    assert set(map(str, draws({"choice": [1, 2.5, "sun", None, [0, 1]]}, 200))) == {
        "1", "2.5", "sun", "None", "[0, 1]"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("law", "kind"),
    [([0, 1], float), ({"uniform": [0, 1]}, float), ({"log_uniform": [1, 2]}, float),
     ({"integers": [0, 3]}, int), ({"choice": [True]}, bool), (3, int),
     (0.5, float), ("a", str), (False, bool)],
)  # fmt: skip
def test_what_is_drawn_is_pythons(law: Any, kind: type) -> None:
    assert {type(value) for value in draws(law, 5)} == {kind}


@pytest.mark.parametrize("law", [3, 0.5, "sun", True])
def test_a_constant_draws_nothing(law: Any) -> None:
    rng = np.random.default_rng(0)
    assert draw(checked(law), rng) == law
    assert rng.random() == np.random.default_rng(0).random()


def test_the_order_of_a_config_changes_nothing() -> None:
    laws = {"b": [0, 1], "a": {"integers": [0, 99]}}
    turned = dict(reversed(laws.items()))
    assert draw_all(laws, np.random.default_rng(1)) == draw_all(turned, np.random.default_rng(1))


def test_a_choice_that_is_changed_does_not_change_the_law() -> None:
    law = checked({"choice": [[1, 2]]})
    draw(law, np.random.default_rng(0)).append(3)
    assert law == {"choice": [[1, 2]]}


@pytest.mark.parametrize(
    "law", [1, 0.5, "sun", True, [0, 1], {"uniform": [0.0, 2]}, {"log_uniform": [1e-3, 1]},
            {"integers": [0, 3]}, {"choice": [1, "a", None, {"b": [2]}]}]
)  # fmt: skip
def test_laws_survive_yaml(law: Any) -> None:
    written = yaml.safe_dump(LAWS.dump_python(LAWS.validate_python({"x": law})))
    read = LAWS.validate_python(yaml.safe_load(written))
    assert read == {"x": law}
    assert draw(read["x"], np.random.default_rng(2)) == draw(law, np.random.default_rng(2))


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ([1, 0], "low <= high"),
        ([0, 1, 2], "two numbers"),
        (["a", "b"], "two numbers.*choice"),
        ([0, True], "two numbers"),
        ([0, math.inf], "finite"),
        (math.nan, "finite"),
        (10**400, "finite"),
        (None, "a number, a string, a bool"),
        ({"log_uniform": [0, 1]}, "0 < low"),
        ({"integers": [0, 1.5]}, "whole numbers"),
        ({"integers": [0, 2**63]}, "whole numbers"),
        ({"choice": []}, "at least one"),
        ({"choice": 3}, "at least one"),
        ({"unifrom": [0, 1]}, "did you mean 'uniform'"),
        ({"uniform": [0, 1], "choice": [1]}, "one key"),
        ({}, "one key"),
    ],
)
def test_what_is_no_law_is_refused(law: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        checked(law)
