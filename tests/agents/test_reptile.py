"""Reptile against a plain loop of torch's optimisers, and its update against the analysis of the paper."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rl2meta.agents.maml import InnerConfig, InnerLoop, named
from rl2meta.agents.policy_gradient import PolicyGradient
from rl2meta.agents.reptile import ReptileConfig, ReptileLearner
from rl2meta.agents.rows import Rows
from rl2meta.envs.few_shot import FewShot
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.parts import at_most
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial

CURVES = Sinusoids(phase_high=6.28)
PLANE = PointNavigation(horizon=5, goal_radius=0.3)  # some episodes end early
POLICY = {"objective": "policy_gradient", "inner_learning_rates": [0.3]}
ADAM = {"name": "adam", "beta1": 0.0}


def learner_on(family: Any, **settings: Any) -> ReptileLearner:
    config = ReptileConfig(**{"hidden_sizes": [6], "episodes_per_phase": 4, **settings})
    return ReptileLearner(family.observation_space, family.action_space, config, seed=1)


def lived(learner: ReptileLearner, family: Any, phases: int, num_tasks: int = 3, seed: int = 0) -> Trial:
    tasks = sample_tasks(family, num_tasks, seed, "train")
    episodes = phases * learner.config.episodes_per_phase
    return RolloutWorker(family).run(learner.agent, tasks, episodes, seed)


def weights_of(learner: ReptileLearner) -> list[Tensor]:
    return [weight.detach().clone() for weight in learner.learnt.network.parameters()]


def plain(start: list[Tensor]) -> nn.Sequential:
    """A network of torch alone, with given weights."""
    network = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    for weight, value in zip(network.parameters(), start, strict=True):
        weight.data.copy_(value)
    return network


@pytest.mark.parametrize("adam", [False, True])
def test_an_update_is_that_of_a_plain_loop_over_tasks(adam: bool) -> None:
    """Each task alone, in a loop of torch's own optimisers; Adam goes on as it was after the task before."""
    rule = {"rule": ADAM, "keep_moments": True} if adam else {}
    learner = learner_on(CURVES, inner_learning_rates=[0.05], **rule, final_meta_step=0.5)
    num_tasks = 1 if adam else 3  # moments of several tasks are averaged, which torch's optimiser cannot
    kept: dict[str, Any] | None = None
    for progress, step in ((0.0, 1.0), (0.5, 0.75)):
        before = weights_of(learner)
        trial = lived(learner, CURVES, 3, num_tasks, seed=int(10 * progress))
        x = torch.stack([phase.inputs.observation for phase in trial.phases]).reshape(3, num_tasks, 4, 1)
        y = torch.stack([phase.truth["target"] for phase in trial.phases]).reshape(3, num_tasks, 4, 1)
        total = [torch.zeros_like(weight) for weight in before]
        for task in range(num_tasks):
            network = plain(before)
            optimizer: torch.optim.Optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
            if adam:
                optimizer = torch.optim.Adam(network.parameters(), lr=0.05, betas=(0.0, 0.999))
                if kept is not None:
                    optimizer.load_state_dict(kept)
            for phase in range(3):
                optimizer.zero_grad()
                (network(x[phase, task]) - y[phase, task]).square().mean().backward()
                optimizer.step()
            kept = optimizer.state_dict()
            total = [sum_ + weight.detach() for sum_, weight in zip(total, network.parameters(), strict=True)]
        learner.update(trial, progress, generator(0))
        for weight, start, reached in zip(weights_of(learner), before, total, strict=True):
            torch.testing.assert_close(weight, start + step * (reached / num_tasks - start))


