"""Nearest neighbour: a reference for families that reveal the classes of examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from rl2meta.agents.references.anything import random_references
from rl2meta.agents.references.reference import KNOWS_NOTHING, Reference
from rl2meta.errors import UserError
from rl2meta.models import LabelledExamples
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory


class Memory(NamedTuple):
    """The support of each task.

    Attributes:
        examples: what was observed, flat, [num_tasks, support, numbers]; None before the end of the support.
        labels: the correct classes, int64 [num_tasks, support].
    """

    examples: Tensor | None
    labels: Tensor


def nearest(queries: Tensor, examples: Tensor, labels: Tensor) -> Tensor:
    """Return the class of the nearest example of each query, [num_tasks, queries].

    Args:
        queries: [num_tasks, queries, numbers].
        examples: [num_tasks, examples, numbers].
        labels: of the examples, [num_tasks, examples].
    """
    place = torch.cdist(queries, examples).argmin(dim=-1)  # [num_tasks, queries]
    return labels.gather(1, place)


@dataclass(frozen=True)
class NearestNeighbour:
    """Answers with the class of the example of the support that is nearest.

    Before it has seen the support, it answers with class 0.

    Attributes:
        length: number of examples in the support.
        answer: (queries, examples, labels) -> classes, as ``nearest``, which takes Euclidean distances.
    """

    length: int
    answer: Callable[[Tensor, Tensor, Tensor], Tensor] = nearest

    @property
    def phase(self) -> Phase:
        """The support, and then as many queries at a time, all in parallel."""
        return Phase(episodes=1, lanes_per_task=self.length)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Memory:
        """Return an empty memory."""
        return Memory(None, torch.zeros(num_tasks, 0, dtype=torch.int64, device=generator.device))

    def act(self, carry: Memory, step: TimeStep) -> tuple[Choice, Memory]:
        """Answer in every lane."""
        if carry.examples is None:
            answer = torch.zeros(len(step.reward), dtype=torch.int64, device=step.reward.device)
        else:
            answer = self.answer(self._by_task(step.observation), carry.examples, carry.labels).flatten()
        return Choice(answer, answer), carry

    def adapt(self, carry: Memory, trajectory: Trajectory) -> Memory:
        """Keep the first phase.

        Raises:
            UserError: for a family that reveals no targets, or a phase that is not the whole support.
        """
        self._refuse_unfit(trajectory, first=carry.examples is None)
        if carry.examples is not None:
            return carry
        target = trajectory.truth["target"][0]  # [B]
        labels = target.reshape(len(carry.labels), -1)  # [num_tasks, support]
        return Memory(self._by_task(trajectory.inputs.observation[0]), labels)

    def _refuse_unfit(self, trajectory: Trajectory, first: bool) -> None:
        """Refuse a phase without targets, and, on a CPU, one that is not the support or not the queries."""
        if "target" not in trajectory.truth:
            raise UserError(
                "nearest neighbour: expected a family that reveals the target of each example, got one that "
                f"reveals {sorted(trajectory.truth)}; leave this agent out"
            )
        support = trajectory.truth.get("support")
        if support is None or support.device.type != "cpu":
            return
        if bool((support != first).any()):
            raise UserError(
                f"nearest neighbour: expected a support of {self.length} examples, as many as in a phase, "
                "got another one; a phase needs ways × shots of the tasks"
            )

    def _by_task(self, observation: Tensor) -> Tensor:
        """[num_tasks × lanes, ...] -> [num_tasks, lanes, numbers]."""
        flat = observation.float().flatten(1)
        return flat.reshape(-1, self.phase.lanes_per_task, flat.shape[1])


def example_references(model: LabelledExamples) -> dict[str, Reference]:
    """Return the references of families with labelled examples, by name."""
    support = model.num_actions * model.shots
    neighbour = Reference(
        "the class of the example of the support that looks most alike, pixel by pixel",
        lambda: NearestNeighbour(support),
        prior=KNOWS_NOTHING,
        episodes=support,
    )
    return random_references(gym.spaces.Discrete(model.num_actions)) | {"nearest_neighbour": neighbour}
