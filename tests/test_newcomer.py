"""The first mistakes of a newcomer: the message names what was meant."""

import pytest
from typer.testing import CliRunner

from rl2meta.cli import app
from rl2meta.errors import UserError
from rl2meta.experiments.components import read_config
from rl2meta.experiments.hints import dotted_keys, meant
from rl2meta.experiments.sections import RunSettings


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("learning_rate=0.01", "learning_rate: unknown key; did you mean agent.learning_rate?"),
        ("updates=5", "updates: unknown key; did you mean training.updates?"),
        ("num_arms=5", "num_arms: unknown key; did you mean distribution.num_arms?"),
        ("training.num_arms=5", "training.num_arms: unknown key; did you mean distribution.num_arms?"),
        ("core.hidden_size=64", "core: unknown key; did you mean agent.core.hidden_size?"),
        ("agent.heads=2", "agent.heads: unknown key; did you mean agent.core.heads?"),
        ("lerning_rate=0.01", "lerning_rate: unknown key; did you mean agent.learning_rate?"),
        ("agent.lerning_rate=0.01", "agent.lerning_rate: unknown key; did you mean 'learning_rate'?"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_its_place(override: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        read_config("smoke", [override])
    assert hint in str(error.value)


def test_the_keys_of_every_choice_are_known_and_the_right_one_is_found() -> None:
    known = [*dotted_keys(RunSettings), *dotted_keys(type(read_config("smoke").agent), "agent.")]
    assert {"seed", "training.updates", "agent.core.hidden_size", "agent.learning_rate"} <= set(known)
    assert meant("agent.hidden_size", known) == ["agent.core.hidden_size"]
    assert meant("seed", ["seed", "evaluation.seed"]) == ["evaluation.seed"]
    assert meant("nothing_like_it", known) == []


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["--seed", "3"], "seed=3"),
        (["--seed=3"], "seed=3"),
        (["--learning-rate", "0.1"], "agent.learning_rate=0.1"),
        (["--run-dri", "x"], "--run-dir"),
        (["-run-dir", "x"], ""),  # Click calls it -r
        (["-seed", "3"], ""),
    ],
)
def test_a_setting_given_as_an_option_is_answered_with_the_setting(given: list[str], hint: str) -> None:
    told = CliRunner().invoke(
        app, ["train", "rl2_bandit", *given], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert told.exit_code == 2
    assert hint in told.output and "No such option" in told.output
