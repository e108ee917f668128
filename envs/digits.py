"""Pictures of handwritten digits, batch after batch, for networks that learn from random initial weights."""

import functools
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.errors import UserError
from rl2meta.history import History
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
_WIDEST, _SURE = 1e3, 100.0
_CLASSES, _BRIGHTEST, _PIXELS = 10, 16, 64
_SHOWN, _NEXT = 128, 10  # examples in a mean of the picture, and examples to come
_32_BITS = 0xFFFFFFFF


@dataclass(frozen=True, config=_STRICT)
class Digits:
    """Handwritten digits of 8 × 8 pixels, drawn with replacement; all tasks have the same 1,797 pictures.

    An episode is one example: the observation is a picture of 64 numbers in [0, 1], the action is ten scores
    f, and the reward is the log-probability log softmax(f)_y of the correct digit y, so its mean over a batch
    is minus the cross-entropy. The step's ``target`` is 100 for y and 0 for the other digits.

    A task is a sequence of examples, and nothing else: what an agent can learn for new tasks is how to train.
    So the held-out tasks are other sequences of the same pictures; there is no test set of pictures.

    Source: Andrychowicz et al. 2016 (arXiv 1606.04474), section 3.2, where the pictures are those of MNIST;
    these are the test part of Alpaydin & Kaynak's data, as scikit-learn has them.

    Args:
        classes: how many digits there are, from 0 on; pictures of other digits are left out.

    Raises:
        pydantic.ValidationError: for numbers out of range.
    """

    steady: ClassVar[bool] = False  # each episode shows the next example

    classes: Annotated[int, Field(ge=2, le=_CLASSES, description="number of digits, from 0 on")] = _CLASSES

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The pixels, row after row; 1 is ink."""
        return gym.spaces.Box(0.0, 1.0, (_PIXELS,), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The scores of the digits."""
        return gym.spaces.Box(-_WIDEST, _WIDEST, (self.classes,), np.float32)

    @property
    def horizon(self) -> int:
        """The number of steps in an episode: one example."""
        return 1

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw the numbers of sequences, [N]; there are 2³¹, so train and test hardly share any."""
        return TensorTasks({"sequence": torch.randint(2**31, (num_tasks,), generator=generator)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` sequences that step together on ``device``.

        Raises:
            UserError: without scikit-learn, which holds the pictures.
        """
        pictures, labels = self._data()
        dynamics = _Examples(pictures.to(device), labels.to(device), self.classes)
        return TensorVectorEnv(self, dynamics, num_envs, device)

    def _data(self) -> tuple[Tensor, Tensor]:
        pictures, labels = digits()
        known = labels < self.classes
        return pictures[known], labels[known]

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return 0, [num_tasks]: log-probabilities are below that, and come as close as one likes."""
        return torch.zeros(len(tasks))

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: it is not known."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the cross-entropy of the examples so far, and the next pictures of the sequence."""
        from rl2meta.envs import loss_pictures
        from rl2meta.envs import pictures as drawn

        losses = -history.rewards.reshape(-1)
        drawn.heading(
            figure, "Digits, batch after batch", loss_pictures.told(losses, _SHOWN, "cross-entropy")
        )
        loss_pictures.draw_losses(figure, (0.085, 0.13, 0.885, 0.4), losses, _SHOWN, "cross-entropy")
        known, _ = self._data()
        episodes = len(losses) + torch.arange(_NEXT)
        sequence = torch.as_tensor(drawn.parameter(tasks, "sequence", row))
        for place, image in enumerate(known[_example(sequence, episodes, len(known))].numpy()):
            box = (0.085 + 0.9 * place / _NEXT, 0.66, 0.07, 0.14)
            loss_pictures.draw_grid(figure, box, image.reshape(8, 8), 1.0)


class _Examples:
    """The dynamics. The state is the number of a picture, [B]; every guess ends its episode."""

    def __init__(self, pictures: Tensor, labels: Tensor, classes: int) -> None:
        self._pictures = pictures  # [pictures, 64]
        self._labels = labels  # [pictures]
        self._sure = _SURE * torch.eye(classes, device=labels.device)  # [classes, classes]

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return _example(tasks.parameters["sequence"], episode, len(self._pictures))

    def observe(self, state: Tensor) -> Tensor:
        return self._pictures[state]  # [B, 64]

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        label = self._labels[state]  # [B]
        scores = action.to(self._pictures.dtype).clamp(-_WIDEST, _WIDEST)
        loss = functional.cross_entropy(scores, label, reduction="none")  # [B]
        return Transition(
            state=state,
            reward=-loss,
            terminated=torch.ones_like(loss, dtype=torch.bool),
            truth={"expected_reward": -loss, "regret": loss, "target": self._sure[label]},
        )


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Return the pictures, [1797, 64] in [0, 1], and their digits, int64 [1797].

    Raises:
        UserError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "distribution.name: expected scikit-learn, which holds the pictures of 'digits', got none; run "
            "`pip install rl2meta[digits]`"
        ) from None
    data = load_digits()
    return torch.from_numpy(data.data / _BRIGHTEST).float(), torch.from_numpy(data.target).long()


def _example(sequence: Tensor, episode: Tensor, pictures: int) -> Tensor:
    """Return a picture's number, a function of task and episode: a repeated trial has the same examples."""
    return _mixed(sequence ^ _mixed(episode + 1)) % pictures


def _mixed(number: Tensor) -> Tensor:
    """Return a number of 32 bits that looks random, for each number: MurmurHash3's last step."""
    x = number & _32_BITS
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _32_BITS
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _32_BITS
    return x ^ (x >> 16)
