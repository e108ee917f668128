"""MAML-TRPO against what it must equal: finite differences, explicit matrices, tasks one by one."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from rl2meta.agents.linear_baseline import linear_baseline
from rl2meta.agents.maml import MetaWeights, named
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.outer_problem import OuterProblem, unflatten
from rl2meta.agents.rows import Rows, by_row
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.errors import UserError
from rl2meta.parts import MOST_NUMBERS, at_most
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial

FAMILIES: dict[str, Any] = {
    "discrete": TabularMDPs(num_states=3, num_actions=2, horizon=4),
    "continuous": PointNavigation(horizon=5, goal_radius=0.3),  # some episodes end early
}


def learner_on(family: Any, dtype: torch.dtype = torch.float64, **settings: Any) -> MAMLTRPOLearner:
    config = MAMLTRPOConfig(**{"hidden_sizes": [4], "episodes_per_phase": 3, **settings})
    return MAMLTRPOLearner(family.observation_space, family.action_space, config, seed=1, dtype=dtype)


def lived(learner: MAMLTRPOLearner, family: Any, phases: int, num_tasks: int = 4, seed: int = 0) -> Trial:
    tasks = sample_tasks(family, num_tasks, seed, "train")
    episodes = phases * learner.config.episodes_per_phase
    return RolloutWorker(family).run(learner.agent, tasks, episodes, seed)


def problem_of(family: Any, phases: int, **settings: Any) -> tuple[OuterProblem, Tensor]:
    learner = learner_on(family, **settings)
    # θ as it is at first has symmetries; a little noise breaks them
    vector = parameters_to_vector(learner.meta.parameters()).detach()
    noise = torch.randn(len(vector), generator=torch.Generator().manual_seed(3), dtype=vector.dtype)
    torch.nn.utils.vector_to_parameters(vector + 0.1 * noise, learner.meta.parameters())
    problem = learner.outer_problem(lived(learner, family, phases))
    return problem, parameters_to_vector(learner.meta.parameters()).detach()


def central_differences(function: Callable[[Tensor], Tensor], x: Tensor, width: float = 1e-5) -> Tensor:
    steps = width * torch.eye(len(x), dtype=x.dtype)
    return torch.stack([(function(x + step) - function(x - step)) / (2 * width) for step in steps])


def relative_error(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("phases", "settings"),
    [
        (2, {}),
        (3, {}),
        (3, {"query_weights": None}),
        (3, {"learn_inner_rates": True, "inner_learning_rates": [0.5, 0.2]}),
        (3, {"support_phases": 1}),
        (4, {"inner_steps": 1, "query_weights": [3.0, 1.0, 1.0]}),
        (2, {"baseline": False, "standardise": False}),
        (1, {}),
    ],
)
def test_meta_gradient_is_that_of_central_differences(
    family: str, phases: int, settings: dict[str, Any]
) -> None:
    problem, x = problem_of(FAMILIES[family], phases, **{"inner_learning_rates": [0.5], **settings})
    old = problem.policies(x)
    numeric = central_differences(lambda y: problem.measure(y, old).surrogate, x)
    assert relative_error(problem.linearised(x).gradient, numeric) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_where_an_outer_step_begins_is_measured_with_its_gradient(family: str) -> None:
    problem, x = problem_of(FAMILIES[family], 2)
    _, old, measured = problem.linearised(x)
    action = problem.query.label
    assert not old.log_prob(action).requires_grad and not measured.surrogate.requires_grad
    torch.testing.assert_close(old.log_prob(action), problem.policies(x).log_prob(action))
    again = problem.measure(x, old)
    torch.testing.assert_close(measured.surrogate, again.surrogate)
    assert measured.kl == 0 and again.kl.abs() < 1e-15


@pytest.mark.parametrize("family", FAMILIES)
def test_first_order_is_the_gradient_at_the_adapted_weights(family: str) -> None:
    exact, x = problem_of(FAMILIES[family], 2, inner_learning_rates=[0.5])
    first, _ = problem_of(FAMILIES[family], 2, inner_learning_rates=[0.5], first_order=True)
    state = first.inner.replay(unflatten(x, first.meta), first.support)[-1]
    weights = {name: weight.detach().requires_grad_() for name, weight in state.weights.items()}
    outputs = first.inner.outputs(state._replace(weights=weights), first.query.observation)
    policies = first.objective.distribution(outputs)
    surrogate = first.surrogate(policies, policies.log_prob(first.query.label).detach())
    gradients = torch.autograd.grad(surrogate, list(weights.values()))
    at_adapted = torch.cat([gradient.sum(dim=0).flatten() for gradient in gradients])
    torch.testing.assert_close(first.linearised(x).gradient, at_adapted)
    assert (
        relative_error(exact.linearised(x).gradient, at_adapted) > 1e-3
    )  # else the second order would be missing


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("phases", [1, 2, 3])
def test_the_metric_is_the_hessian_of_the_kl(family: str, phases: int) -> None:
    problem, x = problem_of(FAMILIES[family], phases, inner_learning_rates=[0.5], hidden_sizes=[2])
    old = problem.policies(x)
    kl = lambda y: problem.measure(y, old).kl  # noqa: E731
    hessian = torch.autograd.functional.hessian(kl, x)
    product = problem.metric(x)
    explicit = torch.stack([product(row) for row in torch.eye(len(x), dtype=x.dtype)])
    torch.testing.assert_close(explicit, hessian, rtol=1e-7, atol=1e-10)
    assert kl(x).abs() < 1e-15  # the value is 0 and so is the gradient; the Hessian is not
    assert torch.autograd.functional.jacobian(kl, x).abs().max() < 1e-12
    assert hessian.abs().max() > 1e-3


def test_part_of_the_steps_measures_the_same_metric_on_average() -> None:
    problem, x = problem_of(FAMILIES["discrete"], 1)  # all episodes of one length, and no inner step
    v = torch.randn(len(x), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    parts = torch.stack([problem.take(index).metric(x)(v) for index in order.split(3)])
    torch.testing.assert_close(parts.mean(dim=0), problem.metric(x)(v))
    assert relative_error(parts[0], parts[1]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_each_task_adapts_as_if_it_were_alone(family: str) -> None:
    learner = learner_on(FAMILIES[family], inner_learning_rates=[0.7])
    trial = lived(learner, FAMILIES[family], 3)
    rows = [learner.objective.rows(phase, 3) for phase in trial.phases]
    together = learner.inner.replay(named(learner.meta), rows)[-1]
    for task in range(4):
        weights = {name: value.detach().requires_grad_() for name, value in _network(learner.meta).items()}
        for phase in rows[:-1]:
            one = Rows(*(field[task] for field in phase))
            outputs = functional_call(learner.meta.network, weights, (one.observation,))
            gradients = torch.autograd.grad(learner.objective.loss(outputs, one), list(weights.values()))
            weights = {
                name: (value - 0.7 * gradient).detach().requires_grad_()
                for (name, value), gradient in zip(weights.items(), gradients, strict=True)
            }
        for name, value in weights.items():
            torch.testing.assert_close(together.weights[name][task], value)


def _network(meta: MetaWeights) -> dict[str, Tensor]:
    return dict(meta.network.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("noted")
def test_the_learner_replays_what_the_agent_did(family: str) -> None:
    learner = learner_on(FAMILIES[family])
    trial = lived(learner, FAMILIES[family], 3)
    rows = [learner.objective.rows(phase, 3) for phase in trial.phases]
    for state, phase, seen in zip(
        learner.inner.replay(named(learner.meta), rows), rows, trial.phases, strict=True
    ):
        policy = learner.objective.distribution(learner.inner.outputs(state, phase.observation))
        log_prob = policy.log_prob(phase.label)
        recorded = seen.notes["log_prob"].reshape(len(seen.mask), 4, 3).permute(1, 2, 0).flatten(1)
        torch.testing.assert_close(log_prob, recorded, rtol=1e-5, atol=1e-5)


def test_what_follows_the_end_of_an_episode_changes_nothing() -> None:
    family = FAMILIES["continuous"]
    learner = learner_on(family)
    trial = lived(learner, family, 2)
    assert any(not phase.mask.all() for phase in trial.phases)
    rubbish = [_with_rubbish(phase) for phase in trial.phases]
    x = parameters_to_vector(learner.meta.parameters()).detach()
    clean, dirty = (
        learner.outer_problem(Trial(trial.tasks, tuple(phases))) for phases in (trial.phases, rubbish)
    )
    torch.testing.assert_close(clean.linearised(x).gradient, dirty.linearised(x).gradient)
    old = clean.policies(x)
    torch.testing.assert_close(clean.metric(x)(x), dirty.metric(x)(x))
    assert abs(clean.measure(x, old).kl) < 1e-15


def _with_rubbish(phase: Any) -> Any:
    from dataclasses import replace

    outside = ~phase.mask
    return replace(
        phase,
        reward=torch.where(outside, 1e3, phase.reward),
        action=torch.where(outside.unsqueeze(-1), 3.0, phase.action),
        inputs=phase.inputs._replace(
            observation=torch.where(outside.unsqueeze(-1), -7.0, phase.inputs.observation)
        ),
        last=phase.last | outside,
    )


def test_an_accepted_step_is_better_and_near() -> None:
    family = FAMILIES["discrete"]
    learner = learner_on(family, episodes_per_phase=10, curvature_fraction=1.0)
    for seed in range(5):
        trial = lived(learner, family, 2, num_tasks=10, seed=seed)
        problem = learner.outer_problem(trial)
        before = parameters_to_vector(learner.meta.parameters()).detach()
        old = problem.policies(before)
        metrics = learner.update(trial, 0.0, generator(seed))
        after = parameters_to_vector(learner.meta.parameters()).detach()
        measured = problem.measure(after, old)
        assert metrics["step_scale"] > 0
        assert 0 < measured.kl <= 0.01
        assert measured.surrogate > problem.measure(before, old).surrogate
        assert metrics["kl"] == pytest.approx(float(measured.kl))


def test_a_refused_step_leaves_every_bit() -> None:
    """One try only, and steps as long as the model of the KL allows: some are too long for the KL itself."""
    family = FAMILIES["discrete"]
    learner = learner_on(family, torch.float32, line_searches=1, curvature_fraction=1.0, max_kl=1e-4)
    scales = []
    for seed in range(16):
        trial = lived(learner, family, 2, seed=seed)
        before = {name: value.clone() for name, value in learner.meta.state_dict().items()}
        metrics = learner.update(trial, 0.0, generator(seed))
        scales.append(metrics["step_scale"])
        same = all(torch.equal(value, before[name]) for name, value in learner.meta.state_dict().items())
        assert same == (scales[-1] == 0)
        assert metrics["gradient_norm"] > 0
    assert {0.0, 1.0} == set(scales)


def test_the_radius_moves_and_what_the_outer_step_takes_is_its_own() -> None:
    family = FAMILIES["discrete"]
    learner = learner_on(
        family, episodes_per_phase=10, max_kl=0.01, final_max_kl=1e-5, curvature_fraction=1.0
    )
    assert learner.update(lived(learner, family, 2), 0.999, generator(0))["kl"] <= 3e-5
    trial = lived(learner, family, 2)
    sampled = learner.outer_problem(trial).query.advantage
    (regret,) = (
        learner_on(family, episodes_per_phase=10, reward_signal=signal, outer_discount=0.0, baseline=False)
        .outer_problem(trial)
        .query.advantage
        for signal in ("auto",)
    )
    lost = by_row(trial.phases[1].truth["regret"], 10).double()
    centred = lost.mean(dim=1, keepdim=True) - lost
    torch.testing.assert_close(regret, centred / lost.std(dim=1, keepdim=True, correction=0))
    assert not torch.allclose(sampled, regret)


def test_advantages_between_tasks_where_none_is_standardised_within() -> None:
    family = FAMILIES["continuous"]
    learner = learner_on(family, standardise=False, query_weights=None)
    query = learner.outer_problem(lived(learner, family, 2)).query
    assert float(query.weight.sum()) == pytest.approx(1)
    assert float((query.weight * query.advantage).sum()) == pytest.approx(0, abs=1e-9)
    assert float((query.weight * query.advantage**2).sum()) == pytest.approx(1, rel=1e-5)


def test_thousands_of_tasks_adapt_in_parts_as_they_do_at_once() -> None:
    for settings in ({}, {"support_phases": 1}):
        learner = learner_on(FAMILIES["continuous"], **settings)
        whole = lived(learner, FAMILIES["continuous"], 3, num_tasks=7)
        with at_most(2 * learner.agent.numbers_per_task(whole.phases[0])):
            parts = lived(learner, FAMILIES["continuous"], 3, num_tasks=7)
        for one, other in zip(whole.phases, parts.phases, strict=True):
            torch.testing.assert_close(one.reward, other.reward)


def test_settings_that_make_no_sense_together_are_refused() -> None:
    family = FAMILIES["discrete"]
    learner = learner_on(family, query_weights=[1.0, 1.0, 1.0])
    with pytest.raises(UserError, match=r"agent\.query_weights: expected at most 2"):
        learner.outer_problem(lived(learner, family, 2))
    bandits = BernoulliBandits(num_arms=2)
    learner = learner_on(bandits, episodes_per_phase=1)
    with pytest.raises(UserError, match="expected more than one step in a phase"):
        lived(learner, bandits, 2)
    learner = learner_on(bandits, episodes_per_phase=1, baseline=False, standardise=False)
    assert learner.outer_problem(lived(learner, bandits, 4, 30)).query.advantage.abs().sum() > 0


def test_the_same_update_twice_and_from_a_saved_state() -> None:
    family = FAMILIES["continuous"]
    one, other = learner_on(family, learn_inner_rates=True), learner_on(family, learn_inner_rates=True)
    trial = lived(one, family, 2)
    assert one.update(trial, 0.0, generator(5)) == other.update(trial, 0.0, generator(5))
    third = learner_on(family, learn_inner_rates=True)
    third.load_state_dict(one.state_dict())
    for name, value in third.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    with pytest.raises(RuntimeError):
        learner_on(family).load_state_dict(one.state_dict())


def test_one_phase_trains_without_adapting() -> None:
    """Pretraining: the gradient is that of the policy itself."""
    problem, x = problem_of(FAMILIES["discrete"], 1)
    state = problem.inner.replay(unflatten(x, problem.meta), problem.support)
    assert len(state) == 1
    assert state[0].steps == 0


def test_inner_steps_end_where_the_config_says() -> None:
    family = FAMILIES["discrete"]
    learner = learner_on(family, inner_steps=1)
    rows = [learner.objective.rows(phase, 3) for phase in lived(learner, family, 4).phases]
    states = learner.inner.replay(named(learner.meta), rows)
    assert [state.steps for state in states] == [0, 1, 1, 1]
    never = learner_on(family, inner_steps=0)  # an oracle has nothing to adapt to
    assert [state.steps for state in never.inner.replay(named(never.meta), rows)] == [0, 0, 0, 0]
    for name, value in states[1].weights.items():
        assert torch.equal(states[3].weights[name], value)


def test_each_inner_step_has_its_own_rate() -> None:
    family = FAMILIES["discrete"]
    fast = learner_on(family, inner_learning_rates=[0.5, 0.25])
    rows = [fast.objective.rows(phase, 3) for phase in lived(fast, family, 4).phases]
    states = fast.inner.replay(named(fast.meta), rows)
    for step, rate in enumerate([0.5, 0.25, 0.25]):
        slow = learner_on(family, inner_learning_rates=[1.0])
        alone = slow.inner.advance(states[step]._replace(steps=0), rows[step])
        for name, value in states[step + 1].weights.items():
            moved = value - states[step].weights[name]
            torch.testing.assert_close(moved, rate * (alone.weights[name] - states[step].weights[name]))


class Blindfolded(BernoulliBandits):
    """Bandits whose observation is a constant zero."""

    @property
    def observation_space(self) -> gym.Space[Any]:
        return gym.spaces.Box(-1, 1, (1,))

    def make_envs(self, num_envs: int, device: torch.device) -> Any:
        return _Zeros(super().make_envs(num_envs, device))


class _Zeros:
    finished = False

    def __init__(self, envs: Any) -> None:
        self.envs, self.num_envs, self.device = envs, envs.num_envs, envs.device

    def reset(self, **options: Any) -> Any:
        observation, info = self.envs.reset(**options)
        return self._zeros(observation), info

    def step(self, action: Tensor) -> Any:
        observation, *rest = self.envs.step(action)
        return self._zeros(observation), *rest

    def _zeros(self, observation: Tensor) -> Tensor:
        return torch.zeros(len(observation), 1)


def test_a_constant_observation_is_no_dead_end() -> None:
    """With zero observations, ReLU and zero biases only the last bias would learn: some 1.4 pulls of 100."""
    family = Blindfolded(num_arms=5)
    config = MAMLTRPOConfig(
        hidden_sizes=[32, 32], episodes_per_phase=20, inner_learning_rates=[0.5], reward_signal="regret"
    )
    learner = MAMLTRPOLearner(family.observation_space, family.action_space, config, seed=0)
    problem = learner.outer_problem(lived(learner, family, 2, num_tasks=20))
    gradient = problem.linearised(parameters_to_vector(learner.meta.parameters())).gradient
    moved = {name for name, part in unflatten(gradient, learner.meta).items() if part.abs().max() > 1e-8}
    still = set(named(learner.meta)) - moved
    assert still == {"network.trunk.0.weight"}  # what a zero is multiplied by
    gains: list[float] = []

    def record(row: dict[str, Any]) -> bool:
        gains.append(row["return_after"] - row["return_before"])
        return False

    meta_train(learner, family, RolloutWorker(family), Budget(40, 40, 40), 0, record)
    late = sum(gains[-10:]) / 10  # return of a pull, gained by one inner step
    assert late > 0.1  # uniform pulls earn 0.5, the best arm 0.83


def test_linear_baseline_is_least_squares_of_each_task() -> None:
    source = torch.Generator().manual_seed(0)
    observation = torch.randn(6, 3, 8, 2, generator=source, dtype=torch.float64)
    returns = torch.randn(6, 3, 8, generator=source, dtype=torch.float64)
    mask = (torch.rand(6, 3, 8, generator=source) > 0.3).double()
    fitted = linear_baseline(observation, returns, mask)
    time = (torch.arange(6, dtype=torch.float64) / 6)[:, None].expand(6, 8)
    for task in range(3):
        o = observation[:, task]
        columns = [o, o**2, torch.stack([time, time**2, time**3, torch.ones_like(time)], dim=-1)]
        features, counted = torch.cat(columns, dim=-1).flatten(0, 1), mask[:, task].flatten() > 0
        # a ridge is least squares with a row √(nλ) e for each feature, whose target is 0
        ridge = (1e-5 * counted.sum()).sqrt() * torch.eye(8, dtype=torch.float64)
        target = torch.cat([returns[:, task].flatten()[counted], torch.zeros(8, dtype=torch.float64)])
        answer = torch.linalg.lstsq(torch.cat([features[counted], ridge]), target[:, None]).solution
        torch.testing.assert_close(fitted[:, task], (features @ answer).reshape(6, 8))


@pytest.mark.parametrize("steps", [1, 5])
def test_linear_baseline_bears_features_that_are_all_the_same(steps: int) -> None:
    observation, ones = torch.ones(steps, 2, 4, 3), torch.ones(steps, 2, 4)
    returns = torch.arange(steps * 8.0).reshape(steps, 2, 4)
    fitted = linear_baseline(observation, returns, ones)
    assert fitted.isfinite().all()
    torch.testing.assert_close(fitted.mean(dim=(0, 2)), returns.mean(dim=(0, 2)), rtol=1e-3, atol=1e-3)


def test_advantages_are_standardised_over_what_counts_in_each_task() -> None:
    family = FAMILIES["continuous"]
    learner = learner_on(family)
    rows = learner.objective.rows(lived(learner, family, 1).phases[0], 3)
    torch.testing.assert_close(rows.weight.sum(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(
        (rows.weight * rows.advantage).sum(dim=1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(
        (rows.weight * rows.advantage**2).sum(dim=1), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_parts_of_some_tasks_add_up_to_the_whole() -> None:
    problem, x = problem_of(PointNavigation(horizon=5), 2)
    (whole, apart), index = (problem.parts(1), problem.parts(MOST_NUMBERS)), torch.arange(4)
    assert len(whole.problems) == 1 and len(apart.problems) == len(problem.query.weight) > 1
    (gradient, old, measured), (want, theirs, same) = apart.linearised(x), whole.linearised(x)
    torch.testing.assert_close(gradient, want)
    torch.testing.assert_close(torch.stack(list(measured)), torch.stack(list(same)))
    torch.testing.assert_close(apart.metric(x, index)(x), whole.metric(x, index)(x))
    torch.testing.assert_close(whole.metric(x, index)(x), problem.take(index).metric(x)(x))
    torch.testing.assert_close(apart.entropy(old), whole.entropy(theirs))
    moved = x + 0.1 * gradient
    there, here = apart.measure(moved, old), whole.measure(moved, theirs)
    torch.testing.assert_close(torch.stack(list(there)), torch.stack(list(here)))
    assert here.kl > 0
