"""What the rule of the inner steps remembers from one update to the next."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from rl2meta.agents.rule import Rule, State
from rl2meta.shards import ALONE, Shards
from rl2meta.trial import over_fields


class Moments(nn.Module):
    """What a rule remembers from one update to the next: the mean over tasks of its state, [...] each."""

    def __init__(self, rule: Rule, network: nn.Module) -> None:
        super().__init__()
        one_task = {name: weight.detach().unsqueeze(0) for name, weight in network.named_parameters()}
        for index, part in enumerate(_tensors(rule.begin(one_task))):
            self.register_buffer(f"part{index}", part[0].clone())

    def begin(self, blank: State) -> State:
        """Return this memory for every task, in the shapes of a new state, [num_tasks, ...] each."""
        kept = self.buffers()
        return over_fields(lambda part: next(kept).expand_as(part), blank)

    def keep(self, states: Sequence[State], shards: Shards = ALONE) -> None:
        """Remember the state at the end of an update, [num_tasks, ...]; one for each own shard."""
        for kept, *parts in zip(self.buffers(), *map(_tensors, states), strict=True):
            # Numbers of steps are the same for all tasks; in place: a recorded rollout reads this memory.
            means = [part.mean(dim=0) if part.is_floating_point() else part[0] for part in parts]
            kept.copy_(shards.mean(means) if kept.is_floating_point() else means[0])


def _tensors(state: State) -> Iterator[Tensor]:
    """Return the tensors of a rule's state, always in the same order."""
    found: list[Tensor] = []
    over_fields(lambda part: found.append(part) or part, state)  # type: ignore[func-returns-value]
    return iter(found)
