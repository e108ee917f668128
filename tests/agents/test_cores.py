"""What every core must be: one function, step by step and all at once.

A core that is added to ``CORES`` is tested from then on.
"""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl2meta.agents.cores.core import Output, Position, Seen
from rl2meta.agents.cores.slot import SlotConfig
from rl2meta.agents.rl2 import CORES, RL2Config, rl2_learner
from rl2meta.learner_state import seeded
from rl2meta.randomness import generator
from rl2meta.spaces import encoding

EVERY_CORE = pytest.mark.parametrize("config", CORES, ids=lambda config: config.__name__)
OBSERVATIONS: dict[str, gym.Space[Any]] = {
    "discrete": gym.spaces.Discrete(4),
    "box": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "picture": gym.spaces.Box(0, 255, (6, 5), np.uint8),
}
ACTIONS: dict[str, gym.Space[Any]] = {
    "discrete": gym.spaces.Discrete(3),
    "box": gym.spaces.Box(-1, 1, (2,), np.float32),
}
DISCRETE_ONLY = {SlotConfig}
"""The cores that take no other observations and actions than discrete ones."""
SIZES = [
    {},
    {"hidden_size": 7, "num_layers": 2, "heads": 3, "head_size": 5, "span": 4, "filters": 3, "key_size": 5},
    {"embedding_sizes": [6], "span": 5, "filters": 4, "blocks": ["attention", "convolutions", "attention"]},
    {"hidden_size": 5, "num_layers": 3, "embedding_sizes": [6, 4], "span": 9, "blocks": ["convolutions"]},
]


def observed_by(config: Any) -> str:
    """Return observations that the core takes: a Box's unless it takes only discrete ones."""
    return "discrete" if config in DISCRETE_ONLY else "box"


def build(
    config: Any, observed: str | None = None, acted: str = "discrete", seed: int = 0, **settings: Any
) -> Any:
    """Return a core of the settings that its config knows, in float64."""
    observed = observed or observed_by(config)
    known = {name: value for name, value in settings.items() if name in config.model_fields}
    spaces = OBSERVATIONS[observed], ACTIONS[acted]
    return seeded(lambda: CORES[config](*spaces, config(**known)), seed).double()  # type: ignore[attr-defined]


