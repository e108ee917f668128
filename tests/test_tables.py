"""The tables of an evaluation: no empty columns, and what the references know of another law."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.experiments.tables import tables

NO_CEILINGS = Ceilings(None, None, None)
FACTS = {"num_tasks": 4, "subjects": ["rl2"], "episodes": 2, "distribution": "Law(mean=3)"}


def _result(**more: Any) -> AgentResult:
    rewards = np.arange(8, dtype=np.float32).reshape(4, 2)
    return replace(AgentResult(rewards, rewards, rewards, 1.0), **more)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ["4 held-out tasks, 2"]),
        ({"distinct_tasks": 4}, ["4 held-out tasks, 2"]),
        ({"distinct_tasks": 3}, ["4 trials on 3 held-out tasks, 2", "over the 3 different tasks"]),
        ({"distinct_tasks": 1}, ["4 trials on 1 held-out task, 2", "intervals are over the trials"]),
        (
            {"distinct_tasks": 1, "shared_with_training": True},
            ["4 trials on 1 task, which training had too, 2"],
        ),
        ({"distinct_tasks": 2, "shared_with_training": True}, ["4 trials on 2 tasks, of which training had"]),
    ],
)
def test_a_table_says_how_many_tasks_differ(facts: dict[str, Any], said: list[str]) -> None:
    text = tables({"rl2": _result()}, NO_CEILINGS, {**FACTS, **facts})
    assert all(each in text for each in said), text
    assert ("intervals are over" in text) == (facts.get("distinct_tasks", 4) < 4)


def _head(text: str) -> list[str]:
    (line,) = (line for line in text.split("\n") if line.strip().startswith("agent"))
    return [title.strip() for title in line.split("  ") if title.strip()]


def test_columns_without_anything_in_them_are_not_printed() -> None:
    alone = {"rl2": _result(regrets=None)}
    assert _head(tables(alone, NO_CEILINGS, FACTS)) == ["agent", "return ± 95 %"]
    known = {"rl2": _result(), "random": _result()}
    assert _head(tables(known, NO_CEILINGS, FACTS)) == [
        "agent",
        "return ± 95 %",
        "regret ± 95 %",
        "minus rl2 ± 95 %",
    ]
    tuned = {"rl2": _result(), "ucb1": _result(constants={"c": 0.2})}
    text = tables(tuned, Ceilings(9.0, 8.0, 1.0), FACTS)
    assert _head(text)[-1] == "constants" and "c=0.2" in text and "Bayes-optimal" in text


def test_a_table_on_another_law_says_what_each_reference_knows() -> None:
    results = {"rl2": _result(), "psrl": _result(), "random": _result(), "beb": _result(constants={"b": 1.0})}
    priors = {"psrl": "knows the law of these tasks", "random": "has no prior"}
    facts = {**FACTS, "priors": priors | {"beb": priors["psrl"]}}
    lines = tables(results, NO_CEILINGS, {**facts, "trained_with": {"distribution.mean": 1}}).split("\n")
    assert lines[1:6] == [
        "rl2 was trained with distribution.mean=1",
        "no reference keeps the law of that training; each",
        "  knows the law of these tasks: psrl, beb",
        "  has no prior: random",
        "  has constants that were tuned on these tasks' law: beb",
    ]
    longer = tables(results, NO_CEILINGS, {**facts, "trained_with": {"training.episodes_per_trial": 1}})
    assert "no reference keeps" not in longer and "has no prior" not in longer


def test_agents_that_were_trained_alike_are_told_of_together() -> None:
    results = {name: _result() for name in ("a", "b", "c", "random")}
    short, other = ({"trained_with": {"training.episodes_per_trial": n}} for n in (1, 2))
    lines = tables(results, NO_CEILINGS, {**FACTS, "runs": {"a": short, "b": other, "c": short}}).split("\n")
    assert lines[1:3] == [
        "a and c were trained with training.episodes_per_trial=1",
        "b was trained with training.episodes_per_trial=2",
    ]
