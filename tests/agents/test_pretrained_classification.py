"""Pretraining on all classes at once, and nearest neighbours of pixels and of features."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from rl2meta.agents.maml import named
from rl2meta.agents.pretrained_classification import PretrainedConfig, PretrainingLearner, features_of
from rl2meta.agents.references.catalogue import references_on
from rl2meta.agents.references.examples import NearestNeighbour
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.few_shot import FewShot
from rl2meta.errors import UserError
from rl2meta.experiments.components import make_learner, read_config
from rl2meta.models import LabelledExamples
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial

SIDE, CLASSES = 6, 12


@pytest.fixture(name="law", scope="module")
def fixture_law(tmp_path_factory: pytest.TempPathFactory) -> FewShot:
    path, source = tmp_path_factory.mktemp("patterns"), np.random.default_rng(0)
    for number in range(CLASSES):
        pattern = source.random((SIDE, SIDE))
        (path / f"{number:02d}").mkdir()
        for image in range(4):
            noisy = (pattern + 0.5 * source.random((SIDE, SIDE))) / 1.5 * 255
            Image.fromarray(noisy.astype(np.uint8)).save(path / f"{number:02d}" / f"{image}.png")
    still = {"turn": 0.0, "shear": 0.0, "stretch": 0.0, "shift": 0.0}
    return FewShot(source="image_folders", path=str(path), ways=3, shots=2, queries=2, size=SIDE, **still)


def learner_of(law: FewShot, **settings: Any) -> PretrainingLearner:
    config = PretrainedConfig(**{"filters": 4, "episodes_per_phase": 6, "classes": CLASSES, **settings})
    return PretrainingLearner(law.observation_space, law.action_space, config, seed=0)


def lived(law: FewShot, agent: Any, num_tasks: int = 5) -> Trial:
    return RolloutWorker(law).run(agent, sample_tasks(law, num_tasks, 0, "test"), 12, 0)


def by_hand(pictures: torch.Tensor, trial: Trial, cosine: bool) -> list[int]:
    """Answer each query of each task with the label of the best example, one after another."""
    labels = trial.phases[0].truth["target"][0].reshape(len(pictures), -1)
    answers = []
    for task, rows in enumerate(pictures.numpy()):
        support, queries = rows[:6], rows[6:]
        for query in queries:
            if cosine:
                likeness = [query @ s / np.linalg.norm(query) / np.linalg.norm(s) for s in support]
            else:
                likeness = [-np.linalg.norm(query - s) for s in support]
            answers.append(int(labels[task, int(np.argmax(likeness))]))
    return answers


def pixels_of(trial: Trial, num_tasks: int) -> torch.Tensor:
    """Return [num_tasks, support + queries, pixels]."""
    phases = [phase.inputs.observation[0].flatten(1).reshape(num_tasks, 6, -1) for phase in trial.phases]
    return torch.cat(phases, dim=1)


def test_the_reference_answers_with_the_nearest_example(law: FewShot) -> None:
    trial = lived(law, references_on(law.model, law.action_space, 12)["nearest_neighbour"].build())
    assert trial.phases[1].action[0].tolist() == by_hand(pixels_of(trial, 5), trial, cosine=False)
    assert not trial.phases[0].action.any()
    with pytest.raises(ValueError, match="expected num_actions and shots >= 1, got"):
        LabelledExamples(5, 0)


@pytest.mark.parametrize("length", [3, 12])
def test_a_phase_that_is_not_the_support_is_refused(law: FewShot, length: int) -> None:
    with pytest.raises(UserError, match=f"expected a support of {length} examples, as many as in a phase"):
        RolloutWorker(law).run(NearestNeighbour(length), sample_tasks(law, 5, 0, "test"), 24, 0)
    arms = BernoulliBandits(num_arms=2)
    with pytest.raises(UserError, match="expected a family that reveals the target of each example"):
        RolloutWorker(arms).run(NearestNeighbour(length), sample_tasks(arms, 5, 0, "test"), 24, 0)


def test_features_are_compared_by_their_cosine(law: FewShot) -> None:
    learner = learner_of(law, nearest=True)
    trial = lived(law, learner.agent)
    features = features_of(learner.network, pixels_of(trial, 5), 6).detach()
    assert trial.phases[1].action[0].tolist() == by_hand(features, trial, cosine=True)


def test_the_loss_is_that_of_all_classes_and_the_head_of_a_task_stays_zero(law: FewShot) -> None:
    learner = learner_of(law)
    trial = lived(law, learner.agent)
    features = features_of(learner.network, pixels_of(trial, 5), 6)
    kinds = torch.cat([phase.truth["class"][0].reshape(5, 6) for phase in trial.phases], dim=1)
    log_probs = (features @ learner.all_classes.weight.mT + learner.all_classes.bias).log_softmax(dim=-1)
    expected = -log_probs.gather(-1, kinds.unsqueeze(-1)).mean().detach()
    before = {name: value.clone() for name, value in named(learner.network).items()}
    assert learner.update(trial, 0.0, generator(0))["loss"] == pytest.approx(float(expected), rel=1e-5)
    for name, value in named(learner.network).items():
        assert torch.equal(value, before[name]) == name.startswith("head.")
    assert not learner.network.head.weight.any()
    other = learner_of(law)
    other.load_state_dict({name: value.clone() for name, value in learner.state_dict().items()})
    assert other.update(trial, 0.5, generator(0)) == learner.update(trial, 0.5, generator(0))


def test_it_learns_the_classes_of_training(law: FewShot) -> None:
    learner = learner_of(law, filters=8, learning_rate=1e-2)
    rows: list[dict[str, float]] = []
    meta_train(learner, law, RolloutWorker(law), Budget(40, 8, 6), 0, lambda row: bool(rows.append(row)))
    assert rows[0]["accuracy"] < 0.4 and rows[-1]["accuracy"] > 0.8


def test_what_it_cannot_learn_from_is_explained(law: FewShot) -> None:
    learner = learner_of(law, classes=3)
    with pytest.raises(
        UserError, match=r"agent.classes: expected more than the number \d+ of a class, got 3"
    ):
        learner.update(lived(law, learner.agent), 0.0, generator(0))
    with pytest.raises(UserError, match="expected classes, a Discrete action space"):
        PretrainingLearner(law.observation_space, gym.spaces.Box(-1, 1, (2,)), PretrainedConfig())


@pytest.mark.parametrize("kind", ["maml", "reptile", "pretrained", "snail"])
@pytest.mark.parametrize("sizes", [["batch_norm=false"], ["filters=64"]], ids=str)
def test_other_networks_and_images_work_by_override(kind: str, sizes: list[str]) -> None:
    """Without batch norm; and the papers' form, 28 × 28 pixels and four convolutions of 64 filters."""
    where = "agent.objective." if kind == "reptile" else "agent."
    changes = [f"{where}{size}" for size in sizes]
    if sizes == ["filters=64"]:
        changes.append("distribution.size=28")
    config = read_config(f"{kind}_glyphs_5way_1shot", changes)
    learner, law = make_learner(config, torch.device("cpu")), config.distribution
    tasks, episodes = sample_tasks(law, 2, 0, "train"), config.settings.training.episodes_per_trial
    trial = RolloutWorker(law).run(learner.agent, tasks, episodes, 0)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    told = learner.update(trial, 0.0, generator(0))
    assert all(np.isfinite(value) for value in told.values())
    after = learner.state_dict()
    kernels = {name: value for name, value in before.items() if name.endswith("convolutions.3.weight")}
    assert any(value.shape[:2] == (64, 64) for value in kernels.values()) == (sizes == ["filters=64"])
    assert any(name.endswith("convolutions.3.bias") for name in after) == (sizes == ["batch_norm=false"])
    assert any(not torch.equal(value, after[name]) for name, value in kernels.items())
    images = trial.phases[0].inputs.observation
    assert images.shape[2:] == law.observation_space.shape