def random_trials(
    observed: str, acted: str, steps: int, rows: int, source: torch.Generator, length: int | None = None
) -> Seen:
    """Whole trials in float64 whose episodes begin at random places; the first step begins one."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(steps, rows, *shape, generator=source, dtype=torch.float64)

    size = encoding(OBSERVATIONS[observed]).size
    if observed == "discrete":
        observation = nn.functional.one_hot(drawn(size).argmax(dim=-1), size).double()
    elif observed == "picture":
        observation = torch.randint(256, (steps, rows, size), generator=source).double()
    else:
        observation = drawn(size)
    action = drawn(encoding(ACTIONS[acted]).size).clamp(-1, 1)
    if acted == "discrete":
        action = nn.functional.one_hot(action.argmax(dim=-1), action.shape[-1]).double()
    action[0] = 0
    first = torch.rand(steps, rows, generator=source) < 0.3
    first[0] = True
    return Seen(observation, action, drawn(), first, length)


def single_steps(trials: Seen) -> list[Seen]:
    """Return the same step by step, with positions that are counted here."""
    steps, count = [], torch.zeros(trials.first.shape[1], dtype=torch.int64)
    for t, first in enumerate(trials.first):
        count = torch.where(first, torch.zeros_like(count), count)
        before = trials.observation[t - 1] if t else torch.zeros_like(trials.observation[0])
        fields = trials.observation[t], trials.action[t], trials.reward[t], first
        steps.append(Seen(*fields, trials.trial_length, Position(before, count, t)))
        count = count + 1
    return steps


def stepped(core: Any, trials: Seen) -> Output:
    """Return what the core gives step by step, [T, B, ...]."""
    state, outputs = core.begin(trials.first.shape[1], trials.trial_length), []
    for seen in single_steps(trials):
        output, state = core.step(seen, state)
        outputs.append(output)
    parameters = [output.parameters for output in outputs if output.parameters is not None]
    assert len(parameters) == (len(outputs) if core.gives_parameters else 0)
    return Output(
        torch.stack([output.features for output in outputs]), torch.stack(parameters) if parameters else None
    )


def assert_same(one: Output, other: Output) -> None:
    torch.testing.assert_close(one.features, other.features, atol=1e-10, rtol=0)
    torch.testing.assert_close(one.parameters, other.parameters, atol=1e-10, rtol=0)


@EVERY_CORE
@pytest.mark.parametrize("recalls", [False, True])
@pytest.mark.parametrize("observed", OBSERVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_step_after_step_is_the_whole_trial(
    config: Any, sizes: dict[str, Any], observed: str, recalls: bool
) -> None:
    """Over random lengths, numbers of rows (below and above 64) and episodes."""
    if observed == "picture" and recalls:
        pytest.skip("pictures are not recalled")
    if observed != "discrete" and config in DISCRETE_ONLY:
        pytest.skip("the core refuses them")
    source = generator(0, "trials", observed)
    for rows in (1, 6, 63, 64, 70):
        acted = "discrete" if config in DISCRETE_ONLY else list(ACTIONS)[rows % 2]
        core = build(config, observed, acted, seed=rows, previous_observation=recalls, **sizes)
        steps = int(torch.randint(1, 12, (), generator=source))
        trials = random_trials(observed, acted, steps, rows, source, length=12)
        with torch.no_grad():
            whole = core(trials)
            assert whole.features.shape == (steps, rows, core.out_features)
            assert (whole.parameters is not None) == core.gives_parameters
            assert_same(stepped(core, trials), whole)


@EVERY_CORE
def test_where_the_length_of_a_trial_is_not_known_both_ways_agree_too(config: Any) -> None:
    core = build(config)
    trials = random_trials(observed_by(config), "discrete", 7, 3, generator(1, "trials"))
    assert trials.trial_length is None
    assert_same(stepped(core, trials), core(trials))


@EVERY_CORE
def test_both_ways_have_the_same_gradients(config: Any) -> None:
    core = build(config, previous_observation=True, hidden_size=5, num_layers=2, span=5)
    trials = random_trials(observed_by(config), "discrete", 6, 4, generator(2, "trials"), length=6)
    weights = list(core.parameters())
    one, other = (
        torch.autograd.grad(sum(part.sin().sum() for part in read(trials) if part is not None), weights)
        for read in (core, lambda trials: stepped(core, trials))
    )
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
    assert any(gradient.any() for gradient in one)


@EVERY_CORE
def test_a_trial_is_read_for_itself(config: Any) -> None:
    """What a core gives for a row does not depend on the rows beside it."""
    core = build(config)
    trials = random_trials(observed_by(config), "discrete", 6, 5, generator(3, "trials"), length=6)
    whole = core(trials)
    for row in range(5):
        alone = (getattr(trials, name)[:, row : row + 1] for name in FIELDS)
        assert_same(core(Seen(*alone, 6)), Output(*(_row(part, row) for part in whole)))


@EVERY_CORE
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("before", [0, 5])
def test_a_repeated_state_goes_on_as_trials_with_the_same_past(
    config: Any, learning: bool, before: int
) -> None:
    core = build(config, previous_observation=True, num_layers=2, span=4)
    trials = random_trials(observed_by(config), "discrete", before + 2, 6, generator(6, "trials"), length=9)
    for name in FIELDS:  # rows 0 to 2 share their past, and so do rows 3 to 5
        field = getattr(trials, name)
        field[:before] = field[:before, [0, 0, 0, 3, 3, 3]]
    with torch.set_grad_enabled(learning):
        state = core.begin(2, 9)
        for seen in single_steps(_rows(trials, [0, 3]))[:before]:
            _, state = core.step(seen, state)
        state, outputs = core.repeated(state, 3), []
        for seen in single_steps(trials)[before:]:
            output, state = core.step(seen, state)
            outputs.append(output.features)
        whole = core(trials).features
    torch.testing.assert_close(torch.stack(outputs), whole[before:], atol=1e-10, rtol=0)


def _rows(trials: Seen, rows: list[int]) -> Seen:
    return Seen(*(getattr(trials, name)[:, rows] for name in FIELDS), trials.trial_length)


FIELDS = ("observation", "action", "reward", "first")


def _row(part: Tensor | None, row: int) -> Tensor | None:
    return None if part is None else part[:, row : row + 1]


@EVERY_CORE
@pytest.mark.parametrize("name", FIELDS)
def test_everything_that_is_seen_counts_until_the_trials_end(config: Any, name: str) -> None:
    """The features of the last step depend on each part of the second, across the ends of episodes.

    The second step is the first that has an action and a reward before it. The trial is long enough to come
    back to its observation and action, which may matter only then.
    """
    core = build(config)
    trials = random_trials(observed_by(config), "discrete", 30, 4, generator(4, "trials"), length=30)
    assert trials.first[2:].any(dim=0).all()
    part = getattr(trials, name).clone()
    part[1] = _other(part[1])
    changed = core(replace(trials, **{name: part})).features
    assert ((changed - core(trials).features)[-1].abs().sum(dim=-1) > 0).all()


def _other(part: Tensor) -> Tensor:
    """Return another value: of flags, of one-hot vectors, of numbers."""
    if part.dtype == torch.bool:
        return ~part
    one_hot = part.dim() > 1 and ((part == 0) | (part == 1)).all()
    return part.roll(1, dims=-1) if one_hot else part + 1


@EVERY_CORE
def test_the_gradient_reaches_the_second_step(config: Any) -> None:
    """To all that is a number there; discrete observations and actions may be used as indices."""
    acted = "discrete" if config in DISCRETE_ONLY else "box"
    core, names = build(config, acted=acted), ["reward"] if config in DISCRETE_ONLY else FIELDS[:3]
    trials = random_trials(observed_by(config), acted, 20, 3, generator(5, "trials"), length=20)
    for read in (core, lambda trials: stepped(core, trials)):
        seen = {name: getattr(trials, name).clone().requires_grad_() for name in names}
        read(replace(trials, **seen)).features[-1].square().sum().backward()
        for part in seen.values():
            assert part.grad is not None and part.grad[1].reshape(3, -1).any(dim=1).all()


@EVERY_CORE
def test_weights_are_the_seeds_and_the_global_generator_stays_as_it_was(config: Any) -> None:
    acted = "discrete" if config in DISCRETE_ONLY else "box"
    spaces, before = (OBSERVATIONS[observed_by(config)], ACTIONS[acted]), torch.get_rng_state()
    config = RL2Config(core=config())
    states = [rl2_learner(*spaces, config, seed=seed).network.state_dict() for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@EVERY_CORE
def test_it_stands_under_its_name_with_its_own_defaults(config: Any) -> None:
    name = config().name
    assert RL2Config.model_validate({"core": {"name": name}}).core == config()
    assert RL2Config.model_validate(RL2Config(core=config()).model_dump()).core == config()


def test_positions_of_whole_trials_are_those_that_are_counted_step_by_step() -> None:
    trials = random_trials("box", "discrete", 15, 6, generator(6, "trials"), length=15)
    for t, seen in enumerate(single_steps(trials)):
        assert torch.equal(trials.previous_observation[t], seen.previous_observation)
        assert torch.equal(trials.episode_step[t], seen.episode_step)
        assert trials.trial_step[t].tolist() == [t] and seen.trial_step.shape == () and seen.trial_step == t
    assert trials.episode_step.dtype == trials.trial_step.dtype == torch.int64
    assert trials.episode_step.max() > 2
