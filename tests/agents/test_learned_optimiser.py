"""The learned optimiser, against gradient descent in closed form and walks that are written out."""

import itertools
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from rl2meta.agents.learned_optimiser import LearnedOptimiserLearner
from rl2meta.agents.optimisee import LearnedOptimiserConfig, ScoreCrossEntropy, hand_made_rules
from rl2meta.agents.rows import Rows
from rl2meta.envs.quadratics import Quadratics
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.experiments.components import read_config
from rl2meta.experiments.contest import Contest
from rl2meta.parts import at_most
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial

BOWLS = Quadratics(dimension=4)
SPACES = BOWLS.observation_space, BOWLS.action_space


def config_of(**settings: Any) -> LearnedOptimiserConfig:
    usual = {"episodes_per_phase": 4, "bias": False, "unroll": 3, "rule": {"name": "lstm", "hidden_size": 4}}
    return LearnedOptimiserConfig(**{**usual, "inner_learning_rates": [0.1], **settings})


def learner_of(**settings: Any) -> LearnedOptimiserLearner:
    return LearnedOptimiserLearner(*SPACES, config_of(**settings), seed=0)


def lived(agent: Any, phases: int, num_tasks: int = 3) -> Trial:
    return RolloutWorker(BOWLS).run(agent, sample_tasks(BOWLS, num_tasks, 0, "train"), 4 * phases, 0)


def rows_of(learner: LearnedOptimiserLearner, trial: Trial) -> list[Rows]:
    return [learner.inner.objective.rows(phase, 4) for phase in trial.phases]


def test_what_is_lived_is_gradient_descent_on_the_quadratic() -> None:
    agent = hand_made_rules(*SPACES, config_of(initial_deviation=0.5))["sgd"].build(rate=0.01)
    trial = lived(agent, 6)
    matrix, vector = (trial.tasks.parameters[name] for name in ("matrix", "vector"))  # type: ignore[attr-defined]
    theta = agent.begin(3, generator(0, "agent")).adapted.weights["layers.0.weight"][:, 0]  # [tasks, 4]
    for phase in trial.phases:
        error = torch.einsum("nij,nj->ni", matrix, theta) - vector
        loss = -phase.reward.reshape(3, 4).mean(dim=1)
        torch.testing.assert_close(loss, error.square().sum(dim=1), rtol=1e-4, atol=1e-4)
        theta = theta - 0.01 * 2 * torch.einsum("nij,ni->nj", matrix, error)
    assert float(loss.sum()) < 0.9 * float(-trial.phases[0].reward.reshape(3, 4).mean(dim=1).sum())


def test_where_no_step_follows_nothing_is_learnt() -> None:
    few, all_steps = learner_of(inner_steps=4), learner_of()
    trial, shorter = lived(few.agent, 9), lived(all_steps.agent, 5)
    assert few.update(trial, 0.0, generator(0)) == all_steps.update(shorter, 0.0, generator(0))
    with pytest.raises(UserError, match=r"agent.inner_steps: expected at least 1 step of the rule"):
        learner_of(inner_steps=0)


