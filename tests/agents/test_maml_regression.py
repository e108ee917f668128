"""Regression through the inner and outer loops of MAML."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from rl2meta.agents.maml import InnerLoop, named
from rl2meta.agents.maml_regression import MAMLRegressionConfig, SquaredError, maml_regression_learner
from rl2meta.agents.outer_adam import OuterAdam
from rl2meta.agents.rows import Rows
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial

CURVES = Sinusoids()


def learner_of(**settings: Any) -> OuterAdam:
    config = MAMLRegressionConfig(**{"hidden_sizes": [8], "episodes_per_phase": 5, **settings})
    return maml_regression_learner(CURVES.observation_space, CURVES.action_space, config, seed=0)


def lived(learner: OuterAdam, phases: int, num_tasks: int = 3) -> Trial:
    tasks = sample_tasks(CURVES, num_tasks, 0, "train")
    return RolloutWorker(CURVES).run(learner.agent, tasks, phases * learner.config.episodes_per_phase, 0)


def rows_of(learner: OuterAdam, trial: Trial) -> list[Rows]:
    lanes = learner.config.episodes_per_phase
    return [learner.inner.objective.rows(phase, lanes) for phase in trial.phases]


def test_a_linear_model_steps_along_the_gradient_of_the_page() -> None:
    learner = learner_of(hidden_sizes=[], inner_learning_rates=[0.05])
    rows = rows_of(learner, lived(learner, 2))
    before, after = learner.inner.replay(named(learner.meta), rows)
    x, y = rows[0].observation[..., 0], rows[0].label[..., 0]  # [tasks, examples]
    w, b = before.weights["head.weight"][:, 0], before.weights["head.bias"]
    error = w * x + b - y
    torch.testing.assert_close(after.weights["head.weight"][:, 0, 0], w[:, 0] - 0.1 * (error * x).mean(dim=1))
    torch.testing.assert_close(after.weights["head.bias"][:, 0], b[:, 0] - 0.1 * error.mean(dim=1))


def test_the_loss_of_a_phase_is_the_squared_error_that_was_lived() -> None:
    learner = learner_of()
    trial = lived(learner, 3)
    rows = rows_of(learner, trial)
    for state, phase, seen in zip(
        learner.inner.replay(named(learner.meta), rows), rows, trial.phases, strict=True
    ):
        lost = -seen.reward.reshape(3, 5).mean(dim=1)
        torch.testing.assert_close(learner.inner.losses(state, phase), lost, rtol=1e-4, atol=1e-5)


def test_later_steps_use_the_first_examples_again() -> None:
    learner = learner_of()
    trial = lived(learner, 4)
    rows = rows_of(learner, trial)
    again = learner.inner.replay(named(learner.meta), [rows[0], rows[0], rows[0], rows[3]])
    for ours, theirs in zip(learner.inner.replay(named(learner.meta), rows), again, strict=True):
        for name, value in ours.weights.items():
            assert torch.equal(value, theirs.weights[name])
    fresh = learner_of(support_phases=None)
    moved = fresh.inner.replay(named(fresh.meta), rows)[-1].weights["head.bias"]
    assert not torch.equal(moved, again[-1].weights["head.bias"])


@pytest.mark.parametrize("phases", [1, 2, 3])
def test_meta_gradient_is_that_of_central_differences(phases: int) -> None:
    learner = learner_of(inner_learning_rates=[0.05], hidden_sizes=[3])
    rows = [Rows(*(field.double() for field in phase)) for phase in rows_of(learner, lived(learner, phases))]
    inner = InnerLoop(learner.inner.network.double(), SquaredError(CURVES.observation_space), learner.config)
    meta = {name: value.detach().double().requires_grad_() for name, value in named(learner.meta).items()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return inner.losses(inner.replay(weights, rows)[-1], rows[-1]).mean()

    exact = torch.autograd.grad(loss(meta), list(meta.values()))
    for (name, value), gradient in zip(meta.items(), exact, strict=True):
        for index in range(value.numel()):
            step = torch.zeros(value.numel(), dtype=torch.float64)
            step[index] = 1e-6
            up, down = (
                loss({**meta, name: value + sign * step.reshape(value.shape)}) for sign in (1.0, -1.0)
            )
            numeric = float((up - down).detach()) / 2e-6
            assert float(gradient.flatten()[index]) == pytest.approx(numeric, rel=1e-6, abs=1e-7)


def test_it_learns_to_adapt() -> None:
    learner = learner_of(hidden_sizes=[40, 40], learning_rate=3e-3, inner_learning_rates=[0.01])
    worker, held_out = RolloutWorker(CURVES), sample_tasks(CURVES, 200, 0, "test")

    def errors() -> Any:
        played = evaluate(learner.agent, worker, held_out, 10, 0)
        assert played.regrets is not None
        return played.regrets.reshape(200, 2, 5).mean(axis=(0, 2))

    before = errors()
    meta_train(learner, CURVES, worker, Budget(400, 25, 10), 0, lambda row: False)
    after = errors()
    assert after[1] < 0.8 * after[0]  # what one step does after training
    assert after[1] < 0.8 * before[1]


def test_a_resumed_learner_goes_on_to_the_bit() -> None:
    one, other = learner_of(final_learning_rate=1e-4), learner_of(final_learning_rate=1e-4)
    trial = lived(one, 2)
    one.update(trial, 0.0, generator(0))
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    one.update(trial, 0.5, generator(0))
    other.update(trial, 0.5, generator(0))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_families_that_reveal_nothing_are_refused() -> None:
    bandits = BernoulliBandits(num_arms=2)
    with pytest.raises(UserError, match="expected predictions, a Box of one axis"):
        maml_regression_learner(bandits.observation_space, gym.spaces.Discrete(2), MAMLRegressionConfig())
    learner = learner_of()
    phase = lived(learner, 1).phases[0]
    with pytest.raises(UserError, match="expected targets to learn from"):
        learner.inner.objective.rows(replace(phase, truth={}), 5)
