"""A linear layer on features that tells all classes of training apart; at test it is left out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.agents.rows import by_row
from rl2meta.errors import UserError
from rl2meta.trial import Trajectory


class AllClasses(nn.Linear):
    """W φ + b, the logits of all classes.

        L = −E[log softmax(W φ(x) + b)_c]

    with c the class of x among all classes.

    Args:
        features: length of φ.
        classes: more than the largest number of a class.
    """

    def loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return L from logits [..., all classes] and the numbers of the classes, [...]."""
        return functional.cross_entropy(logits.flatten(0, -2), classes.flatten())


def of_all_classes(phases: Sequence[Trajectory], lanes: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return the images of phases and their classes, [num_tasks, rows, pixels] and [num_tasks, rows].

    Args:
        phases: with the number among all classes, ``class``, in their truth.
        lanes: episodes of each task side by side.
        classes: more than the largest such number.

    Raises:
        UserError: for a family that does not say the classes, or has more of them.
    """
    known = [_of_phase(phase, lanes, classes) for phase in phases]
    pixels, numbers = (torch.cat(parts, dim=1) for parts in zip(*known, strict=True))
    return pixels, numbers


def _of_phase(phase: Trajectory, lanes: int, classes: int) -> tuple[Tensor, Tensor]:
    if "class" not in phase.truth:
        raise UserError(
            "agent.name: expected a family that says which class of all an image has, got one without; use "
            "few_shot"
        )
    numbers = by_row(phase.truth["class"], lanes)
    if numbers.device.type == "cpu" and int(numbers.max()) >= classes:
        raise UserError(
            f"agent.classes: expected more than the number {int(numbers.max())} of a class, got {classes}; "
            "raise it"
        )
    return by_row(phase.inputs.observation.flatten(2), lanes), numbers