def test_every_trial_begins_with_its_own_weights() -> None:
    agent = learner_of(initial_deviation=0.5).agent
    first, again, other = (
        agent.begin(2000, generator(seed)).adapted.weights["layers.0.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert abs(float(first.std()) - 0.5) < 0.02 and abs(float(first.mean())) < 0.02
    assert first.unique().numel() > 7990


def test_an_outer_gradient_is_that_of_the_sum_along_the_unroll() -> None:
    """Against autograd on a loop that is written out: every coordinate alone, gradients as numbers."""
    learner = learner_of()
    rows = rows_of(learner, lived(learner.agent, 3))
    start = learner._drawn(3, generator(7))
    learner._unroll(start, rows, 3)[1].backward()  # type: ignore[no-untyped-call]
    ours = [parameter.grad for parameter in learner.learnt.parameters()]
    for parameter in learner.learnt.parameters():
        parameter.grad = None
    total: Any = 0
    lstm: Any = learner.learnt["lstm"]
    for task in range(3):
        theta = start.weights["layers.0.weight"][task, 0]  # [4]
        memory = [(torch.zeros(4, 4), torch.zeros(4, 4)) for _ in lstm.layers]
        for now, then in itertools.pairwise(rows):
            x, y = now.observation[task], now.label[task, :, 0]
            g = (2 * (x @ theta - y) @ x / 4).detach()  # [4]
            seen = torch.stack([g.abs().log() / 10, g.sign()], dim=1)
            for layer, cell in enumerate(lstm.layers):
                memory[layer] = cell(seen, memory[layer])
                seen = memory[layer][0]
            theta = theta + 0.1 * lstm.out(seen)[:, 0]
            after, target = then.observation[task], then.label[task, :, 0]
            total = total + (after @ theta - target).square().mean() / 3
    total.backward()
    for parameter, gradient in zip(learner.learnt.parameters(), ours, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


def test_state_goes_on_across_unrolls() -> None:
    """With steps of almost no length, three short unrolls see the losses of a long one."""
    short, long = (learner_of(unroll=unroll, learning_rate=1e-12) for unroll in (2, 6))
    rows = rows_of(short, lived(short.agent, 7))
    parts, (whole,) = (learner._walk([rows], [generator(0)]) for learner in (short, long))
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-5)
    assert len({round(mean, 6) for mean in parts}) == 3


def test_parts_of_the_tasks_take_the_same_outer_step() -> None:
    one, other = learner_of(), learner_of()
    trial = lived(one.agent, 4)
    said = one.update(trial, 0.0, generator(0))
    with at_most(2 * other._numbers_per_task(rows_of(other, trial))):
        again = other.update(trial, 0.0, generator(0))
    assert said == pytest.approx(again, rel=1e-5)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_it_learns_a_rule_that_fits_longer_trials_and_other_networks() -> None:
    learner = learner_of(rule={"name": "lstm"}, unroll=10, learning_rate=3e-2)
    worker, held_out = RolloutWorker(BOWLS), sample_tasks(BOWLS, 100, 0, "test")
    meta_train(learner, BOWLS, worker, Budget(12, 8, 44), 0, lambda row: False)
    losses = evaluate(learner.agent, worker, held_out, 4 * 21, 0).regrets
    assert losses is not None
    steps = losses.reshape(100, 21, 4).mean(axis=(0, 2))
    assert steps[10] < 0.5 * steps[0] and steps[20] < steps[10]
    deep = learner_of(rule={"name": "lstm"}, hidden_sizes=[5], activation="relu", bias=True)
    deep.load_state_dict(learner.state_dict())
    curve = evaluate(deep.agent, worker, held_out, 44, 0).regrets
    assert curve is not None and curve.reshape(100, 11, 4).mean(axis=(0, 2))[10] < steps[0]


def test_a_resumed_learner_goes_on_to_the_bit() -> None:
    one, other = (learner_of(final_learning_rate=1e-4, max_gradient_norm=0.1, passes=2) for _ in range(2))
    trial = lived(one.agent, 4)
    one.update(trial, 0.0, generator(0))
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    one.update(trial, 0.5, generator(1))
    other.update(trial, 0.5, generator(1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_cross_entropy_is_that_of_torch() -> None:
    source = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(5, 3, generator=source), torch.tensor([0, 2, 1, 1, 0])
    sure = 100 * torch.nn.functional.one_hot(labels, 3).float()
    rows = Rows(Tensor(), sure, Tensor(), torch.full((5,), 0.2), Tensor())
    loss = ScoreCrossEntropy(BOWLS.observation_space).loss(scores, rows)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(scores, labels))


def test_constants_that_diverge_are_not_chosen() -> None:
    config = read_config("learned_optimiser_quadratics", ["device=cpu", "training.episodes_per_trial=110"])
    worker = RolloutWorker(config.distribution)
    contest = Contest(config, worker, seed=0, num_tasks=50, tuning_tasks=50)
    sgd = hand_made_rules(
        *(getattr(config.law, f"{name}_space") for name in ("observation", "action")), config.agent
    )["sgd"]
    chosen = contest.evaluate_reference(sgd)
    worker.close()
    assert 0.003 < chosen.constants["rate"] < 0.03
    assert float(chosen.rewards[:, -10:].mean()) > float(chosen.rewards[:, :10].mean())


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_rule_that_cannot_learn_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match=f"expected a rule that can learn, lstm or meta_sgd, got {rule}"):
        learner_of(rule=rule)


def test_trials_and_spaces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="expected at least two phases"):
        learner = learner_of()
        learner.update(lived(learner.agent, 1), 0.0, generator(0))
    with pytest.raises(UserError, match="expected outputs of a network, a Box of one axis"):
        LearnedOptimiserLearner(BOWLS.observation_space, gym.spaces.Discrete(2), config_of())
