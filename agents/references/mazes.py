"""Maze algorithms with known behaviour, as agents: posterior sampling over where the hidden goals are.

Both families are one search: goals that are different cells must be reached in a fixed order (one goal in
Dark Rooms, key and then door in Key-to-Door), and a step that ends on the goal that is due pays. The prior is
uniform over all the family's tasks, those for training and those held out: no reference knows the partition.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.agents.references.reference import Reference
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory


class Belief(NamedTuple):
    """The carry: what is known of B mazes with n cells and m goals.

    Attributes:
        possible: where each goal may be, bool [B, m, n]; that no two are in one cell comes on top.
        guess: the goals that are believed in for now, a draw from the posterior, int64 [B, m].
        due: the goals reached in this episode, the last not counted: the number of the next, int64 [B].
        cell: where the agent was before its last action, int64 [B].
        next_cell: where an action leads, int64 [n, actions], on the generator's device.
        towards: the first action of a shortest path between two cells, int64 [n, n], there too.
        generator: of the agent's draws.
    """

    possible: Tensor
    guess: Tensor
    due: Tensor
    cell: Tensor
    next_cell: Tensor
    towards: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class PosteriorSampling:
    """Draws the goals from the posterior and walks a shortest path to the one that is due, over and over.

    Every task of the prior is as likely as another until it is excluded: a cell that paid nothing is not the
    goal that was due there, one that paid is. A draw lasts for an episode; arrived in vain, the agent waits.

    Attributes:
        next_cell: where an action leads, int64 [n, actions].
        distances: the fewest steps from cell to cell, int64 [n, n].
        goals: the cells that may be goals, int64.
        num_goals: m.
        resample: draw anew within an episode too, as soon as what was drawn is excluded.

    Source: Osband et al. 2013 (arXiv 1306.0940), where a draw lasts for an episode.
    """

    next_cell: Tensor
    distances: Tensor
    goals: Tensor
    num_goals: int
    resample: bool
    phase: Phase = field(default=Phase(episodes=None), init=False)  # the carry moves while it acts

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Belief:
        """Return the prior; the first step draws from it."""
        device, num_cells = generator.device, len(self.next_cell)
        possible = torch.zeros(num_cells, dtype=torch.bool, device=device)
        possible[self.goals.to(device)] = True
        nowhere = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        return Belief(
            possible=possible.expand(num_tasks, self.num_goals, num_cells),
            guess=nowhere.unsqueeze(1).expand(num_tasks, self.num_goals),
            due=nowhere,
            cell=nowhere,
            next_cell=self.next_cell.to(device),
            towards=self.distances[self.next_cell].argmin(dim=1).to(device),  # over the actions
            generator=generator,
        )

    def act(self, carry: Belief, step: TimeStep) -> tuple[Choice, Belief]:
        """Learn from the last reward, draw where a new draw is due, and walk."""
        known = _learn(carry, step)
        again = step.first
        if self.resample:
            again = again | ~known.possible.gather(2, known.guess.unsqueeze(2)).all(dim=1).squeeze(1)
        guess = torch.where(again.unsqueeze(1), _draw(known), known.guess)
        target = guess.gather(1, known.due.unsqueeze(1)).squeeze(1)
        action = carry.towards[step.observation, target]
        return Choice(action, action), known._replace(guess=guess)

    def adapt(self, carry: Belief, trajectory: Trajectory) -> Belief:
        """Learn nothing more: all was learnt while acting."""
        return carry


@dataclass(frozen=True)
class RandomWalk:
    """Takes any action with equal probability; the carry is the generator.

    Attributes:
        num_actions: how many there are.
    """

    num_actions: int
    phase: Phase = field(default=Phase(episodes=1), init=False)

    def begin(
        self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None
    ) -> torch.Generator:
        """Return the generator."""
        return generator

    def act(self, carry: torch.Generator, step: TimeStep) -> tuple[Choice, torch.Generator]:
        """Draw an action in each row."""
        shape, device = step.reward.shape, step.reward.device
        action = torch.randint(self.num_actions, shape, generator=carry, device=device)
        return Choice(action, action), carry

    def adapt(self, carry: torch.Generator, trajectory: Trajectory) -> torch.Generator:
        """Learn nothing."""
        return carry


def hidden_goal_references(
    next_cell: Tensor, distances: Tensor, goals: Tensor, num_goals: int
) -> dict[str, Reference]:
    """Return the references of mazes with hidden goals by name.

    Args:
        next_cell: where an action leads, int64 [cells, actions].
        distances: the fewest steps from cell to cell, int64 [cells, cells].
        goals: the cells that may be goals, int64; no two goals are in one cell.
        num_goals: how many are to be reached, in order; 1 for Dark Rooms, 2 for Key-to-Door.
    """

    def sampling(resample: bool) -> PosteriorSampling:
        return PosteriorSampling(next_cell, distances, goals, num_goals, resample)

    return {
        "random": Reference("any action", lambda: RandomWalk(next_cell.shape[1])),
        "psrl": Reference(
            "the shortest path to the goals of one posterior sample an episode", lambda: sampling(False)
        ),
        "psrl_resampling": Reference(
            "psrl, but with a new sample whenever the last is refuted", lambda: sampling(True)
        ),
    }


def _learn(carry: Belief, step: TimeStep) -> Belief:
    """Take in the reward of the last action.

    Where it led is computed, not observed: an episode's first observation is the start, but the reward that
    comes with it was paid where the episode before ended.
    """
    moved = step.action.sum(dim=1) > 0  # there was no action before a trial's first step
    found = moved & (step.reward > 0)
    there = carry.next_cell[carry.cell, step.action.argmax(dim=1)]
    here = _is(there, carry.possible.shape[2]).unsqueeze(1)  # [B, 1, n]
    asked = _is(carry.due, carry.possible.shape[1]).unsqueeze(2)  # [B, m, 1]
    if_found = torch.where(asked, here, carry.possible)
    if_not = carry.possible & ~(asked & here & moved.reshape(-1, 1, 1))
    due = (carry.due + found).clamp(max=carry.possible.shape[1] - 1)
    return carry._replace(
        possible=torch.where(found.reshape(-1, 1, 1), if_found, if_not),
        due=torch.where(step.first, 0, due),
        cell=step.observation,
    )


def _draw(belief: Belief) -> Tensor:
    """Draw the goals from the posterior, int64 [B, m], one after another and each in a cell of its own.

    That is uniform over the possible tasks: until a goal is found, nothing is known of those after it,
    so that each of its cells leaves them equally many.
    """
    free = torch.ones_like(belief.possible[:, 0])
    cells = []
    for possible in belief.possible.unbind(1):
        rank = (possible & free).cumsum(dim=1)  # a cell that may be the goal is the first of its rank
        chance = torch.rand(len(free), 1, generator=belief.generator, device=free.device)
        chosen = (chance * rank[:, -1:]).long().clamp(max=rank[:, -1:] - 1)  # the product may round up
        cells.append((rank <= chosen).sum(dim=1))
        free = free & ~_is(cells[-1], free.shape[1])
    return torch.stack(cells, dim=1)


def _is(index: Tensor, size: int) -> Tensor:
    """Return bool [B, size], true at the index [B]."""
    return index.unsqueeze(1) == torch.arange(size, device=index.device)
