"""Classification through the inner and outer loops of MAML, with batch norm by the support."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml import InnerLoop, named
from rl2meta.agents.maml_classification import (
    CrossEntropy,
    MAMLClassificationConfig,
    SupportedInnerLoop,
    maml_classification_learner,
)
from rl2meta.agents.outer_adam import OuterAdam, judged
from rl2meta.agents.rows import Rows
from rl2meta.envs.few_shot import FewShot
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial

SIDE = 6


@pytest.fixture(name="law", scope="module")
def fixture_law(tmp_path_factory: pytest.TempPathFactory) -> FewShot:
    """Classes of noisy patterns; a class is the sign of its pattern and where it lies."""
    path, source = tmp_path_factory.mktemp("patterns"), np.random.default_rng(0)
    for number in range(40):
        pattern = source.random((SIDE, SIDE)) < 0.5
        (path / f"{number:02d}").mkdir()
        for image in range(4):
            noisy = np.where(source.random((SIDE, SIDE)) < 0.1, ~pattern, pattern)
            Image.fromarray((noisy * 255).astype(np.uint8)).save(path / f"{number:02d}" / f"{image}.png")
    still = {"turn": 0.0, "shear": 0.0, "stretch": 0.0, "shift": 0.0}
    return FewShot(source="image_folders", path=str(path), ways=3, shots=1, queries=3, size=SIDE, **still)


def learner_of(law: FewShot, **settings: Any) -> OuterAdam:
    config = MAMLClassificationConfig(**{"filters": 4, "episodes_per_phase": 3, **settings})
    return maml_classification_learner(law.observation_space, law.action_space, config, seed=0)


def lived(law: FewShot, learner: OuterAdam, phases: int, num_tasks: int = 4) -> Trial:
    tasks = sample_tasks(law, num_tasks, 0, "train")
    return RolloutWorker(law).run(learner.agent, tasks, phases * learner.config.episodes_per_phase, 0)


def rows_of(learner: OuterAdam, trial: Trial) -> list[Rows]:
    lanes = learner.config.episodes_per_phase
    return [learner.inner.objective.rows(phase, lanes) for phase in trial.phases]


def of_modules(weights: dict[str, Tensor], batch_norm: bool, train: bool) -> nn.Sequential:
    """Build the network of one task from torch's own layers."""
    layers: list[nn.Module] = []
    for block in range(4):
        kernel = weights[f"convolutions.{block}.weight"]
        stride = 2 if block < 2 else 1  # 9 × 7 -> 5 × 4 -> 3 × 2
        convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride, 1, bias=not batch_norm)
        convolution.weight.data = kernel
        if batch_norm:
            norm = nn.BatchNorm2d(kernel.shape[0], momentum=1.0).train(train)
            norm.weight.data, norm.bias.data = (weights[f"norms.{block}.{n}"] for n in ("weight", "bias"))
            layers += [convolution, norm, nn.ReLU()]
        else:
            convolution.bias.data = weights[f"convolutions.{block}.bias"]
            layers += [convolution, nn.ReLU()]
    head = nn.Linear(weights["head.weight"].shape[1], weights["head.weight"].shape[0])
    head.weight.data, head.bias.data = weights["head.weight"], weights["head.bias"]
    return nn.Sequential(*layers, nn.Flatten(), head)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_task_has_the_network_of_torchs_layers(batch_norm: bool) -> None:
    network = ImageClassifier((2, 9, 7), 3, 4, batch_norm)
    weights = {name: torch.randn(5, *value.shape) for name, value in named(network).items()}
    pixels = torch.rand(5, 6, 2 * 9 * 7)
    together = network.stacked(weights, pixels)
    for task in range(5):
        own = {name: value[task] for name, value in weights.items()}
        alone = of_modules(own, batch_norm, train=True)(pixels[task].reshape(6, 2, 9, 7))
        torch.testing.assert_close(together[task], alone, rtol=1e-3, atol=1e-3)
    first = {name: value[0] for name, value in weights.items()}
    network.load_state_dict(first)
    torch.testing.assert_close(network(pixels[0]), together[0], rtol=1e-3, atol=1e-3)


