"""A point in the plane that has to find, and then reach, a goal that it does not see."""

import math
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.parts import in_parts
from rl2meta.tasks import Split, Tasks, TensorTasks

_STRICT = ConfigDict(extra="forbid", strict=True)
_Length = Annotated[float, Field(ge=1e-6, le=1e3, allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class PointNavigation:
    """Points that start in (0, 0) and pay their distance to a hidden goal g ~ U[−side/2, side/2]².

    The observation is the position p. An action in [−1, 1]² moves p by ``step_size`` times itself, without
    noise, and pays −‖p − g‖ after the move. The episode terminates when that is below ``goal_radius``, and
    is truncated after ``horizon`` steps.

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.3, whose numbers are the defaults. The authors'
    code ends an episode when both coordinates are within 0.01 of the goal's; here, as in the paper's words,
    it is the Euclidean distance.

    Raises:
        pydantic.ValidationError: for numbers out of range.
    """

    side: Annotated[_Length, Field(description="of the square around (0, 0) that goals are in")] = 1.0
    step_size: Annotated[_Length, Field(description="how far a step goes along each axis, at most")] = 0.1
    goal_radius: Annotated[
        float, Field(ge=0, le=1e3, allow_inf_nan=False, description="nearer to the goal than that, it ends")
    ] = 0.01
    horizon: Annotated[int, Field(ge=1, le=1000, description="steps in an episode, at most")] = 100

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The position: no further than ``horizon`` steps go, and one more for rounding."""
        reach = self.step_size * (self.horizon + 1)
        return gym.spaces.Box(-reach, reach, (2,), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The move, in units of ``step_size``."""
        return gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw goals [N, 2]; a continuum, so train and test need no partition."""
        return TensorTasks({"goal": self.side * (torch.rand(num_tasks, 2, generator=generator) - 0.5)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` points that step together on ``device``."""
        return TensorVectorEnv(self, _Walk(self), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return V*_H(g), [num_tasks]: the exact optimum of an episode; see ``best_return``."""
        parts = (_goals(tasks)[part] for part in in_parts(len(tasks), 8 * self.horizon))
        return torch.cat([best_return(self, part, torch.zeros_like(part[:, 0])) for part in parts])

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the posteriors over the goal are too many to enumerate."""
        return None


def best_return(law: PointNavigation, offset: Tensor, elapsed: Tensor) -> Tensor:
    """Return the best return of the rest of an episode, V*_h(d) = −Σ_{t=1}^{min(h, T)} n_t(d), [B].

    n_t(d) = ‖max(0, |d| − t·step_size)‖ by coordinate, and T is the first t with n_t < goal_radius. Going for
    the goal at full speed along both axes makes every later distance, and the time until the end, the least
    that there can be, all at once.

    Args:
        law: of the tasks.
        offset: d, from the position to the goal or back, [B, 2].
        elapsed: steps taken in the episode, float [B]; h = horizon − elapsed.
    """
    most = law.horizon
    if offset.device.type == "cpu" and len(offset):  # where it costs nothing to look how far the farthest is
        steps = float(offset.abs().max()) / law.step_size
        most = min(most, int(steps) + 2) if math.isfinite(steps) else most
    step = torch.arange(1, most + 1, dtype=offset.dtype, device=offset.device)
    along_x, along_y = (offset.abs().unsqueeze(2) - law.step_size * step).clamp(min=0).unbind(dim=1)
    distance = (along_x.square() + along_y.square()).sqrt()  # [B, horizon], falling
    before = F.pad(distance[:, :-1], (1, 0), value=math.inf)  # even on the goal there is one step
    paid = (before >= law.goal_radius) & (step <= law.horizon - elapsed.unsqueeze(1))
    return -(distance * paid).sum(dim=1)


class _Walk:
    """The dynamics. A state is (x, y, steps taken, V* of the rest of the episode)."""

    def __init__(self, law: PointNavigation) -> None:
        self._law = law

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        """Add the states in which episodes start, [B, 4]."""
        optimum = self._law.optimal_return(tasks).unsqueeze(1)
        return TensorTasks({**tasks.parameters, "start": F.pad(optimum, (3, 0))})

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return tasks.parameters["start"]

    def observe(self, state: Tensor) -> Tensor:
        return state[:, :2].clone()  # no view: what is done to an observation must not move the point

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        law = self._law
        position = state[:, :2] + law.step_size * action.to(state.dtype).clamp(-1, 1)
        offset, elapsed = position - tasks.parameters["goal"], state[:, 2] + 1
        distance = offset.square().sum(dim=1).sqrt()
        terminated = distance < law.goal_radius
        rest = best_return(law, offset, elapsed).masked_fill(terminated, 0.0)
        return Transition(
            state=torch.cat([position, torch.stack([elapsed, rest], dim=1)], dim=1),
            reward=-distance,
            terminated=terminated,
            truth={
                "expected_reward": -distance,
                "regret": (state[:, 3] - rest + distance).clamp(min=0),  # below 0 by rounding alone
            },
        )


def _goals(tasks: Tasks) -> Tensor:
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks with 'goal', got {type(tasks).__name__}")
    return tasks.parameters["goal"]