def test_an_update_on_images_is_that_of_a_plain_loop_over_tasks(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}").mkdir()
        for image in range(4):
            noise = np.random.default_rng([number, image]).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(noise).save(tmp_path / f"{number}" / f"{image}.png")
    letters = FewShot(source="image_folders", path=str(tmp_path), ways=3, shots=1, queries=3, size=8)
    network = {"objective": {"name": "cross_entropy", "filters": 3}, "hidden_sizes": []}
    learner = learner_on(letters, **network, episodes_per_phase=3, inner_learning_rates=[0.2], meta_step=0.5)
    trial = lived(learner, letters, 3)
    before = weights_of(learner)
    total = [torch.zeros_like(weight) for weight in before]
    for task in range(3):
        alone = copy.deepcopy(learner.learnt.network)
        optimizer = torch.optim.SGD(alone.parameters(), lr=0.2)
        for phase in trial.phases:
            mine = slice(3 * task, 3 * task + 3)
            optimizer.zero_grad()
            logits = alone(phase.inputs.observation[0, mine].flatten(1))
            nn.functional.cross_entropy(logits, phase.truth["target"][0, mine]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        total = [sum_ + weight.detach() for sum_, weight in zip(total, alone.parameters(), strict=True)]
    learner.update(trial, 0.0, generator(0))
    for weight, start, reached in zip(weights_of(learner), before, total, strict=True):
        torch.testing.assert_close(weight, start + 0.5 * (reached / 3 - start), rtol=1e-4, atol=1e-6)


def _double(learner: ReptileLearner, phases: int, num_tasks: int) -> list[Rows]:
    """Return minibatches of every task in float64, and make the learner's weights float64."""
    trial = lived(learner, CURVES, phases, num_tasks)
    lanes = learner.config.episodes_per_phase
    rows = [learner.learnt.objective.rows(phase, lanes) for phase in trial.phases]
    learner.meta.double()
    return [Rows(*(field if field.dtype == torch.bool else field.double() for field in row)) for row in rows]


def _flat(weights: Any) -> Tensor:
    """Join the weights of all tasks: [num_tasks, ...] each -> [n], their mean over tasks."""
    return torch.cat([value.mean(dim=0).flatten() for value in weights.values()])


def _shaped(learner: ReptileLearner, vector: Tensor) -> dict[str, Tensor]:
    parameters = named(learner.meta)
    parts = torch.split(vector, [value.numel() for value in parameters.values()])
    return {name: p.view_as(parameters[name]) for name, p in zip(parameters, parts, strict=True)}


def _gradients(learner: ReptileLearner, vector: Tensor, batches: list[Rows]) -> list[Tensor]:
    """Return the gradient of each task on each minibatch, [minibatches] of [num_tasks, n]."""
    inner, num_tasks = learner.inner, len(batches[0].weight)
    stacked = vector.expand(num_tasks, -1).clone().requires_grad_()
    names = {name: value.shape for name, value in learner.learnt.network.named_parameters()}
    parts = torch.split(stacked, [shape.numel() for shape in names.values()], dim=1)
    weights = {n: p.reshape(num_tasks, *shape) for (n, shape), p in zip(names.items(), parts, strict=True)}
    state = inner.begin(named(learner.meta), num_tasks)._replace(weights=weights)
    losses = [inner.losses(state, batch).sum() for batch in batches]
    return [torch.autograd.grad(loss, stacked, retain_graph=True)[0] for loss in losses]


def test_two_steps_follow_the_gradient_of_inner_products_as_maml_does() -> None:
    """E[φ̃ − φ] = −2α E[g] + α²/2 ∇E[g₁ᵀg₂] + O(α³), and MAML's gradient is E[g] − α ∇E[g₁ᵀg₂] + O(α²).

    The expectation is over both orders of two minibatches of each task. ∇E[g₁ᵀg₂] comes from central
    differences, the rest of O(α) beside it from two sizes of α (Richardson).
    """
    learner = learner_on(CURVES, hidden_sizes=[3])
    one, other = _double(learner, 2, 5)
    phi = torch.cat([weight.detach().flatten() for weight in learner.meta.parameters()])

    def agreement(vector: Tensor) -> Tensor:
        first, second = _gradients(learner, vector, [one, other])
        return (first * second).sum(dim=1).mean()

    steps = 1e-5 * torch.eye(len(phi), dtype=phi.dtype)
    numeric = torch.stack([(agreement(phi + step) - agreement(phi - step)) / 2e-5 for step in steps])
    mean = sum(gradient.mean(dim=0) for gradient in _gradients(learner, phi, [one, other])) / 2

    def second_order(alpha: float) -> tuple[Tensor, Tensor]:
        """What is left of both updates beside the joint gradient, in units of what multiplies ∇E[g₁ᵀg₂]."""
        rates: dict[str, Any] = {"inner_learning_rates": [alpha]}
        learner.config = learner.config.model_copy(update=rates)
        maml = InnerLoop(learner.learnt.network, learner.learnt.objective, InnerConfig(**rates))
        moved, meta = torch.zeros_like(phi), torch.zeros_like(phi)
        for pair in ((one, other), (other, one)):
            with torch.no_grad():
                moved += (_flat(learner.reached(pair).weights) - phi) / 2
            theta = phi.clone().requires_grad_()
            adapted = maml.replay(_shaped(learner, theta), pair)[-1]
            meta += torch.autograd.grad(maml.losses(adapted, pair[1]).mean(), theta)[0] / 2
        return (moved + 2 * alpha * mean) / (alpha**2 / 2), (meta - mean) / -alpha

    (reptile, maml), (coarse, coarse_maml) = second_order(1e-4), second_order(2e-4)
    assert numeric.norm() > 0.1  # or nothing would be compared
    for fine, rough in ((reptile, coarse), (maml, coarse_maml)):
        assert (fine - numeric).norm() / numeric.norm() < 0.05
        assert (2 * fine - rough - numeric).norm() / numeric.norm() < 1e-4


def test_one_step_is_joint_training() -> None:
    """With k = 1 the update is a step of ε α down the mean loss of all tasks, where nothing adapts."""
    learner = learner_on(CURVES, inner_learning_rates=[0.1], meta_step=0.5)
    before, trial = weights_of(learner), lived(learner, CURVES, 1, 7)
    network = plain(before)
    (phase,) = trial.phases
    (network(phase.inputs.observation[0]) - phase.truth["target"][0]).square().mean().backward()
    learner.update(trial, 0.0, generator(0))
    for weight, start, alike in zip(weights_of(learner), before, network.parameters(), strict=True):
        assert alike.grad is not None
        torch.testing.assert_close(weight, start - 0.5 * 0.1 * alike.grad)


@pytest.mark.parametrize("rule", [{}, {"rule": ADAM, "keep_moments": True}])
@pytest.mark.usefixtures("noted")
def test_a_policy_takes_the_steps_that_it_took_when_it_acted(rule: dict[str, Any]) -> None:
    for family in (PLANE, TabularMDPs(num_states=3, num_actions=2, horizon=4)):
        learner = learner_on(family, **POLICY, **rule)
        before = weights_of(learner)
        learner.update(lived(learner, family, 2), 0.0, generator(0))  # now there may be moments to begin with
        assert any(not torch.equal(a, b) for a, b in zip(weights_of(learner), before, strict=True))
        trial = lived(learner, family, 3, seed=1)
        objective = learner.learnt.objective
        assert isinstance(objective, PolicyGradient)
        rows = [objective.rows(phase, 4) for phase in trial.phases]
        for count in (1, 2):
            state = learner.reached(rows[:count])
            policy = objective.distribution(learner.inner.outputs(state, rows[count].observation))
            acted = trial.phases[count].notes["log_prob"]  # [T, num_tasks × lanes]
            laned = acted.reshape(len(acted), 3, 4).permute(1, 2, 0).flatten(1)  # [num_tasks, lanes × T]
            seen = rows[count].weight > 0
            torch.testing.assert_close(policy.log_prob(rows[count].label)[seen], laned[seen])


def test_a_pass_takes_every_example_of_a_trial_once() -> None:
    learner = learner_on(CURVES, minibatch=3)
    trial = lived(learner, CURVES, 3)
    rows = [learner.learnt.objective.rows(phase, 4) for phase in trial.phases]
    everything = torch.cat([phase.observation for phase in rows], dim=1)  # [num_tasks, 12, 1]
    batches = learner.batches(rows, generator(5))
    assert [batch.weight.shape for batch in batches] == [(3, 3)] * 4
    taken = torch.cat([batch.observation for batch in batches], dim=1)
    assert torch.equal(taken.sort(dim=1).values, everything.sort(dim=1).values)
    assert not torch.equal(taken, everything)
    more = learner_on(CURVES, minibatch=5, training_steps=6).batches(rows, generator(5))
    counts = Counter(torch.cat([batch.observation[0] for batch in more]).flatten().tolist()).values()
    assert len(more) == 6 and sum(counts) == 30 and set(counts) == {2, 3}


def test_guesses_in_training_change_nothing_that_is_learnt_from_examples() -> None:
    one, other = (learner_on(CURVES, minibatch=3, inner_steps=steps) for steps in (None, 0))
    for learner in (one, other):
        learner.update(lived(learner, CURVES, 3), 0.0, generator(0))
    assert all(torch.equal(*pair) for pair in zip(weights_of(one), weights_of(other), strict=True))


def test_parts_of_the_tasks_change_nothing() -> None:
    one, other = (learner_on(PLANE, **POLICY, rule=ADAM, keep_moments=True) for _ in range(2))
    trial = lived(one, PLANE, 2, num_tasks=40)
    one.update(trial, 0.0, generator(0))
    with at_most(16 * 2 * one.agent.numbers_per_task(trial.phases[0])):
        other.update(trial, 0.0, generator(0))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


@pytest.mark.parametrize("family", [CURVES, PLANE])
def test_a_resumed_learner_goes_on_to_the_bit(family: Any) -> None:
    settings = {"rule": ADAM, "keep_moments": True} | (POLICY if family is PLANE else {"minibatch": 3})
    one, other = learner_on(family, **settings), learner_on(family, **settings)
    one.update(lived(one, family, 2), 0.0, generator(0))
    assert any(
        name.startswith("moments.") and value.abs().sum() > 0 for name, value in one.state_dict().items()
    )
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    for learner in (one, other):
        learner.update(lived(learner, family, 2, seed=1), 0.5, generator(1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_it_learns_what_joint_training_does_not() -> None:
    """After as many updates on as many examples; joint training is k = 1, on all of them at once."""
    curves = {"hidden_sizes": [40, 40], "episodes_per_phase": 10, "inner_learning_rates": [0.03]}
    worker, held_out = RolloutWorker(CURVES), sample_tasks(CURVES, 200, 0, "test")

    def after_eight_steps(minibatch: int) -> float:
        learner = learner_on(CURVES, **curves, minibatch=minibatch, inner_steps=0)  # acts alike for all tasks
        meta_train(learner, CURVES, worker, Budget(120, 10, 50), 0, lambda row: False)
        adapting = learner_on(CURVES, **curves, support_phases=1)
        adapting.load_state_dict(learner.state_dict())
        played = evaluate(adapting.agent, worker, held_out, 90, 0)
        assert played.regrets is not None
        return float(played.regrets[:, -10:].mean())

    assert after_eight_steps(10) < 0.8 * after_eight_steps(50)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "meta_sgd"}, "agent.rule: expected a rule that has nothing to learn, got meta_sgd"),
        ({"keep_moments": True}, "agent.keep_moments: expected false with rule sgd"),
        ({"inner_steps": 0}, "agent.inner_steps: expected at least 1 without a minibatch, got 0"),
        ({"objective": "cross_entropy"}, r"agent.hidden_sizes: expected \[\] with objective cross_entropy"),
        ({**POLICY, "minibatch": 4}, "agent.minibatch: expected null with objective policy_gradient, got 4"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learner_on(PLANE, **settings)


def test_what_does_not_fit_is_explained() -> None:
    with pytest.raises(ValueError, match="training_steps null without a minibatch, got 3"):
        ReptileConfig(training_steps=3)
    learner = learner_on(CURVES, minibatch=9)
    with pytest.raises(UserError, match="expected at most the 8 examples of a trial"):
        learner.update(lived(learner, CURVES, 2), 0.0, generator(0))
    with pytest.raises(UserError, match=r"or use maml_trpo, or agent\.objective=policy_gradient"):
        lived(learner_on(PLANE), PLANE, 2)
