"""Maze algorithms with known behaviour, as agents: posterior sampling of the hidden goals' cells.

Both families are the same search problem: the agent must reach goals in different cells in a fixed order (one
goal in Dark Rooms, key and then door in Key-to-Door), and a step that ends on the next goal pays. The prior
is uniform over all tasks of the family, training and held-out: no reference knows the split.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.agents.references.reference import KNOWS_NOTHING, Reference
from rl2meta.beliefs import Probabilities, Told
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory


class Belief(NamedTuple):
    """The carry: what is known about B mazes with n cells and m goals.

    Attributes:
        possible: bool [B, m, n], whether each goal may be in each cell; two goals are never in one cell.
        guess: the cells of the goals in the current draw from the posterior, int64 [B, m].
        due: index of the next goal in this episode, int64 [B]; it stays m − 1 once the last is reached.
        cell: the cell of the agent before its last action, int64 [B].
        next_cell: the cell that an action leads to, int64 [n, actions], on the generator's device.
        towards: the first action of a shortest path between two cells, int64 [n, n], on the same device.
        generator: random stream of the agent.
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
    """Draws the goals from the posterior and walks a shortest path to the next one.

    All tasks that are still possible are equally likely. A cell that paid is the goal that was due; a cell
    that did not pay is not. A draw lasts for an episode; if its cell does not pay, the agent waits there.

    Attributes:
        next_cell: the cell that an action leads to, int64 [n, actions].
        distances: length of a shortest path between two cells, int64 [n, n].
        goals: the cells that may be goals, int64.
        num_goals: m.
        resample: also draw again within an episode, as soon as the current draw is excluded.
        columns: of the map on which the cells lie, to be shown; 0 for no map.

    Source: Osband et al. 2013 (arXiv 1306.0940), where a draw lasts for an episode.
    """

    next_cell: Tensor
    distances: Tensor
    goals: Tensor
    num_goals: int
    resample: bool
    columns: int = 0
    phase: Phase = field(default=Phase(episodes=None), init=False)  # the carry moves while it acts

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Belief:
        """Return the prior; the first step makes a draw from it."""
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

    def act_and_tell(self, carry: Belief, step: TimeStep) -> tuple[Choice, Belief, Told]:
        """Do what ``act`` does; tell where each goal may be. Tasks that are possible are equally likely."""
        choice, known = self.act(carry, step)
        names = ["goal"] if self.num_goals == 1 else [f"goal {i + 1}" for i in range(self.num_goals)]
        cells = zip(names, _chances(known), strict=True)
        return (
            choice,
            known,
            {f"cell of the {name}": Probabilities(each, "cell", self.columns) for name, each in cells},
        )

    def act(self, carry: Belief, step: TimeStep) -> tuple[Choice, Belief]:
        """Learn from the last reward, draw goals where necessary, and walk towards the next one."""
        known = _learn(carry, step)
        again = step.first
        if self.resample:
            again = again | ~known.possible.gather(2, known.guess.unsqueeze(2)).all(dim=1).squeeze(1)
        guess = torch.where(again.unsqueeze(1), _draw(known), known.guess)
        target = guess.gather(1, known.due.unsqueeze(1)).squeeze(1)
        action = carry.towards[step.observation, target]
        return Choice(action, action), known._replace(guess=guess)

    def adapt(self, carry: Belief, trajectory: Trajectory) -> Belief:
        """Return the carry as it is: the agent learns while it acts."""
        return carry


@dataclass(frozen=True)
class RandomWalk:
    """Takes every action with equal probability; the carry is the generator.

    Attributes:
        num_actions: number of actions.
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
    next_cell: Tensor, distances: Tensor, goals: Tensor, num_goals: int, columns: int = 0
) -> dict[str, Reference]:
    """Return the references of mazes with hidden goals by name.

    Args:
        next_cell: the cell that an action leads to, int64 [cells, actions].
        distances: length of a shortest path between two cells, int64 [cells, cells].
        goals: the cells that may be goals, int64; no two goals are in one cell.
        num_goals: number of goals that the agent must reach in order; 1 for Dark Rooms, 2 for Key-to-Door.
        columns: of the map on which the cells lie, to be shown; 0 for no map.
    """

    def sampling(resample: bool) -> PosteriorSampling:
        return PosteriorSampling(next_cell, distances, goals, num_goals, resample, columns)

    return {
        "random": Reference("any action", lambda: RandomWalk(next_cell.shape[1]), prior=KNOWS_NOTHING),
        "psrl": Reference(
            "the shortest path to the goals of one posterior sample per episode", lambda: sampling(False)
        ),
        "psrl_resampling": Reference(
            "psrl, but with a new sample whenever a reward excludes the last one", lambda: sampling(True)
        ),
    }


def _learn(carry: Belief, step: TimeStep) -> Belief:
    """Update the belief with the reward of the last action.

    The cell that paid is computed, not observed: the first observation of an episode is the start, but the
    reward that comes with it belongs to the cell where the previous episode ended.
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
    """Draw the goals from the posterior, int64 [B, m], one after another, all in different cells.

    This is uniform over the possible tasks: until a goal is found, nothing is known about later goals, so
    each of its possible cells leaves the same number of cells for them.
    """
    free = torch.ones_like(belief.possible[:, 0])
    cells = []
    for possible in belief.possible.unbind(1):
        rank = (possible & free).cumsum(dim=1)  # [B, n]; a possible cell is the first with its rank
        chance = torch.rand(len(free), 1, generator=belief.generator, device=free.device)
        chosen = (chance * rank[:, -1:]).long().clamp(max=rank[:, -1:] - 1)  # the product may round up
        cells.append((rank <= chosen).sum(dim=1))
        free = free & ~_is(cells[-1], free.shape[1])
    return torch.stack(cells, dim=1)


def _chances(belief: Belief) -> list[Tensor]:
    """Return the probability of each cell to hold the first goal, the second, and so on; [B, n] each.

    Given all earlier goals, a goal is uniform on its possible cells without theirs, as in ``_draw``. So its
    chance is in proportion to that of no earlier goal being there.
    """
    free = torch.ones(belief.possible[:, 0].shape, device=belief.possible.device)
    chances = []
    for possible in belief.possible.unbind(1):
        open_to_it = possible * free
        chances.append(open_to_it / open_to_it.sum(dim=1, keepdim=True))
        free = (free - chances[-1]).clamp(min=0)  # rounding
    return chances


def _is(index: Tensor, size: int) -> Tensor:
    """Return bool [B, size], true at the index [B]."""
    return index.unsqueeze(1) == torch.arange(size, device=index.device)
