"""Sub-policies that all tasks share: K networks of the same shape, computed side by side."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl2meta.errors import UserError
from rl2meta.images import is_image
from rl2meta.learner_state import under
from rl2meta.networks import ActionDistribution, Tanh, action_head, legal_only, mlp, stacked
from rl2meta.spaces import input_encoding, num_looked_up


class SubPolicy(nn.Module):
    """One sub-policy: separate layers for the policy and for the value, as in the authors' code."""

    def __init__(
        self, in_features: int, action_space: gym.Space[Any], sizes: Sequence[int], deviation: float
    ) -> None:
        super().__init__()
        features = sizes[-1] if sizes else in_features
        self.body = mlp(in_features, sizes, Tanh)
        self.head = action_head(action_space, features, deviation)
        self.value = nn.Sequential(mlp(in_features, sizes, Tanh), nn.Linear(features, 1))


class SubPolicies(nn.Module):
    """K sub-policies with weights of their own, stacked: [K, ...] each.

    Args:
        observation_space, action_space: of one environment.
        num: K.
        hidden_sizes: units in each hidden layer.
        deviation: initial standard deviation of continuous actions.

    Raises:
        UserError: for images, and for discrete observations of too many values.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        num: int,
        hidden_sizes: Sequence[int],
        deviation: float = 1.0,
    ) -> None:
        super().__init__()
        _refuse_others(observation_space)
        encoding = input_encoding(observation_space)
        self.encode, self.in_features = encoding.encode, encoding.size
        shape = self.in_features, action_space, hidden_sizes, deviation
        made = [SubPolicy(*shape) for _ in range(num)]
        together = zip(*(each.named_parameters() for each in made), strict=True)
        self.stacked_weights = nn.ParameterDict(
            {same[0][0].replace(".", "/"): torch.stack([weight for _, weight in same]) for same in together}
        )
        self._layers = (made[0],)  # a tuple hides it from torch: only its shapes are used

    def forward(self, observation: Tensor, legal: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the parameters of all policies, [K, rows, P], and their values, [K, rows].

        Args:
            observation: encoded, [rows, size].
            legal: of the rows, [rows, A]; see ``legal_only``.
        """
        weights = {name.replace("/", "."): weight for name, weight in self.stacked_weights.items()}
        (layers,), every = self._layers, self.num
        x = observation.expand(every, *observation.shape)  # [rows, size] -> [K, rows, size]
        features = stacked(layers.body, under("body.", weights), x)
        parameters = layers.head.stacked(under("head.", weights), features)
        value = stacked(layers.value, under("value.", weights), x).squeeze(-1)
        return legal_only(parameters, legal), value

    def chosen(
        self, sub_policy: Tensor, observation: Tensor, legal: Tensor | None = None
    ) -> tuple[ActionDistribution, Tensor]:
        """Return π(· | observation) and value of the sub-policy of each row, from int64 [rows]."""
        parameters, value = self(observation, legal)
        row = torch.arange(len(sub_policy), device=sub_policy.device)
        return self._layers[0].head.distribution(parameters[sub_policy, row]), value[sub_policy, row]

    @property
    def num(self) -> int:
        """K."""
        return len(next(iter(self.stacked_weights.values())))


def _refuse_others(space: gym.Space[Any]) -> None:
    """Refuse observations whose encoding says nothing to a few layers: pixels, and a value's mere number.

    Other agents look such a number up in a table; each master would need a table of its own.
    """
    if is_image(space) or num_looked_up(space):
        raise UserError(
            "expected vectors or discrete observations of at most 1,024 values, as sub-policies and masters "
            f"take them, got {space}; agent rl2 takes it, or give the agent a vector that says what it means"
        )
