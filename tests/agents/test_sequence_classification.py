"""RL² on examples: what a query may see, that the core reads a whole trial, and that it learns to learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rl2meta.agents.cores.core import Seen
from rl2meta.agents.sequence_classification import (
    SEQUENCE_CLASSIFICATION,
    SequenceConfig,
    SequenceLearner,
)
from rl2meta.agents.sequence_classifier import Memory
from rl2meta.envs.few_shot import FewShot
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.experiments.agent_checks import check_agent
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.shards import Shards
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial, TrialLength

SIDE, WAYS = 6, 3
CORES = ("lstm", "gru", "transformer", "snail")


@pytest.fixture(name="law", scope="module")
def fixture_law(tmp_path_factory: pytest.TempPathFactory) -> FewShot:
    """Classes of noisy patterns."""
    path, source = tmp_path_factory.mktemp("patterns"), np.random.default_rng(0)
    for number in range(60):
        pattern = source.random((SIDE, SIDE)) < 0.5
        (path / f"{number:02d}").mkdir()
        for image in range(5):
            noisy = np.where(source.random((SIDE, SIDE)) < 0.05, ~pattern, pattern)
            Image.fromarray((noisy * 255).astype(np.uint8)).save(path / f"{number:02d}" / f"{image}.png")
    still = {"turn": 0.0, "shear": 0.0, "stretch": 0.0, "shift": 0.0}
    return FewShot(source="image_folders", path=str(path), ways=WAYS, queries=3, size=SIDE, **still)


def learner_of(law: FewShot, **settings: Any) -> SequenceLearner:
    small = {"filters": 4, "features": 6, "episodes_per_phase": WAYS * law.shots}
    config = SequenceConfig(**{**small, **settings})
    return SequenceLearner(law.observation_space, law.action_space, config, seed=0)


def lived(law: FewShot, learner: SequenceLearner, phases: int = 3, num_tasks: int = 4) -> Trial:
    tasks = sample_tasks(law, num_tasks, 0, "train")
    return RolloutWorker(law).run(learner.agent, tasks, phases * learner.config.episodes_per_phase, 0)


@pytest.mark.parametrize("core", CORES)
def test_each_query_ends_a_sequence_of_its_own(law: FewShot, core: str) -> None:
    """The core, which reads whole trials in one call, says the same of every sequence written out."""
    learner = learner_of(replace(law, shots=2), core={"name": core, "previous_observation": True})
    trial = lived(replace(law, shots=2), learner, phases=2)
    network = learner.network
    memory, queries, _ = learner.examples(trial)
    support, asked, tasks = memory.examples.shape[1], queries.shape[1], len(queries)
    own = [
        {name: value.expand(tasks, *value.shape) for name, value in network.encoder.named_parameters()},
        torch.cat([memory.examples, queries], dim=1),
    ]
    features = network.encoder.stacked(*own, support)  # type: ignore[arg-type]
    for query in range(asked):
        places = [*range(support), support + query]
        labels = torch.cat([memory.labels, torch.zeros(tasks, 1, WAYS)], dim=1)
        ones = torch.ones(support + 1, tasks)
        seen = Seen(
            features[:, places].transpose(0, 1),
            labels.transpose(0, 1),
            torch.zeros_like(ones),
            ones.bool(),
            TrialLength(support + 1, 1),
        )
        logits = network.head(network.core(seen).features[-1])
        torch.testing.assert_close(network(memory, queries)[:, query], logits, rtol=1e-4, atol=1e-5)
        acted = trial.phases[1].action[0].reshape(tasks, -1)[:, query]
        assert torch.equal(logits.argmax(dim=-1), acted)


@pytest.mark.parametrize("core", CORES)
def test_a_query_sees_neither_its_class_nor_another_query(law: FewShot, core: str) -> None:
    learner = learner_of(law, core=core)
    trial = lived(law, learner)
    support, *asked = trial.phases
    liars = [replace(p, truth={**p.truth, "target": (p.truth["target"] + 1) % WAYS}) for p in asked]
    memory, queries, labels = learner.examples(trial)
    told = learner.examples(Trial(trial.tasks, (support, *liars)))
    assert torch.equal(learner.network(*told[:2]), learner.network(memory, queries))
    assert not (told[2] == labels).any()

    every = torch.cat([memory.labels, nn.functional.one_hot(labels, WAYS).float()], dim=1).requires_grad_()
    pixels = queries.clone().requires_grad_()
    shown = every[:, : memory.labels.shape[1]]
    second = learner.network(Memory(memory.examples, shown), pixels)[:, 1].square().sum()
    of_labels, of_pixels = torch.autograd.grad(second, [every, pixels])
    assert of_labels[:, :WAYS].abs().sum() > 0 and not of_labels[:, WAYS:].any()
    assert of_pixels[:, 1].abs().sum() > 0
    assert not of_pixels[:, 0].any() and not of_pixels[:, 2:].any()


def test_it_learns_to_tell_classes_that_it_never_saw_and_their_numbers_do_not_matter(law: FewShot) -> None:
    blocks = {"blocks": ["attention", "convolutions", "attention"], "filters": 8, "span": 4}
    core = {"name": "snail", "key_size": 16, "value_size": 16, **blocks}
    learner = learner_of(law, filters=8, features=16, learning_rate=1e-2, core=core)
    worker = RolloutWorker(law)
    meta_train(learner, law, worker, Budget(90, 32, 6), 0, lambda row: False)
    held_out = sample_tasks(law, 300, 0, "test")
    returns = evaluate(learner.agent, worker, held_out, 6, 0).rewards.reshape(300, 2, WAYS)
    before, after = returns.mean(axis=(0, 2))
    assert before == pytest.approx(1 / WAYS, abs=0.06)  # nothing is known before the support
    assert after > 0.5

    trial = worker.run(learner.agent, held_out, 12, 0)
    memory, queries, labels = learner.examples(trial)
    logits = learner.network(memory, queries)
    order = torch.tensor([2, 0, 1])  # class n is called order[n] from now on
    renamed = Memory(memory.examples, memory.labels[..., order.argsort()])
    guess, again = logits.argmax(dim=-1), learner.network(renamed, queries).argmax(dim=-1)
    right, still = ((each == truth).float() for each, truth in ((guess, labels), (again, order[labels])))
    assert abs(float(right.mean() - still.mean())) < 0.04
    assert float((order[guess] == again).float().mean()) > 0.6  # chance: a third


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_second_loss_is_that_of_all_classes_and_belongs_to_training(law: FewShot, weight: float) -> None:
    learner = learner_of(law, auxiliary_coefficient=weight, core="lstm")
    trial = lived(law, learner)
    memory, queries, labels = learner.examples(trial)
    first = nn.functional.cross_entropy(learner.network(memory, queries).mT, labels)
    kinds = torch.cat([phase.truth["class"][0].reshape(4, WAYS) for phase in trial.phases], dim=1)
    of_all = learner.all_classes(learner.network.encoded(memory, queries))
    second = nn.functional.cross_entropy(of_all.mT, kinds)
    weights = [*learner.network.parameters(), *learner.all_classes.parameters()]
    expected = torch.autograd.grad(first + weight * second, weights)
    told = learner.update(trial, 0.0, generator(0))
    assert told["loss"] == pytest.approx(float(first.detach()), rel=1e-5)
    assert told.get("auxiliary_loss") == (pytest.approx(float(second.detach()), rel=1e-5) if weight else None)
    for mine, gradient in zip(weights, expected, strict=True):
        found = torch.zeros_like(mine) if mine.grad is None else mine.grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    other = learner_of(law, auxiliary_coefficient=weight, core="lstm")
    other.load_state_dict({name: value.clone() for name, value in learner.state_dict().items()})
    assert other.update(trial, 0.5, generator(0)) == learner.update(trial, 0.5, generator(0))


def test_shards_of_a_batch_learn_as_the_whole(law: FewShot) -> None:
    whole, parts = learner_of(law), learner_of(law)
    trial = lived(law, whole)
    halves = [
        Trial(
            trial.tasks[rows],
            tuple(p.columns(slice(WAYS * rows.start, WAYS * rows.stop)) for p in trial.phases),
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    told = whole.update(trial, 0.0, generator(0))
    shared = parts.update_shards(halves, 0.0, [generator(0)] * 2, Shards(2))
    assert shared == pytest.approx(told, rel=1e-5)
    for mine, theirs in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("core", ["lstm", "snail"])
def test_the_agent_keeps_the_contract(law: FewShot, core: str) -> None:
    config = SequenceConfig(filters=4, features=6, episodes_per_phase=WAYS, core=core)  # type: ignore[arg-type]
    check_agent(SEQUENCE_CLASSIFICATION, distribution=law, config=config, num_tasks=3)


def test_what_it_cannot_learn_from_is_explained(law: FewShot) -> None:
    learner = learner_of(law)
    with pytest.raises(UserError, match=r"episodes_per_trial: expected the support .* got 3 episodes"):
        learner.update(lived(law, learner, phases=1), 0.0, generator(0))
    unfit = learner_of(law, episodes_per_phase=4)
    with pytest.raises(UserError, match=r"episodes_per_phase: expected ways × shots"):
        lived(law, unfit, phases=2)
    with pytest.raises(UserError, match=r"episodes_per_phase: expected ways × shots"):
        two = replace(law, shots=2)
        some = learner_of(law)
        some.update(lived(two, some, phases=3), 0.0, generator(0))
