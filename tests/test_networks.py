from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from rl2meta.agents.maml_regression import RegressionNetwork
from rl2meta.agents.policy_gradient import PolicyNetwork
from rl2meta.learner_state import under
from rl2meta.networks import Categorical, Gaussian, Lookup, Tanh, action_head, mlp, stacked
from rl2meta.randomness import generator


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


UNEVEN = {
    "a die": [0.0] * 6,
    "nearly certain": [8.0, 0.0, 0.0],
    "nearly certain of the last": [0.0, 0.0, 8.0],
    "all but impossible": [-30.0, 1.0, -80.0, 0.0, -200.0],
    "impossible": [-torch.inf, 1.0, -torch.inf, -torch.inf, 0.0, -1.0],
    "of all sizes": [float(-k) for k in range(12)],
    "many": [float(k % 7) for k in range(200)],
}


@pytest.mark.parametrize("logits", UNEVEN.values(), ids=UNEVEN)
def test_samples_follow_probabilities_however_uneven(logits: list[float]) -> None:
    n, probs = 100_000, torch.tensor(logits, dtype=torch.float64).softmax(dim=0)
    draws = Categorical(torch.tensor(logits).expand(n, -1)).sample(generator(4, "draws"))
    counts = draws.bincount(minlength=len(probs)).double()
    assert len(counts) == len(probs)
    assert ((counts / n - probs).abs() <= 5 * (probs * (1 - probs) / n).sqrt()).all()
    often = probs * n > 5
    square = ((counts - n * probs).square() / (n * probs))[often].sum()
    freedom = int(often.sum()) - 1
    assert square <= freedom + 5 * (2 * freedom) ** 0.5
    assert not counts[probs == 0].any()


def test_the_action_is_the_first_whose_cumulative_probability_is_above_the_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So at the edges of the intervals no impossible action is drawn, unless it were the last."""
    policy = Categorical(torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf, 1.0]))
    edge = float(policy.log_probs[1].exp())
    wanted = {0.0: 1, edge / 2: 1, edge: 4, 1 - 2.0**-24: 4}
    places = iter(wanted)
    monkeypatch.setattr(torch, "rand", lambda *shape, **kind: torch.full(shape, next(places)))
    assert [int(policy.sample(torch.Generator())) for _ in wanted] == list(wanted.values())


def test_every_row_of_a_batch_draws_from_its_own_law() -> None:
    certain = torch.randint(4, (3, 5, 7), generator=generator(0, "which"))
    logits = 100.0 * torch.nn.functional.one_hot(certain, 4)
    drawn = Categorical(logits).sample(generator(1, "draws"))
    assert drawn.dtype == torch.int64 and torch.equal(drawn, certain)
    even = Categorical(torch.zeros(1000, 2, 3)).sample(generator(1, "draws"))
    assert even.shape == (1000, 2)
    agreement = (even[:, 0] == even[:, 1]).float().mean()  # neighbours do not share their luck
    assert abs(float(agreement) - 1 / 3) < 5 * (2 / 9 / 1000) ** 0.5
    one = Categorical(torch.zeros(3)).sample(generator(2, "draws"))
    assert one.shape == () and 0 <= one < 3


def test_samples_come_from_the_given_generator_alone() -> None:
    policy = Categorical(torch.zeros(100, 5))
    before = torch.get_rng_state()
    assert torch.equal(policy.sample(generator(1, "a")), policy.sample(generator(1, "a")))
    assert not torch.equal(policy.sample(generator(1, "a")), policy.sample(generator(2, "a")))
    assert torch.equal(before, torch.get_rng_state())


def test_an_action_space_without_a_head_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"Discrete, or a Box or MultiDiscrete of one axis, counted from 0, got MultiB"
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
    from rl2meta.agents.cores.recurrent import LSTMConfig
    from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
    from rl2meta.agents.rl2 import RL2Config, rl2_learner

    spaces = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))
    rl2 = rl2_learner(*spaces, RL2Config(core=LSTMConfig(hidden_size=4), initial_deviation=0.25))
    maml = MAMLTRPOLearner(*spaces, MAMLTRPOConfig(hidden_sizes=[4], initial_deviation=0.25))
    for head in (rl2.network.policy, maml.inner.network.head):
        policy = head(torch.randn(20_000, 4))
        noise = policy.sample(torch.Generator().manual_seed(0)) - policy.mode()
        torch.testing.assert_close(noise.std(dim=0), torch.full((2,), 0.25), atol=0.01, rtol=0)


class _Outputs(nn.Module):
    """What a network puts out, as a module's forward, also where that would be a distribution."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = getattr(self.module, "parameters_of", self.module)(x)
        return outputs


