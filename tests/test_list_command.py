"""``rl2meta list`` is short; ``rl2meta list NAME`` tells the rest."""

import pytest

from rl2meta.commands.list import print_components, print_one
from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import AGENTS, DISTRIBUTIONS, shipped_configs
from rl2meta.experiments.papers import papers


def _said(capsys: pytest.CaptureFixture[str], name: str) -> str:
    print_one(name)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rl2", ["learning_rate", "Adam's learning rate", "agent.core.name=transformer", "hidden_size"]),
        ("maml_trpo", ["inner_learning_rates"]),
        ("bernoulli_bandits", ["num_arms", "(5)", "gittins", "near-optimal"]),
        ("dark_rooms", ["test_fraction", "psrl_resampling"]),
        ("gymnasium", ["vary_kwargs", "(required)", "depend on its settings"]),
        ("settings", ["training.KEY=VALUE", "trials_per_update", "max_restarts", "episodes_per_trial"]),
    ],
)
def test_one_name_tells_its_settings_and_references(
    name: str, told: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = _said(capsys, name)
    assert all(each in said for each in told), said


@pytest.mark.parametrize("name", [*AGENTS, *DISTRIBUTIONS])
def test_every_agent_and_family_can_be_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in _said(capsys, name)


def test_configs_and_tables_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert _said(capsys, "rl2_bandit") == shipped_configs()["rl2_bandit"]
    assert _said(capsys, "duan2016-mdps") == papers()["duan2016-mdps"]


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="nothing is called 'rl2_bandt'; did you mean 'rl2_bandit'"):
        print_one("rl2_bandt")


def test_the_short_list_fits_and_says_how_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_components()
    said = capsys.readouterr().out
    names = [*AGENTS, *DISTRIBUTIONS, *shipped_configs(), *papers()]
    assert all(sum(line.split()[:1] == [name] for line in said.split("\n")) == 1 for name in names)
    assert len(said.split("\n")) < len(names) + 25 and "rl2meta list NAME" in said
