"""What a learner's loss takes for reward, and means over the steps that count."""

from typing import Literal

from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.trial import Trajectory

RewardSignal = Literal["auto", "sampled", "expected", "regret"]


def reward_signal(trajectory: Trajectory, signal: RewardSignal) -> Tensor:
    """Return what the loss takes for reward, [T, B].

    Neither of the latter two is ever an input of the agent. All three have the same optimal policies at
    γ = 1; the expected reward lacks the noise of sampling, and the negative regret also the luck of having
    drawn an easy task. Where episodes have several steps, −regret is in the mean r + V*(s') − V*(s): it holds
    already what an action leads to within its episode, and γ weighs only the worth of what it teaches. At
    γ = 0 the optimal policy takes the action of the highest E[Q*(s, a) | history].

    Raises:
        UserError: if the family does not emit the signal.
    """
    known = {
        "sampled": trajectory.reward,
        "expected": trajectory.expected_reward,
        "regret": None if trajectory.regret is None else -trajectory.regret,
    }
    usable = {name: tensor for name, tensor in known.items() if tensor is not None}
    if signal != "auto" and signal not in usable:
        raise UserError(
            f"agent.reward_signal: expected one that the task family emits, {', '.join(usable)} or auto, "
            f"got {signal!r}"
        )
    return usable[signal if signal != "auto" else list(usable)[-1]]


def masked_mean(x: Tensor, mask: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Return Σ x m / Σ m over all entries, or over the axes ``dim``, which stay with length 1.

    The mask m is 0 or 1, or any weights >= 0.
    """
    keep = dim is not None
    return (x * mask).sum(dim, keepdim=keep) / mask.sum(dim, keepdim=keep)


def standardised(x: Tensor, mask: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Return (x − mean) / (standard deviation), both as ``masked_mean`` takes them."""
    centred = x - masked_mean(x, mask, dim)
    return centred / (masked_mean(centred.square(), mask, dim).sqrt() + 1e-8)
