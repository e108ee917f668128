"""K-shot classification: whole meta-iterations of MAML on images, beside a loop over tasks.

The rival is written as the examples of learn2learn, higher and the first ports of MAML are: one task after
another, with a copy of the network's parameters for each, and one call of autograd for each inner step. It
gets its images for nothing, while ours draws tasks, distorts images and plays the trials.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml_classification import MAMLClassificationConfig, maml_classification_learner
from rl2meta.envs.few_shot import FewShot
from rl2meta.rollout import RolloutWorker
from rl2meta.speed.suites import Suite, Workload, training
from rl2meta.tasks import sample_tasks

LOOP = "a loop over tasks"


def few_shot_suite(
    device: torch.device, *, law: FewShot | None = None, tasks: int = 16, steps: int = 1
) -> Suite:
    """Return MAML on 5-way 1-shot letters, with ten queries a task, and a loop over tasks as its rival.

    Args:
        device: the device of the environments and the learner.
        law: the tasks; None for letters.
        tasks: tasks of a meta-iteration.
        steps: inner steps.
    """
    law = law or FewShot()
    support = law.ways * law.shots
    config = MAMLClassificationConfig(episodes_per_phase=support, inner_steps=steps)
    episodes = support * (steps + 2)
    workloads = {  # torch counts the operations of a grouped convolution as if each group saw all channels
        "rl2meta": Workload(_ours(law, config, tasks, episodes, device), countable=False),
        "first order": Workload(
            _ours(law, config.model_copy(update={"first_order": True}), tasks, episodes, device),
            {"first_order": True},
            countable=False,
        ),
        LOOP: Workload(_loop(law, config, tasks, episodes, device), rival_of="rl2meta", countable=False),
    }
    setting = {"tasks": tasks, "ways": law.ways, "shots": law.shots, "inner_steps": steps}
    setting |= {"size": law.size, "filters": config.filters, "episodes": episodes}
    title = (
        f"MAML, {law.ways}-way {law.shots}-shot, {tasks} tasks × {episodes} images of {law.size}×{law.size}"
    )
    return Suite(f"{title}, 4×{config.filters} filters, {steps} inner steps", setting, workloads)


def _ours(
    law: FewShot, config: MAMLClassificationConfig, tasks: int, episodes: int, device: torch.device
) -> Callable[[], int]:
    learner = maml_classification_learner(law.observation_space, law.action_space, config, device)
    return training(learner, law, RolloutWorker(law, device), tasks, episodes)


def _loop(
    law: FewShot, config: MAMLClassificationConfig, tasks: int, episodes: int, device: torch.device
) -> Callable[[], int]:
    """Return a meta-iteration on the same images again and again; only the speed matters."""
    learner = maml_classification_learner(law.observation_space, law.action_space, config, device)
    drawn = sample_tasks(law, tasks, 0, "train")
    trial = RolloutWorker(law, device).run(learner.agent, drawn, episodes, 0)
    rows = [learner.inner.objective.rows(phase, config.episodes_per_phase) for phase in trial.phases]
    queries = [torch.cat([getattr(r, name) for r in rows[-2:]], dim=1) for name in ("observation", "label")]
    shape = (-1, law.channels, law.size, law.size)
    network = of_layers(ImageClassifier(shape[1:], law.ways, config.filters, batch_norm=True)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)

    def unit() -> int:
        optimizer.zero_grad()
        for task in range(tasks):
            x, y = rows[0].observation[task].reshape(shape), rows[0].label[task]
            weights = adapted(network, x, y, config.inner_learning_rates[0], config.inner_steps or 1)
            logits = functional_call(network, weights, (queries[0][task].reshape(shape),))
            loss = nn.functional.cross_entropy(logits, queries[1][task]) / tasks
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return tasks * episodes

    return unit


def adapted(network: nn.Module, x: Tensor, y: Tensor, rate: float, steps: int) -> dict[str, Tensor]:
    """Return the weights of one task after inner steps on images ``x`` and classes ``y``."""
    weights = {name: value.clone() for name, value in network.named_parameters()}
    for _ in range(steps):
        loss = nn.functional.cross_entropy(functional_call(network, weights, (x,)), y)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        pairs = zip(weights.items(), gradients, strict=True)
        weights = {name: value - rate * gradient for (name, value), gradient in pairs}
    return weights


def of_layers(network: ImageClassifier) -> nn.Sequential:
    """Return the same network of torch's own layers, for one task at a time."""
    layers: list[nn.Module] = []
    for convolution in network.convolutions:
        norm = nn.BatchNorm2d(convolution.out_channels, track_running_stats=False)  # type: ignore[arg-type]
        layers += [convolution, norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), network.head)
