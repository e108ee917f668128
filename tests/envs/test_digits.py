"""Digits: sequences of pictures, and what scores cost. The pictures are scikit-learn's."""

import sys
from typing import Any

import pytest
import torch

from rl2meta.envs.checking import check_distribution
from rl2meta.envs.digits import Digits, digits
from rl2meta.errors import UserError
from rl2meta.rendering import frame
from rl2meta.tasks import TensorTasks, sample_tasks

CPU = torch.device("cpu")


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits.cache_clear()
    with pytest.raises(UserError, match=r"pip install rl2meta\[digits\]"):
        Digits().make_envs(1, CPU)
    digits.cache_clear()


def test_family_keeps_the_contract() -> None:
    pytest.importorskip("sklearn")
    digits()  # the import of scikit-learn draws random numbers
    check_distribution(Digits(classes=3))


def test_scores_cost_their_cross_entropy() -> None:
    pytest.importorskip("sklearn")
    envs = Digits().make_envs(300, CPU)
    seen, _ = envs.reset(seed=0, options={"tasks": sample_tasks(Digits(), 300, 0, "test")})
    scores = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    _, reward, *_, info = envs.step(scores)
    label = info["target"].argmax(dim=1)
    torch.testing.assert_close(-reward, torch.nn.functional.cross_entropy(scores, label, reduction="none"))
    pictures, labels = digits()
    for picture, digit in zip(seen[:20], label[:20], strict=True):  # each picture has its own digit
        place = int((pictures == picture).all(dim=1).nonzero()[0])
        assert labels[place] == digit


def test_sequences_are_uniform_and_differ_between_tasks() -> None:
    pytest.importorskip("sklearn")
    family = Digits()
    tasks: Any = sample_tasks(family, 1000, 0, "train")
    envs = family.make_envs(1000, CPU)
    dynamics: Any = envs._dynamics
    episodes = torch.arange(100)
    numbers = torch.stack([dynamics.begin(tasks, episode.expand(1000), None) for episode in episodes])
    counts = numbers.flatten().bincount(minlength=1797).double()
    expected = 100_000 / 1797
    assert float(((counts - expected) ** 2 / expected).sum()) < 1797 + 5 * (2 * 1797) ** 0.5  # chi-squared
    assert len(torch.unique(numbers.T, dim=0)) == 1000  # no task has the sequence of another
    again = dynamics.begin(tasks, episodes[7].expand(1000), None)
    assert torch.equal(again, numbers[7])
    pairs = torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]).double()
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5 / 99_000**0.5


def test_a_picture_shows_what_comes_next() -> None:
    pytest.importorskip("sklearn")
    from rl2meta.history import EpisodeRecord, History

    waiting = EpisodeRecord(torch.zeros(1, 64).numpy(), torch.zeros(0, 10).numpy(), torch.zeros(0).numpy())
    tasks = TensorTasks({"sequence": torch.tensor([5, 6])})
    first, second = (frame(Digits(), tasks, row, History((waiting,), 1)) for row in (0, 1))
    assert (first != second).any() and first.std() > 5
