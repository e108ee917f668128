"""Quadratic functions of ten numbers, which an agent minimises by examples: rows of a matrix, and targets."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.history import History
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
_WIDEST = 1e4


@dataclass(frozen=True, config=_STRICT)
class Quadratics:
    """Quadratics L(θ) = ‖Wθ − y‖² with p × p matrices W and vectors y of random numbers.

    The entries of W and y are independent: N(0, 1), or U[0, 1].

    An episode is one example: the observation is √p times a row wᵢ of W, the action is a guess of √p yᵢ, and
    the reward is minus the squared error. So the mean loss of p examples, guessed by a linear network
    with the weights θ, is L(θ). Episode e of a trial shows row e mod p: every p episodes show each row once.
    The step's ``target`` is √p yᵢ.

    Guesses are numbers in [−10⁴, 10⁴]: actions can be clipped to this Box, and it is so wide that it almost
    never makes an error look smaller.

    Source: Andrychowicz et al. 2016 (arXiv 1606.04474), section 3.1 (normal); their code has U[0, 1].

    Raises:
        pydantic.ValidationError: for numbers out of range.
    """

    steady: ClassVar[bool] = False  # each episode shows the next example

    dimension: Annotated[int, Field(ge=1, le=1000, description="p: entries of θ, and rows of W")] = 10
    law: Annotated[
        Literal["gaussian", "uniform"], Field(description="of the entries of W and y: N(0, 1) or U[0, 1]")
    ] = "gaussian"

    @property
    def observation_space(self) -> gym.Space[Any]:
        """√p times a row of W."""
        return gym.spaces.Box(-_WIDEST, _WIDEST, (self.dimension,), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The guess of √p times an entry of y."""
        return gym.spaces.Box(-_WIDEST, _WIDEST, (1,), np.float32)

    @property
    def horizon(self) -> int:
        """The number of steps in an episode: one example."""
        return 1

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw matrices [N, p, p] and vectors [N, p]; continuous, so train and test share the law."""
        draw = torch.randn if self.law == "gaussian" else torch.rand
        entries = draw(num_tasks, self.dimension, self.dimension + 1, generator=generator)
        return TensorTasks(
            {"matrix": entries[..., :-1].contiguous(), "vector": entries[..., -1].contiguous()}
        )

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` quadratics that step together on ``device``."""
        return TensorVectorEnv(self, _Rows(), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return 0, [num_tasks]: W is square and almost surely invertible, so some θ makes no error."""
        return torch.zeros(len(tasks))

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the posterior over W and y has no closed form here."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the loss of each batch of p guesses so far, and the hidden W and y."""
        from rl2meta.envs import loss_pictures, pictures

        losses, batch = -history.rewards.reshape(-1), self.dimension
        pictures.heading(figure, "A quadratic", loss_pictures.told(losses, batch, "loss"))
        loss_pictures.draw_losses(figure, (0.085, 0.13, 0.5, 0.62), losses, batch, "loss")
        matrix, vector = (pictures.parameter(tasks, name, row) for name in ("matrix", "vector"))
        loss_pictures.draw_grid(figure, (0.63, 0.13, 0.28, 0.62), matrix, 2.0, "W (hidden)")
        loss_pictures.draw_grid(figure, (0.94, 0.13, 0.028, 0.62), vector[:, None], 2.0, "y")


class _Rows:
    """The dynamics. The state is the number of the row, [B]; every guess ends its episode."""

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        rows = torch.arange(len(episode), device=episode.device)
        matrix, vector = tasks.parameters["matrix"], tasks.parameters["vector"]
        place = episode % vector.shape[1]
        examples = torch.cat([matrix[rows, place], vector[rows, place].unsqueeze(1)], dim=1)  # [B, p + 1]
        return math.sqrt(vector.shape[1]) * examples

    def observe(self, state: Tensor) -> Tensor:
        return state[:, :-1]

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        target = state[:, -1:]  # [B, 1]
        loss = (action.to(target.dtype).clamp(-_WIDEST, _WIDEST) - target).square().squeeze(1)  # [B]
        return Transition(
            state=state,
            reward=-loss,
            terminated=torch.ones_like(loss, dtype=torch.bool),
            truth={"expected_reward": -loss, "regret": loss, "target": target},
        )
