"""What each reference says that it knows of the law, against what a change of the law does to its actions."""

from typing import Any

import pytest
import torch

from rl2meta.agents.references.catalogue import references_on
from rl2meta.agents.references.reference import KNOWS_LAW, KNOWS_NOTHING, Reference
from rl2meta.experiments.components import FAMILIES
from rl2meta.models import model_of
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks

EPISODES = 6
LAWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bernoulli_bandits": ({"num_arms": 3}, {"num_arms": 3, "low": 0.3, "high": 0.6}),
    "gaussian_bandits": ({"num_arms": 3}, {"num_arms": 3, "mean": 3.0}),
    "dependent_bandits": ({}, {"law": "easy"}),
    "two_step": ({}, {"high": 0.6, "low": 0.1, "switch_probability": 0.4}),
    "tabular_mdps": (
        {"num_states": 3, "num_actions": 2, "horizon": 4},
        {"num_states": 3, "num_actions": 2, "horizon": 4, "reward_mean": 4.0},
    ),
}

MUST_CHANGE = {
    "bernoulli_bandits": {"thompson", "ots", "gittins"},
    "gaussian_bandits": {"greedy", "thompson", "ots", "ucb1"},
    "dependent_bandits": {"thompson"},
    "two_step": {"thompson"},
    "tabular_mdps": {"greedy", "psrl", "greedy_step"},
}


def _built(family: str, settings: dict[str, Any]) -> dict[str, Reference]:
    law = FAMILIES[family](**settings)
    return references_on(model_of(law), law.action_space, EPISODES)


@pytest.mark.parametrize("family", LAWS)
def test_what_a_reference_knows_of_the_law_changes_what_it_does(family: str) -> None:
    """The same tasks, rewards and luck; only the law differs that the reference was built for."""
    here, elsewhere = LAWS[family]
    law, first, second = FAMILIES[family](**here), _built(family, here), _built(family, elsewhere)
    tasks, worker = sample_tasks(law, 100, 0, "test"), RolloutWorker(law)
    changed = set()
    for name in sorted(first.keys() & second.keys()):
        assert first[name].prior == second[name].prior
        trials = [worker.run(each[name].build(), tasks, EPISODES, 0) for each in (first, second)]
        ours, theirs = (torch.cat([phase.action for phase in trial.phases]) for trial in trials)
        changed |= set() if torch.equal(ours, theirs) else {name}
    assert changed <= {name for name in first if first[name].prior.startswith(KNOWS_LAW)}
    assert changed >= MUST_CHANGE[family]


def test_what_has_no_prior_is_called_so() -> None:
    assert _built("tabular_mdps", LAWS["tabular_mdps"][0])["ucrl2"].prior == KNOWS_NOTHING
    assert all(
        each["random"].prior == KNOWS_NOTHING for each in (_built(name, LAWS[name][0]) for name in LAWS)
    )