DISCRETE, BOX = gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))
STACKED: dict[str, Callable[[], nn.Module]] = {
    "one layer": lambda: nn.Linear(5, 3),
    "tanh layers": lambda: mlp(5, [7, 6], nn.Tanh),
    "our tanh": lambda: mlp(5, [7, 6], Tanh),
    "relu layers": lambda: mlp(5, [7, 6], nn.ReLU),
    "nested": lambda: nn.Sequential(mlp(5, [7], nn.ReLU), nn.Sequential(nn.Linear(7, 2), nn.Tanh())),
    "categorical": lambda: action_head(DISCRETE, 5),
    "gaussian": lambda: action_head(BOX, 5),
    "discrete policy": lambda: PolicyNetwork(5, DISCRETE, [7, 6]),
    "continuous policy": lambda: PolicyNetwork(5, BOX, [7]),
    "linear policy": lambda: PolicyNetwork(5, BOX, []),
    "regression": lambda: RegressionNetwork(5, 2, [7, 6]),
    "linear regression": lambda: RegressionNetwork(5, 2, []),
    "many choices": lambda: action_head(gym.spaces.MultiDiscrete([2, 3]), 5),
    "no bias": lambda: nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh()),
    "layer norm": lambda: nn.LayerNorm(5),
    "layer norm without bias": lambda: nn.LayerNorm(5, bias=False),
    "layer norm without weights": lambda: nn.Sequential(
        nn.Linear(5, 4), nn.LayerNorm(4, elementwise_affine=False)
    ),
    "normed layers": lambda: nn.Sequential(
        nn.Linear(5, 7), nn.LayerNorm(7, eps=0.1), nn.ReLU(), nn.Linear(7, 2)
    ),
    "one activation twice": lambda: _one_activation_twice(nn.Tanh()),
    "one layer twice": lambda: _one_activation_twice(nn.Linear(5, 5)),
    "over the rows of a task": lambda: nn.Sequential(nn.Linear(5, 3, bias=False), nn.Softmax(dim=0)),
    "over the entries of a row": lambda: nn.Sequential(nn.Linear(5, 3), nn.Softmax(dim=1)),
    "batch norm without weights": lambda: nn.Sequential(
        nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    ),
    "dropout that rests": lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout().eval()),
}


def _one_activation_twice(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 5), activation, nn.Linear(5, 5), activation)


PICTURES: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "convolution without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "strides": lambda: nn.Conv2d(4, 2, (3, 2), stride=(2, 1)),
    "padding": lambda: nn.Conv2d(4, 2, 3, padding=(1, 2)),
    "same": lambda: nn.Conv2d(4, 2, (3, 5), padding="same"),
    "dilation": lambda: nn.Conv2d(4, 2, 2, dilation=(2, 3)),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2),
    "layer norm of pictures": lambda: nn.LayerNorm((4, 7, 6)),
    "layer norm of lines": lambda: nn.Sequential(nn.Conv2d(4, 2, 2, bias=False), nn.LayerNorm(5)),
    "linear on lines": lambda: nn.Linear(6, 3),
    "pools": lambda: nn.Sequential(nn.Conv2d(4, 4, 2), nn.MaxPool2d(2), nn.AvgPool2d(2)),
    "norm of each picture": lambda: nn.Sequential(nn.Conv2d(4, 2, 2, bias=False), nn.InstanceNorm2d(2)),
    "encoder": lambda: nn.Sequential(
        nn.Conv2d(4, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LayerNorm(18), nn.Linear(18, 2)
    ),
    "encoder with pools": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 3, 2), Tanh(), nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(18, 2)
    ),
}


@pytest.mark.parametrize("make", STACKED.values(), ids=STACKED)
def test_stacked_weights_give_what_each_tasks_own_network_gives(make: Callable[[], nn.Module]) -> None:
    """Outputs, gradients and second derivatives are those of vmap over functional calls."""
    _agrees_with_vmap(make().double(), (5,))


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("rows", [1, 6])
def test_stacked_weights_read_pictures_as_each_tasks_own_network_does(
    make: Callable[[], nn.Module], rows: int
) -> None:
    _agrees_with_vmap(make().double(), (4, 7, 6), rows)