def test_queries_are_normalised_by_the_support_alone() -> None:
    network = ImageClassifier((1, 8, 8), 3, 4, batch_norm=True)
    weights = {name: torch.randn(1, *value.shape) for name, value in named(network).items()}
    images = torch.rand(1, 7, 64)
    logits = network.stacked(weights, images, support=3)
    others = torch.cat([images[:, :4], torch.rand(1, 3, 64)], dim=1)  # other queries beside the first
    torch.testing.assert_close(network.stacked(weights, others, support=3)[:, :4], logits[:, :4])
    torch.testing.assert_close(network.stacked(weights, images[:, :3]), logits[:, :3], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(network.stacked(weights, images)[:, 3], logits[:, 3], atol=0.1)


@pytest.mark.parametrize("transductive", [True, False])
def test_meta_gradient_is_that_of_central_differences(law: FewShot, transductive: bool) -> None:
    """In single entries of every weight, through batch norm and two inner steps."""
    learner = learner_of(law, filters=2, transductive=transductive, inner_learning_rates=[0.1])
    phases = rows_of(learner, lived(law, learner, 3))
    rows = [Rows(*(f.double() if f.is_floating_point() else f for f in phase)) for phase in phases]
    kind = InnerLoop if transductive else SupportedInnerLoop
    assert type(learner.inner) is kind
    network = ImageClassifier((1, SIDE, SIDE), 3, 2, True).double()
    inner = kind(network, CrossEntropy(law.observation_space), learner.config)
    meta = {name: value.detach().double().requires_grad_() for name, value in named(learner.meta).items()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return inner.losses(inner.replay(weights, rows)[-1], rows[-1]).mean()

    exact = torch.autograd.grad(loss(meta), list(meta.values()))
    for (name, value), gradient in zip(meta.items(), exact, strict=True):
        index = int(gradient.abs().argmax())
        step = torch.zeros(value.numel(), dtype=torch.float64)
        step[index] = 1e-6
        up, down = (loss({**meta, name: value + s * step.reshape(value.shape)}) for s in (1.0, -1.0))
        assert float(gradient.flatten()[index]) == pytest.approx(
            float((up - down).detach()) / 2e-6, rel=1e-4, abs=1e-7
        )


@pytest.mark.parametrize("support_phases", [1, None])
def test_no_query_changes_the_answer_to_another(law: FewShot, support_phases: int | None) -> None:
    learner = learner_of(law, support_phases=support_phases)
    support, queries, _ = rows_of(learner, lived(law, learner, 3))
    state = learner.inner.advance(learner.inner.begin(named(learner.meta), 4), support)
    others = torch.cat([queries.observation[:, :1], 1 - queries.observation[:, 1:]], dim=1)
    first, again = (learner.inner.outputs(state, seen)[:, 0] for seen in (queries.observation, others))
    torch.testing.assert_close(first, again)


def test_the_guess_is_the_likeliest_class_and_the_loss_its_cross_entropy(law: FewShot) -> None:
    learner = learner_of(law)
    trial = lived(law, learner, 3)
    rows = rows_of(learner, trial)
    states = learner.inner.replay(named(learner.meta), rows)
    for state, phase, seen in zip(states, rows, trial.phases, strict=True):
        logits = learner.inner.outputs(state, phase.observation)  # [tasks, rows, classes]
        assert torch.equal(logits.argmax(dim=-1).flatten(), seen.action.flatten())
        each = nn.functional.cross_entropy(logits.mT, phase.label, reduction="none").mean(dim=1)
        torch.testing.assert_close(learner.inner.losses(state, phase), each)


def test_all_phases_after_the_last_inner_step_are_judged(law: FewShot) -> None:
    learner = learner_of(law, inner_steps=1)
    rows = rows_of(learner, lived(law, learner, 4))
    states = learner.inner.replay(named(learner.meta), rows)
    together = learner.inner.losses(states[-1], judged(states, rows))
    alone = torch.stack([learner.inner.losses(states[-1], phase) for phase in rows[1:]]).mean(dim=0)
    torch.testing.assert_close(together, alone)
    assert torch.equal(judged(states[:2], rows[:2]).observation, rows[1].observation)


def test_it_learns_to_adapt_to_classes_that_it_never_saw(law: FewShot) -> None:
    learner = learner_of(law, filters=8, inner_steps=1, learning_rate=1e-2)
    worker, held_out = RolloutWorker(law), sample_tasks(law, 300, 0, "test")

    def accuracy() -> Any:
        return evaluate(learner.agent, worker, held_out, 6, 0).rewards.reshape(300, 2, 3).mean(axis=(0, 2))

    before = accuracy()
    meta_train(learner, law, worker, Budget(80, 12, 9), 0, lambda row: False)
    after = accuracy()
    assert after[0] == pytest.approx(1 / 3, abs=0.06)  # nothing is known before the first step
    assert after[1] > max(0.6, before[1] + 0.1)


def test_what_it_cannot_learn_from_is_explained(law: FewShot) -> None:
    space = law.observation_space
    config = MAMLClassificationConfig()
    with pytest.raises(UserError, match="expected classes, a Discrete action space"):
        maml_classification_learner(space, gym.spaces.Box(-1, 1, (2,)), config)
    with pytest.raises(UserError, match="expected images, a Box of floats"):
        maml_classification_learner(gym.spaces.Box(-1, 1, (3,)), law.action_space, config)
    learner = learner_of(law, episodes_per_phase=4)
    with pytest.raises(UserError, match=r"episodes_per_phase: expected ways × shots"):
        lived(law, learner, 2)
