"""Few-shot regression with episodes of one step: see an x, guess y, and then get the correct y."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Self

import gymnasium as gym
import numpy as np
import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.history import History
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
_WIDEST = 100.0
_Amplitude = Annotated[float, Field(ge=0, le=_WIDEST, allow_inf_nan=False)]
_Input = Annotated[float, Field(ge=-1e3, le=1e3, allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class Sinusoids:
    """Curves y = A sin(x − φ); the agent must learn the amplitude A and the phase φ from a few points.

    A ~ U[amplitude_low, amplitude_high] and φ ~ U[0, phase_high], independently.

    An episode is one point: the observation is x ~ U[x_low, x_high], the action is a guess of y, and the
    reward is −(action − y)². The step's ``target`` is y, so a trial of n episodes is regression from n
    points.

    Guesses are numbers in [−100, 100]: actions can be clipped to this Box, it always contains y, and it is
    so wide that it almost never makes an error look smaller. Guesses have the unit of y, so that errors can
    be compared with the source. The checkers of Gymnasium and Stable-Baselines3 recommend [−1, 1];
    ``gymnasium.wrappers.RescaleAction`` converts to that.

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.1, and the authors' code (for the sign of φ). Use
    other bounds to test an agent outside of the distribution that it was trained on.

    Raises:
        pydantic.ValidationError: for numbers out of range, if amplitude_low >= amplitude_high, or if
            x_low >= x_high.
    """

    amplitude_low: Annotated[_Amplitude, Field(description="smallest amplitude")] = 0.1
    amplitude_high: Annotated[_Amplitude, Field(description="largest amplitude")] = 5.0
    phase_high: Annotated[
        float, Field(ge=0, le=2 * math.pi, allow_inf_nan=False, description="largest phase, in radians")
    ] = math.pi
    x_low: Annotated[_Input, Field(description="smallest input x")] = -5.0
    x_high: Annotated[_Input, Field(description="largest input x")] = 5.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("amplitude", "x"):
            low, high = (getattr(self, f"{name}_{end}") for end in ("low", "high"))
            if low >= high:
                raise ValueError(f"{name}_low < {name}_high (here {low} and {high})")
        return self

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The input x."""
        return gym.spaces.Box(self.x_low, self.x_high, (1,), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The guess of y."""
        return gym.spaces.Box(-_WIDEST, _WIDEST, (1,), np.float32)

    @property
    def horizon(self) -> int:
        """The number of steps in an episode: one point."""
        return 1

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw amplitudes [N] and phases [N] (radians); continuous, so train and test share the law."""
        place = torch.rand(num_tasks, 2, generator=generator)  # [N, 2]
        amplitude = self.amplitude_low + (self.amplitude_high - self.amplitude_low) * place[:, 0]
        return TensorTasks({"amplitude": amplitude, "phase": self.phase_high * place[:, 1]})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` curves that step together on ``device``."""
        return TensorVectorEnv(self, _Points(self), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return 0, [num_tasks]: an agent that knows the curve makes no error."""
        return torch.zeros_like(_parameters(tasks)[0])

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the posterior over amplitude and phase has no closed form."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the hidden curve, the points that the agent was shown, its guesses, and the x of now."""
        _draw(self, figure, tasks, row, history)


class _Points:
    """The dynamics. The state is x, [B, 1]; every guess ends its episode."""

    def __init__(self, law: Sinusoids) -> None:
        self._law = law

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self._law.x_low, self._law.x_high
        place = torch.rand(len(episode), 1, generator=generator, device=episode.device)
        return (low + (high - low) * place).clamp(low, high)  # [B, 1]; rounding may exceed the bounds

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        amplitude, phase = _parameters(tasks)
        y = amplitude * torch.sin(state[:, 0] - phase)  # [B]
        loss = (action[:, 0].to(y.dtype).clamp(-_WIDEST, _WIDEST) - y).square()
        return Transition(
            state=state,
            reward=-loss,
            terminated=torch.ones_like(loss, dtype=torch.bool),
            truth={
                "expected_reward": -loss,
                "regret": loss,
                "target": y.unsqueeze(1),  # [B, 1]
            },
        )


def _parameters(tasks: Tasks) -> tuple[Tensor, Tensor]:
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks with 'amplitude', 'phase', got {type(tasks).__name__}")
    return tasks.parameters["amplitude"], tasks.parameters["phase"]


def _draw(law: Sinusoids, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
    from rl2meta.envs import pictures

    amplitude, phase = (float(pictures.parameter(tasks, name, row)) for name in ("amplitude", "phase"))
    x = np.linspace(law.x_low, law.x_high, 200)
    shown, guesses = history.observations.reshape(-1), history.actions.reshape(-1)  # [points]
    points, top = amplitude * np.sin(shown - phase), 1.25 * law.amplitude_high
    error = f" · mean squared error {np.square(guesses - points).mean():.2f}" if len(points) else ""
    count = f"{len(points)} point{'' if len(points) == 1 else 's'}{error}"
    pictures.heading(figure, "A sinusoid from a few points", count)
    panel = pictures.Panel(figure, (0.085, 0.115, 0.885, 0.62), (law.x_low, law.x_high), (-top, top))
    panel.line(x, amplitude * np.sin(x - phase), color=pictures.FAINT, lw=2)
    cut = guesses.clip(-top, top)
    ends = [np.stack([shown, heights], axis=1) for heights in (points, cut)]
    panel.lines(np.stack(ends, axis=1), color=pictures.NOW)  # [points, 2, 2]
    panel.line(shown, points, marker="o", ms=7, color=pictures.SEEN, mec="white")
    panel.line(shown, cut, marker="X", ms=7, color=pictures.NOW, mec="white", mew=0.5)
    if not history.current.ended:
        now = float(history.observation.item())
        panel.line([now, now], [-top, top], color=pictures.NOW, lw=1.2, ls=":")
        side = "left" if now < (law.x_low + law.x_high) / 2 else "right"
        panel.words(now, top, "what is y here?", ha=side, va="bottom", color=pictures.NOW)
    panel.ruled("y", pictures.whole_numbers(law.x_low, law.x_high), "x")
    entries = [
        ("curve (hidden)", {"color": pictures.FAINT, "lw": 2}),
        ("point, shown after the guess", {"marker": "o", "ms": 7, "color": pictures.SEEN}),
        ("guess, and its error", {"marker": "X", "ms": 7, "color": pictures.NOW}),
    ]
    pictures.key(figure, (pictures.LEFT, 0.82), entries, row=True)