def _agrees_with_vmap(module: nn.Module, shape: tuple[int, ...], rows: int = 6) -> None:
    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()

    weights = {name: drawn(4, *weight.shape) for name, weight in module.named_parameters()}
    x, along = drawn(4, rows, *shape), [drawn(*weight.shape).detach() for weight in weights.values()]

    def ours() -> Tensor:
        own: Callable[..., Tensor] | None = getattr(module, "stacked", None)
        return own(weights, x) if own else stacked(module, weights, x)

    def theirs() -> Tensor:
        alone = _Outputs(module)
        named = {f"module.{name}": weight for name, weight in weights.items()}
        return vmap(lambda weights, x: functional_call(alone, weights, (x,)))(named, x)

    leaves = [*weights.values(), x]
    for one, other in zip(
        *(_derivatives(outputs(), leaves, along) for outputs in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
        assert other.abs().max() > 1e-3  # there is something to compare


def test_each_task_looks_numbers_up_in_its_own_table() -> None:
    layers = nn.Sequential(Lookup(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    source = torch.Generator().manual_seed(0)
    number = torch.randint(5, (4, 6, 1), generator=source).double()
    assert (number == 0).any()  # no number
    weights = {
        name: torch.randn(4, *value.shape, generator=source, dtype=torch.float64).requires_grad_()
        for name, value in layers.named_parameters()
    }
    ours = stacked(layers, weights, number)
    theirs = torch.stack(
        [functional_call(layers, {k: v[i] for k, v in weights.items()}, (number[i],)) for i in range(4)]
    )
    torch.testing.assert_close(ours, theirs)
    tables = [torch.autograd.grad(y.square().sum(), weights["0.weight"])[0] for y in (ours, theirs)]
    torch.testing.assert_close(*tables)
    assert not tables[0][:, 0].any() and tables[0][:, 1:].any()


class _Scaled(nn.Module):
    """A layer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class _Doubled(nn.Linear):
    """A known layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Halved(nn.Module):
    """No layer that anybody knows, but without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize(
    ("unknown", "named"),
    [
        (nn.LSTM(5, 3), "LSTM with weight_ih_l0"),
        (nn.BatchNorm1d(5), "BatchNorm1d with weight, bias, running_mean"),
        (nn.BatchNorm1d(5, affine=False), "BatchNorm1d with running_mean"),
        (nn.Bilinear(5, 5, 2), "Bilinear with weight, bias"),
        (nn.PReLU(), "PReLU with weight"),
        (_Scaled(), "_Scaled with scale"),
        (_Doubled(5, 5), "_Doubled with weight, bias"),
        (nn.Sequential(nn.ReLU(), nn.ModuleList([_Scaled()])), "ModuleList with 0.scale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_module_whose_weights_all_tasks_would_share_is_refused(unknown: nn.Module, named: str) -> None:
    network = nn.Sequential(nn.Linear(5, 5), unknown)
    weights = {name: weight.expand(4, *weight.shape) for name, weight in network.named_parameters()}
    with pytest.raises(TypeError, match=rf"got {named}.*, which all tasks would share; build the network of"):
        stacked(network, weights, torch.randn(4, 6, 5))


def test_a_convolution_that_is_padded_otherwise_is_refused() -> None:
    layer = nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")
    weights = {name: weight.expand(3, *weight.shape) for name, weight in layer.named_parameters()}
    with pytest.raises(
        TypeError, match="expected a Conv2d with padding_mode='zeros', got 'circular'; pad in"
    ):
        stacked(layer, weights, torch.randn(3, 2, 4, 5, 5))


def test_a_module_without_weights_passes_whoever_wrote_it() -> None:
    x = torch.randn(4, 6, 5)
    assert torch.equal(stacked(_Halved(), {}, x), x / 2)
    assert torch.equal(stacked(nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Flatten()), {}, x), x)


def test_linear_layers_and_tanh_are_to_the_bit_what_they_were() -> None:
    network = mlp(5, [7, 6], Tanh)
    weights = {name: torch.randn(4, *weight.shape) for name, weight in network.named_parameters()}
    x = y = torch.randn(4, 6, 5)
    for layer in (0, 2):
        y = torch.baddbmm(weights[f"{layer}.bias"].unsqueeze(1), y, weights[f"{layer}.weight"].mT)
        y = 2 * torch.sigmoid(y + y) - 1
    assert torch.equal(stacked(network, weights, x), y)


@pytest.mark.parametrize("space", [DISCRETE, BOX])
def test_a_policy_with_fewer_passes_for_its_tanhs_is_the_plain_one_to_the_bit(space: gym.Space[Any]) -> None:
    """Layer after layer, outputs, gradients and second derivatives are the same, in more passes."""
    torch.manual_seed(0)
    network, rows = PolicyNetwork(5, space, [7, 6]), 40
    weights = {name: torch.randn(4, *value.shape) for name, value in network.named_parameters()}
    x, along = torch.randn(4, rows, 5), [torch.randn(*value.shape) for value in weights.values()]

    def plainly(own: dict[str, Tensor]) -> Tensor:
        return network.head.stacked(under("head.", own), stacked(network.trunk, under("trunk.", own), x))

    def ours(own: dict[str, Tensor]) -> Tensor:
        return network.stacked(own, x)

    def derived(run: Callable[[dict[str, Tensor]], Tensor]) -> list[Tensor]:
        own = {name: value.clone().requires_grad_() for name, value in weights.items()}
        return _derivatives(run(own), list(own.values()), along)

    for one, other in zip(derived(ours), derived(plainly), strict=True):
        assert torch.equal(one, other)
    passes = [_passes(lambda run=run: run(weights), 4 * rows * 6) for run in (ours, plainly)]
    assert passes == [2 + 2 * 2, 2 + 2 * 4]  # large products; σ and −½, or four for each tanh
    with torch.no_grad():
        assert torch.equal(ours(weights), plainly(weights))


def _passes(run: Callable[[], Tensor], numbers: int) -> int:
    """Return how many operations gave at least so many numbers."""
    count = 0

    class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal count
            out = func(*args, **(kwargs or {}))
            count += isinstance(out, Tensor) and out.numel() >= numbers and not func.is_view
            return out

    with Seen():
        run()
    return count


def _derivatives(outputs: Tensor, leaves: list[Tensor], along: list[Tensor]) -> list[Tensor]:
    """Return outputs, the gradient of a function of them, and its second derivatives along a direction."""
    first = torch.autograd.grad(outputs.sin().sum(), leaves, create_graph=True)
    slope = sum((gradient * v).sum() for gradient, v in zip(first, along, strict=False))
    return [outputs, *first, *torch.autograd.grad(slope, leaves)]


def test_our_tanh_is_torchs() -> None:
    small = torch.logspace(-12, 2, 5000, dtype=torch.float64)
    x = torch.cat([-small, torch.zeros(1), small, torch.tensor([1e4, -1e4, 3e38, -3e38])]).float()
    x = torch.cat([x, torch.linspace(-12, 12, 50_001)]).requires_grad_()
    exactly = x.detach().double().requires_grad_()
    ours, theirs = (_and_derivatives(tanh(at), at) for tanh, at in ((Tanh(), x), (torch.tanh, exactly)))
    for one, other, apart in zip(ours, theirs, (3e-7, 1e-6, 1e-6), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, atol=apart, rtol=0)
    values = ours[0].detach()
    torch.testing.assert_close(values, torch.tanh(x.detach()), atol=3e-7, rtol=0)
    assert values.abs().max() == 1  # and never beyond
    precise = _and_derivatives(Tanh()(exactly), exactly)
    assert all(torch.equal(one, other) for one, other in zip(precise, theirs, strict=True))


def _and_derivatives(values: Tensor, x: Tensor) -> list[Tensor]:
    (first,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    return [values, first, torch.autograd.grad(first.sum(), x)[0]]


def test_an_impossible_last_action_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = torch.linspace(0.1, 3, 400).unsqueeze(1)  # so that sums are rounded this way and that
    logits = torch.tensor([0.3, -1.2, 2.1, 0.7, -0.4]).unsqueeze(0) * scales
    policy = Categorical(torch.cat([logits, torch.full((400, 1), -torch.inf)], dim=1))
    monkeypatch.setattr(torch, "rand", lambda *shape, **kind: torch.full(shape, 1 - 2.0**-24))
    assert int(policy.sample(torch.Generator()).max()) == 4
