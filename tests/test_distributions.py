"""Distributions over several entries, and masks of illegal actions."""

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, kl_divergence

from rl2meta.networks import Categorical, Categoricals, legal_only
from rl2meta.randomness import generator

SIZES = ([3, 3], [2, 4, 1], [5])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_several_entries_are_a_product_of_torchs_own(sizes: list[int]) -> None:
    source = generator(0, "logits")
    logits, others = (torch.randn(6, sum(sizes), generator=source, dtype=torch.float64) for _ in range(2))
    policy, other = Categoricals(logits, sizes), Categoricals(others, sizes)
    action = policy.sample(generator(1, "draws"))
    wanted, rest = (
        [TorchCategorical(logits=part) for part in torch.split(each, sizes, dim=-1)]
        for each in (logits, others)
    )
    assert action.shape == (6, len(sizes)) and (action < torch.tensor(sizes)).all()
    log_prob = sum(law.log_prob(column) for law, column in zip(wanted, action.T, strict=True))
    torch.testing.assert_close(policy.log_prob(action), log_prob)
    torch.testing.assert_close(policy.entropy(), sum(law.entropy() for law in wanted))
    torch.testing.assert_close(policy.kl(other), sum(map(kl_divergence, wanted, rest)))
    assert torch.equal(policy.mode(), torch.stack([law.logits.argmax(-1) for law in wanted], dim=-1))


def test_entries_are_drawn_independently_by_their_own_laws() -> None:
    sizes, logits = [2, 3], torch.tensor([0.0, 1.0, 0.5, -0.5, 0.0])
    drawn = Categoricals(logits.expand(20_000, 5), sizes).sample(generator(0, "draws"))
    shares = torch.zeros(2, 3).index_put_(tuple(drawn.T), torch.tensor(1 / 20_000), accumulate=True)
    wanted = torch.outer(logits[:2].softmax(0), logits[2:].softmax(0))
    assert (shares - wanted).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_an_illegal_action_is_never_drawn_and_the_legal_ones_keep_their_odds() -> None:
    source = generator(0, "masks")
    logits = torch.randn(5000, 4, generator=source).requires_grad_()
    legal = torch.rand(5000, 4, generator=source) < 0.5
    legal[:, 0] |= ~legal.any(dim=1)
    policy = Categorical(legal_only(logits, legal))
    action = policy.sample(source)
    assert legal.gather(1, action.unsqueeze(1)).all() and legal.gather(1, policy.mode().unsqueeze(1)).all()
    within = torch.where(legal, logits, -torch.inf).log_softmax(dim=1)
    torch.testing.assert_close(policy.log_probs[legal], within[legal])
    entropy = torch.stack(
        [TorchCategorical(logits=row[ok]).entropy() for row, ok in zip(logits, legal, strict=True)]
    )
    torch.testing.assert_close(policy.entropy(), entropy)
    (gradient,) = torch.autograd.grad((policy.entropy() + policy.kl(policy)).sum(), logits)
    assert gradient.isfinite().all() and not gradient[~legal].any()


def test_without_masks_logits_stay_the_same_tensor() -> None:
    logits = torch.zeros(2, 3)
    assert legal_only(logits, None) is logits
    assert legal_only(logits, torch.ones(2, 0, dtype=torch.bool)) is logits


def test_masks_of_several_entries_forbid_values_of_each() -> None:
    legal = torch.tensor([True, False, False, True, True]).expand(500, 5)
    policy = Categoricals(legal_only(torch.zeros(500, 5), legal), [2, 3])
    drawn = policy.sample(generator(0, "draws"))
    assert drawn[:, 0].unique().tolist() == [0] and drawn[:, 1].unique().tolist() == [1, 2]
    torch.testing.assert_close(policy.entropy(), torch.full((500,), 2.0).log())
    assert Independent(TorchCategorical(torch.ones(2, 2)), 1).entropy() == 2 * torch.tensor(2.0).log()


def test_values_that_do_not_exist_are_not_drawn_even_if_all_that_do_are_illegal() -> None:
    """So it is in an environment that idles after a last step whose mask allows nothing."""
    logits = legal_only(torch.zeros(500, 5), torch.zeros(500, 5, dtype=torch.bool))
    policy = Categoricals(logits, [2, 3])
    action = policy.sample(generator(0))
    assert (action < torch.tensor([2, 3])).all() and (policy.mode() < torch.tensor([2, 3])).all()
    torch.testing.assert_close(
        policy.entropy(), torch.full((500,), 2.0).log() + torch.full((500,), 3.0).log()
    )
