"""A run that begins with the weights of another: what is carried over, and what must fit."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import rl2meta

BRIEF: dict[str, Any] = {
    "training.updates": 1,
    "training.trials_per_update": 4,
    "training.episodes_per_trial": 2,
    "evaluation.against": ["none"],
    "device": "cpu",
    "threads": 1,
}
SLOT: dict[str, Any] = {**BRIEF, "agent.core": {"name": "slot", "slot_size": 4, "hidden_size": 5}}
LSTM: dict[str, Any] = {**BRIEF, "agent.core.hidden_size": 4}
MAML: dict[str, Any] = {
    **BRIEF,
    "agent.hidden_sizes": [4],
    "agent.episodes_per_phase": 1,
    "distribution.horizon": 2,
}
PRIVILEGED = {"agent.surrogate": "all_actions", "agent.critic": "privileged", "agent.discount": 0.9}


def train(config: str, overrides: Mapping[str, Any], start_from: Any = None) -> rl2meta.Run:
    return rl2meta.train(config, overrides, start_from=start_from)


def begun_with(config: str, overrides: Mapping[str, Any], start_from: rl2meta.Run) -> dict[str, torch.Tensor]:
    """Return the state of a run before its first update."""
    first: list[dict[str, torch.Tensor]] = []
    run = rl2meta.train(
        config, overrides, start_from=start_from, on_start=lambda run: first.append(state(run))
    )
    assert run.finished and run.origin == (None, start_from.update)
    return first[0]


def state(run: rl2meta.Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.learner.state_dict().items()}


def under(prefix: str, of: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in of.items() if name.startswith(prefix)}


def same(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize(
    ("config", "tasks", "others"),
    [
        ("rl2_bandit", {"distribution.num_arms": 5}, {"distribution.num_arms": 50}),
        (
            "rl2_mdp_n10",
            {"distribution.num_states": 10},
            {"distribution.num_states": 6, "distribution.num_actions": 4, "distribution.horizon": 7},
        ),
    ],
)
def test_weights_of_the_slot_core_fit_any_number_of_observations_and_actions(
    config: str, tasks: dict[str, Any], others: dict[str, Any]
) -> None:
    old = train(config, {**SLOT, **tasks})
    longer = {"training.episodes_per_trial": 3, "training.trials_per_update": 6, "agent.learning_rate": 1e-3}
    begun = begun_with(config, {**SLOT, **others, **longer, "seed": 5}, old)
    assert same(begun, under("network.", state(old)))  # no moments of an optimiser
    assert begun["network.reward_scale"] > 0  # the unit in which the value was learnt


def test_the_privileged_critic_is_carried_over_where_both_have_one() -> None:
    old = train("rl2_mdp_n10", {**SLOT, **PRIVILEGED})
    assert under("critic.optimizer.", state(old))  # it has learnt
    begun = begun_with(
        "rl2_mdp_n10", {**SLOT, **PRIVILEGED, "seed": 5, "training.episodes_per_trial": 3}, old
    )
    assert same(begun, under("network.", state(old)) | under("critic.network.", state(old)))


def test_a_critic_that_one_run_lacks_begins_anew_or_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    without, having = train("rl2_mdp_n10", SLOT), train("rl2_mdp_n10", {**SLOT, **PRIVILEGED})
    with caplog.at_level(logging.WARNING, "rl2meta"):
        begun = begun_with("rl2_mdp_n10", {**SLOT, **PRIVILEGED, "seed": 5}, without)
    assert "the other run has no critic; that of the new run begins anew" in caplog.text
    untrained: list[dict[str, torch.Tensor]] = []
    rl2meta.train(
        "rl2_mdp_n10",
        {**SLOT, **PRIVILEGED, "seed": 5},
        on_start=lambda run: untrained.append(state(run)),
    )
    assert same(under("critic.", begun), under("critic.", untrained[0]))
    assert same(under("network.", begun), under("network.", state(without)))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rl2meta"):
        begun = begun_with("rl2_mdp_n10", SLOT, having)
    assert "the new run has no critic; that of the other run is left out" in caplog.text
    assert same(begun, under("network.", state(having)))


@pytest.mark.parametrize(
    ("config", "old", "new", "weights", "cause", "innocent"),
    [
        (
            "rl2_bandit",
            LSTM,
            {**LSTM, "agent.core.hidden_size": 6, "agent.clip_range": 0.3, "distribution.low": 0.2},
            r"network\.value\.weight: expected \[1, 6\], got \[1, 4\]",
            "agent.core.hidden_size, which is 6 here and 4 there",
            ("clip_range", "distribution"),
        ),
        (
            "rl2_bandit",
            {**LSTM, "distribution.num_arms": 3},
            {**LSTM, "distribution.num_arms": 7, "agent.core.hidden_size": 4},
            r"network\.policy\.[a-z.]+: expected \[7(, 4)?\], got \[3(, 4)?\]",
            "distribution.num_arms, which is 7 here and 3 there",
            ("hidden_size",),
        ),
        (
            "rl2_bandit",
            LSTM,
            {**SLOT, "distribution.num_arms": 7},
            r"network\.core\.start: expected \[4\], got none",
            "agent.core.name, which is slot here and lstm there",
            ("num_arms", "slot_size"),
        ),
        (
            "rl2_bandit",
            {**LSTM, "agent.reward_units": "raw"},
            {**LSTM, "agent.reward_units": "measured"},
            r"network\.reward_centre: expected \[\], got none",
            "agent.reward_units, which is measured here and raw there",
            ("hidden_size",),
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_with_the_settings_that_decide(
    config: str,
    old: dict[str, Any],
    new: dict[str, Any],
    weights: str,
    cause: str,
    innocent: tuple[str, ...],
    tmp_path: Path,
) -> None:
    with pytest.raises(rl2meta.UserError) as caught:
        rl2meta.train(config, new, run_dir=tmp_path / "run", start_from=train(config, old))
    said = str(caught.value)
    assert said.startswith(
        "--from (start_from): expected weights of the shapes of this run, got those of the"
    )
    assert re.search(weights, said) and cause in said, said
    assert not any(word in said.splitlines()[-1] for word in innocent), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "old", "new", "cause"),
    [
        (
            "rl2_bandit",
            {**BRIEF, "agent.core": {"name": "transformer", "heads": 2, "head_size": 4, "num_layers": 1}},
            {**BRIEF, "agent.core": {"name": "transformer", "heads": 4, "head_size": 2, "num_layers": 1}},
            "agent.core.heads, which is 4 here and 2 there",
        ),
        (
            "rl2_navigation",
            {**LSTM, "agent.action_units": "raw", "distribution.horizon": 2},
            {**LSTM, "agent.action_units": "normalised", "distribution.horizon": 2},
            "agent.action_units, which is normalised here and raw there",
        ),
        (
            "maml_navigation",
            {**MAML, "agent.observation_units": "raw"},
            {**MAML, "agent.observation_units": "normalised"},
            "agent.observation_units, which is normalised here and raw there",
        ),
    ],
)
def test_weights_that_fit_another_network_are_refused(
    config: str, old: dict[str, Any], new: dict[str, Any], cause: str
) -> None:
    with pytest.raises(rl2meta.UserError, match="the same shapes and another meaning") as caught:
        train(config, new, train(config, old))
    assert cause in str(caught.value)
    assert train(config, {**new, "seed": 5}, train(config, new)).finished


def test_another_agent_is_refused() -> None:
    old = train("maml_bandit", {"training.updates": 1, "training.trials_per_update": 2, "threads": 1})
    with pytest.raises(
        rl2meta.UserError, match="expected a run of agent rl2, got the other run of maml_trpo"
    ):
        train("rl2_bandit", LSTM, old)


def test_a_loaded_run_knows_its_origin(tmp_path: Path) -> None:
    old = rl2meta.train("rl2_bandit", LSTM, run_dir=tmp_path / "old")
    rl2meta.train("rl2_bandit", LSTM, run_dir=tmp_path / "new", start_from=tmp_path / "old")
    for run in (rl2meta.load_run(tmp_path / "new"), rl2meta.resume(tmp_path / "new")):
        assert run.origin == (str(tmp_path / "old"), 1)
    assert old.origin is None and rl2meta.load_run(tmp_path / "old").origin is None
    config = tmp_path / "new" / "config.yaml"
    config.write_text(re.sub(r"(?s)started_from:.*", "started_from: 3\n", config.read_text()))
    assert rl2meta.load_run(tmp_path / "new").origin is None
