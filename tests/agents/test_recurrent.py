"""The LSTM and the GRU against NumPy, gate by gate, and what they start from."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl2meta.agents.cores.core import Seen
from rl2meta.agents.cores.recurrent import GRUConfig, GRUCore, LSTMConfig, LSTMCore, lstm_cell
from rl2meta.agents.rl2 import CORES
from rl2meta.learner_state import seeded
from rl2meta.randomness import generator

SPACES = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.Discrete(3)
FIELDS = ("observation", "action", "reward", "first")


def build(config: Any, **settings: Any) -> Any:
    """Return a core in float64."""
    return seeded(lambda: CORES[config](*SPACES, config(**settings)), 0).double()  # type: ignore[attr-defined]


def random_trials(steps: int, rows: int) -> Seen:
    """Whole trials in float64 whose episodes begin at random places."""
    source = generator(8, "trials")
    x = torch.randn(steps, rows, 8, generator=source, dtype=torch.float64)
    return Seen(x[..., :3], x[..., 3:6], x[..., 6], x[..., 7] > 0.5)


def single_steps(trials: Seen) -> list[Seen]:
    """Return the same step by step; nothing in them asks where a step stands."""
    parts = (getattr(trials, name) for name in FIELDS)
    return [Seen(*step) for step in zip(*parts, strict=True)]


def stepped(core: Any, trials: Seen) -> Tensor:
    """Return the features step by step, [T, B, features]."""
    state, features = core.begin(trials.first.shape[1], None), []
    for seen in single_steps(trials):
        output, state = core.step(seen, state)
        features.append(output.features)
    return torch.stack(features)


def inputs_of(trials: Seen) -> np.ndarray:
    """What the recurrent layers get where there is no embedding, by hand: [o_t, a_{t-1}, r_{t-1}, first]."""
    flags = [trials.reward[..., None], trials.first[..., None].double()]
    return torch.cat([trials.observation, trials.action, *flags], dim=-1).numpy()


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def numpy_lstm(weights: Callable[[str], np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray) -> Any:
    """One step of Hochreiter and Schmidhuber's LSTM, gate by gate (PyTorch's order: i, f, g, o)."""
    gates = x @ weights("weight_ih").T + weights("bias_ih") + h @ weights("weight_hh").T + weights("bias_hh")
    i, f, g, o = np.split(gates, 4, axis=1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def numpy_gru(weights: Callable[[str], np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray) -> Any:
    """One step of Cho et al.'s GRU, gate by gate (PyTorch's order: r, z, n; the reset gates the product)."""
    seen = np.split(x @ weights("weight_ih").T + weights("bias_ih"), 3, axis=1)
    kept = np.split(h @ weights("weight_hh").T + weights("bias_hh"), 3, axis=1)
    r, z = (_sigmoid(seen[gate] + kept[gate]) for gate in (0, 1))
    n = np.tanh(seen[2] + r * kept[2])
    return (1 - z) * n + z * h, c


RECURRENT = pytest.mark.parametrize(
    ("config", "layers_of", "numpy_step"),
    [
        (LSTMConfig, lambda core: core.lstm, numpy_lstm),
        (GRUConfig, lambda core: core.gru, numpy_gru),
    ],
    ids=["lstm", "gru"],
)


@RECURRENT
@pytest.mark.parametrize("num_layers", [1, 2])
def test_features_are_those_of_numpy_gate_by_gate(
    config: Any, layers_of: Any, numpy_step: Any, num_layers: int
) -> None:
    core = build(config, hidden_size=8, num_layers=num_layers)
    layers = layers_of(core)
    for weight in layers.parameters():  # biases too, which are 0 at first
        nn.init.normal_(weight, std=0.5, generator=generator(7, "weights"))
    trials = random_trials(11, 5)
    xs = inputs_of(trials)
    for layer in range(num_layers):
        weights = lambda name, layer=layer: getattr(layers, f"{name}_l{layer}").detach().numpy()  # noqa: E731
        h = c = np.zeros((5, 8))
        outputs = []
        for x in xs:
            h, c = numpy_step(weights, x, h, c)
            outputs.append(h)
        xs = np.stack(outputs)
    np.testing.assert_allclose(core(trials).features.detach().numpy(), xs, atol=1e-12)
    np.testing.assert_allclose(stepped(core, trials).detach().numpy(), xs, atol=1e-12)


@RECURRENT
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("learning", [True, False])
def test_many_rows_step_through_the_fused_layer_and_few_cell_by_cell_to_the_same(
    config: Any, layers_of: Any, numpy_step: Any, num_layers: int, learning: bool
) -> None:
    core, calls = build(config, hidden_size=8, num_layers=num_layers), []
    trials = random_trials(9, 64)
    layers_of(core).register_forward_hook(lambda *call: calls.append(call))
    with torch.set_grad_enabled(learning):
        together, parts = core.begin(64, None), [core.begin(1, None), core.begin(63, None)]
        for seen in single_steps(trials):
            features, together = core.step(seen, together)
            assert len(calls) == (learning or config is GRUConfig)  # the LSTM has a cell of its own
            apart = [
                core.step(Seen(*(getattr(seen, name)[rows] for name in FIELDS)), part)
                for rows, part in zip((slice(0, 1), slice(1, 64)), parts, strict=True)
            ]
            assert len(calls) == (learning or config is GRUConfig)
            calls.clear()
            parts = [state for _, state in apart]
            _close(features.features, torch.cat([output.features for output, _ in apart]))
            for one, *others in zip(*(_tensors(state) for state in (together, *parts)), strict=True):
                _close(one, torch.cat(others, dim=1))


def _tensors(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


def _close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@RECURRENT
def test_a_trial_starts_from_zeros(config: Any, layers_of: Any, numpy_step: Any) -> None:
    state = build(config, hidden_size=8, num_layers=2).begin(4, None)
    assert all(part.shape == (2, 4, 8) and not part.any() for part in _tensors(state))


def test_the_forget_gate_starts_open_and_all_other_biases_at_zero() -> None:
    lstm = build(LSTMConfig, hidden_size=4, num_layers=2)
    assert isinstance(lstm, LSTMCore)
    for layer in range(2):
        bias = getattr(lstm.lstm, f"bias_ih_l{layer}")
        assert bias[4:8].tolist() == [1.0] * 4 and bias.sum() == 4
        assert not getattr(lstm.lstm, f"bias_hh_l{layer}").any()
    gru = build(GRUConfig, hidden_size=4, num_layers=2)
    assert isinstance(gru, GRUCore)
    biases = [weight for name, weight in gru.gru.named_parameters() if name.startswith("bias")]
    assert len(biases) == 4 and not any(bias.any() for bias in biases)


@RECURRENT
def test_the_input_is_observation_the_one_before_action_reward_and_first(
    config: Any, layers_of: Any, numpy_step: Any
) -> None:
    trials = random_trials(9, 4)
    x = build(config).input(trials)  # [T, B, 3 + 3 + 2]
    assert x.shape == (9, 4, 8) and np.array_equal(x.numpy(), inputs_of(trials))
    recalled = build(config, previous_observation=True).input(trials)  # [T, B, 3 + 3 + 3 + 2]
    assert (
        recalled.shape == (9, 4, 11) and layers_of(build(config, previous_observation=True)).input_size == 11
    )
    assert torch.equal(recalled[1:, :, 3:6], trials.observation[:-1])  # across the ends of episodes
    assert not recalled[0, :, 3:6].any()
    assert torch.equal(torch.cat([recalled[..., :3], recalled[..., 6:]], dim=-1), x)


def test_the_cell_for_many_rows_is_that_of_torch() -> None:
    layers = seeded(lambda: torch.nn.LSTM(5, 7), 0).double()
    source = generator(1, "rows")
    x, h, c = (3 * torch.randn(9, size, generator=source, dtype=torch.float64) for size in (5, 7, 7))
    weights = [weight.detach() for weight in layers.parameters()]
    for ours, wanted in zip(
        lstm_cell(x, (h, c), *weights), torch.lstm_cell(x, (h, c), *weights), strict=True
    ):
        torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-12)
