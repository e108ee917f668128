import gymnasium as gym
import numpy as np
import pytest
import torch

from rl2meta.networks import Categorical, Gaussian, RecurrentCore, action_head, mlp
from rl2meta.randomness import generator


def _numpy_lstm(core: RecurrentCore, xs: np.ndarray) -> np.ndarray:
    """The LSTM of Hochreiter and Schmidhuber, gate by gate (PyTorch's order: i, f, g, o)."""
    params = {name: p.detach().numpy().astype(np.float64) for name, p in core.lstm.named_parameters()}
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    for layer in range(core.lstm.num_layers):
        w, u, b, d = (params[f"{n}_l{layer}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = c = np.zeros((xs.shape[1], core.lstm.hidden_size))
        outs = []
        for x in xs:
            i, f, g, o = np.split(x @ w.T + b + h @ u.T + d, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outs.append(h)
        xs = np.stack(outs)
    return xs


@pytest.mark.parametrize("layers", [1, 2])
def test_one_step_at_a_time_equals_all_at_once_equals_numpy(layers: int) -> None:
    core = RecurrentCore(3, 8, layers)
    x = torch.randn(11, 5, 3)
    state, stepped = core.begin(5), []
    for row in x:
        features, state = core.step(row, state)
        stepped.append(features)
    torch.testing.assert_close(torch.stack(stepped), core(x), atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(core(x).detach().numpy(), _numpy_lstm(core, x.double().numpy()), atol=1e-6)


def test_the_forget_gate_starts_open() -> None:
    core = RecurrentCore(2, 4, 1)
    assert core.lstm.bias_ih_l0[4:8].tolist() == [1.0] * 4
    assert core.lstm.bias_ih_l0.sum() == 4 and core.lstm.bias_hh_l0.abs().sum() == 0


def test_categorical_agrees_with_torch_distributions() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    action = theirs.sample()
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.probs.argmax(dim=1))


def test_samples_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = Categorical(probs.log().expand(100_000, 4)).sample(generator(0, "draws"))
    frequency = draws.bincount(minlength=4) / len(draws)
    error = (probs * (1 - probs) / len(draws)).sqrt()
    assert ((frequency - probs).abs() < 4 * error).all()


def test_samples_come_from_the_given_generator_alone() -> None:
    policy = Categorical(torch.zeros(100, 5))
    before = torch.get_rng_state()
    assert torch.equal(policy.sample(generator(1, "a")), policy.sample(generator(1, "a")))
    assert not torch.equal(policy.sample(generator(1, "a")), policy.sample(generator(2, "a")))
    assert torch.equal(before, torch.get_rng_state())


def test_an_action_space_without_a_head_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"Discrete action space that starts at 0 or a Box .*, got MultiBinary"
    ):
        action_head(gym.spaces.MultiBinary(2), 3)


def _heads() -> dict[str, tuple[object, torch.Tensor]]:
    features = torch.randn(7, 3, 6, dtype=torch.float64)
    gaussian = action_head(gym.spaces.Box(-1, 1, (2,)), 6).double()
    torch.nn.init.normal_(gaussian.log_deviation, std=0.5)
    return {
        "categorical": (action_head(gym.spaces.Discrete(4), 6).double(), features),
        "gaussian": (gaussian, features),
    }


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_policy_is_what_torch_says_of_its_law(kind: str) -> None:
    """Densities, entropies and divergences against torch.distributions, which shares no line with ours."""
    head, features = _heads()[kind]
    ours, others = head(features), head(features.flip(0))
    if kind == "categorical":
        law, other = (torch.distributions.Categorical(logits=each.log_probs) for each in (ours, others))
        action = torch.randint(0, 4, (7, 3))
        assert torch.equal(ours.mode(), law.probs.argmax(dim=-1))
    else:
        law, other = (
            torch.distributions.Independent(
                torch.distributions.Normal(each.mean, each.log_deviation.exp()), 1
            )
            for each in (ours, others)
        )
        action = torch.randn(7, 3, 2, dtype=torch.float64)
        assert torch.equal(ours.mode(), law.mean)
    torch.testing.assert_close(ours.log_prob(action), law.log_prob(action))
    torch.testing.assert_close(ours.entropy(), law.entropy())
    torch.testing.assert_close(ours.kl(others), torch.distributions.kl_divergence(law, other))
    assert ours.kl(ours).abs().max() < 1e-12
    again = head.distribution(head.parameters_of(features))
    assert torch.equal(again.log_prob(action), ours.log_prob(action))


def test_a_density_is_the_product_over_the_entries_of_an_action() -> None:
    """Their log-probabilities add up; a mean would shrink every ratio with the size of the action."""
    one = Gaussian(torch.zeros(1, 2)).log_prob(torch.ones(1, 1))
    three = Gaussian(torch.zeros(1, 6)).log_prob(torch.ones(1, 3))
    torch.testing.assert_close(three, 3 * one)


def test_gaussian_draws_follow_its_law_and_its_generator() -> None:
    parameters = torch.tensor([1.0, -2.0, 0.0, -1.0]).expand(100_000, 4)
    drawn = Gaussian(parameters).sample(generator(3, "x"))
    assert torch.equal(drawn, Gaussian(parameters).sample(generator(3, "x")))
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), torch.tensor([1.0, 0.3679]), atol=0.01, rtol=0)


def test_a_zero_observation_leaves_no_layer_dead() -> None:
    network = torch.nn.Sequential(mlp(3, [16, 16], torch.nn.ReLU), torch.nn.Linear(16, 2))
    network(torch.zeros(1, 3)).square().sum().backward()
    gradients = {name: p.grad.abs().max() for name, p in network.named_parameters()}
    assert {name for name, size in gradients.items() if size == 0} == {"0.0.weight"}


def test_continuous_policies_start_with_the_deviation_that_is_asked_for() -> None:
    from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
    from rl2meta.agents.rl2 import RL2Config, RL2Learner

    spaces = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))
    rl2 = RL2Learner(*spaces, RL2Config(hidden_size=4, initial_deviation=0.25))
    maml = MAMLTRPOLearner(*spaces, MAMLTRPOConfig(hidden_sizes=[4], initial_deviation=0.25))
    for head in (rl2.network.policy, maml.inner.network.head):
        policy = head(torch.randn(20_000, 4))
        noise = policy.sample(torch.Generator().manual_seed(0)) - policy.mode()
        torch.testing.assert_close(noise.std(dim=0), torch.full((2,), 0.25), atol=0.01, rtol=0)
