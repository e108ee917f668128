"""N-way K-shot classification with episodes of one step: see an image, guess its class, then get it."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import gymnasium as gym
import numpy as np
import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.envs.image_pools import Pool, pool_of
from rl2meta.errors import UserError
from rl2meta.history import History
from rl2meta.models import LabelledExamples
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
_Share = Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)]
Source = Literal["glyphs", "image_folders", "digits"]


@dataclass(frozen=True, config=_STRICT)
class FewShot:
    """N classes that the agent must tell apart after K examples of each; training never has test classes.

    An episode is one image: the action is a guess of its class, a number below ``ways``, and the reward is 1
    if it is correct, else 0. The step's ``target`` is the correct number. The first ways × shots episodes of
    a trial are the support, from which the agent learns. The queries follow, queries × ways images that
    are not in the support; after the last of them, the first comes again. Every round of ``ways`` episodes
    has each class once, in random order.

    A task is a draw of classes, of their numbers, and of the images, each with its own small distortion
    about its centre: a rotation, a shear, a scale of each axis and a shift, all uniform. A trial that is
    repeated has the same images.

    The agents that learn from examples, such as ``maml_classification``, need phases of ways × shots
    episodes.

    Sources: ``glyphs`` are the letters of ``rl2meta.envs.glyphs``, where Greek, Armenian and Georgian are
    held out; ``digits`` are those of scikit-learn, where 5 to 9 are held out; ``image_folders`` has one
    folder for each class, or folders of such folders, which are then held out as a whole.

    Source: Vinyals et al. 2016 (arXiv 1606.04080), section 4.1; Finn et al. 2017 (arXiv 1703.03400), 5.2.

    Raises:
        pydantic.ValidationError: for numbers out of range, or folders without a path.
    """

    steady: ClassVar[bool] = False  # each episode shows the next example

    source: Annotated[Source, Field(description="where the images come from")] = "glyphs"
    path: Annotated[str | None, Field(description="of image_folders: the folder with the classes")] = None
    ways: Annotated[int, Field(ge=2, le=1000, description="N, number of classes of a task")] = 5
    shots: Annotated[int, Field(ge=1, le=1000, description="K, examples of each class in the support")] = 1
    queries: Annotated[int, Field(ge=1, le=1000, description="examples of each class to be recognised")] = 5
    size: Annotated[int, Field(ge=4, le=256, description="height and width of an image, in pixels")] = 14
    channels: Annotated[Literal[1, 3], Field(description="1 for grey, 3 for colours")] = 1
    rotations: Annotated[bool, Field(description="a class turned by 90°, 180°, 270° is another class")] = (
        False
    )
    turn: Annotated[_Share, Field(description="largest random rotation, in quarters of a turn")] = 1 / 6
    shear: Annotated[_Share, Field(description="largest random shear")] = 0.3
    stretch: Annotated[_Share, Field(description="largest random change of scale of each axis")] = 0.2
    shift: Annotated[_Share, Field(description="largest random shift, in halves of an image")] = 0.2
    test_fraction: Annotated[
        float, Field(gt=0, lt=1, description="of image_folders: share of classes or groups that is held out")
    ] = 0.3

    @model_validator(mode="after")
    def _has_a_path(self) -> Self:
        if (self.source == "image_folders") != (self.path is not None):
            raise ValueError(
                f"a path if and only if source is image_folders (here {self.source}, {self.path})"
            )
        return self

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The image, from 0 (no ink) to 1."""
        return gym.spaces.Box(0.0, 1.0, (self.channels, self.size, self.size), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The guess of the class."""
        return gym.spaces.Discrete(self.ways)

    @property
    def horizon(self) -> int:
        """The number of steps in an episode: one image."""
        return 1

    @property
    def model(self) -> LabelledExamples:
        """The model of the tasks."""
        return LabelledExamples(self.ways, self.shots)

    def pool(self) -> Pool:
        """Return the images by class; not to be changed in place."""
        return pool_of(self.source, self.path, self.size, self.channels, self.test_fraction)

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw tasks of the classes of a split.

        The parameters are the class of each number, ``classes`` [N, ways]; and of each example the number
        ``label``, the place ``image`` of its picture, and its distortion ``jitter`` in −1..1, [N, examples],
        [N, examples] and [N, examples, 6].

        Raises:
            UserError: if there are too few classes, or images of a class.
        """
        pool, each = self.pool(), self.shots + self.queries
        kinds = _known(self, pool, split)
        chosen = kinds[_places(num_tasks, len(kinds), self.ways, generator)]  # [N, ways]
        drawing = chosen % len(pool.first)  # [N, ways], the class without its rotation
        images = _images(pool, drawing, each, generator)  # [N, ways, each]
        order = torch.rand(num_tasks, each, self.ways, generator=generator).argsort(dim=2)  # rounds
        image = images.mT.gather(2, order)  # [N, each, ways]: the image of round k of each class, reordered
        jitter = 2 * torch.rand(num_tasks, each * self.ways, 6, generator=generator) - 1
        flat = {"label": order.flatten(1), "image": image.flatten(1), "jitter": jitter}
        return TensorTasks({"classes": chosen, **flat})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` trials that step together on ``device``."""
        return TensorVectorEnv(self, _Examples(self, device), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return 1, [num_tasks]: an agent that knows the classes makes no error."""
        return torch.ones(len(tasks))

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: nobody knows the law of images."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the support, the queries so far with the guesses, and the image of now."""
        from rl2meta.envs.few_shot_pictures import draw_examples

        draw_examples(self, figure, tasks, row, history)


class _Examples:
    """The dynamics. A state is the number of an example in its task, and its pixels, [B, 1 + pixels]."""

    def __init__(self, law: FewShot, device: torch.device) -> None:
        pool = law.pool()
        self._law, self._images = law, pool.images.to(device)
        self._num_classes = len(pool.first)

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        support, queries = self._law.ways * self._law.shots, self._law.ways * self._law.queries
        example = torch.where(episode < support, episode, support + (episode - support) % queries)  # [B]
        pixels = self._pixels(tasks, example.unsqueeze(1)).flatten(1)  # [B, pixels]
        return torch.cat([example.unsqueeze(1).to(pixels.dtype), pixels], dim=1)  # [B, 1 + pixels]

    def observe(self, state: Tensor) -> Tensor:
        return state[:, 1:].reshape(-1, *self._images.shape[1:])  # [B, channels, size, size]

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        example = state[:, :1].long()  # [B, 1]
        label = tasks.parameters["label"].gather(1, example)  # [B, 1]
        regrets = torch.ones(len(label), self._law.ways, device=label.device).scatter(1, label, 0.0)
        regret = regrets.gather(1, action.long().unsqueeze(1)).squeeze(1)  # [B]
        return Transition(
            state=state,
            reward=1 - regret,
            terminated=torch.ones_like(regret, dtype=torch.bool),
            truth={
                "expected_reward": 1 - regret,
                "regret": regret,
                "regrets": regrets,
                "target": label.squeeze(1),
                "class": tasks.parameters["classes"].gather(1, label).squeeze(1),
                "support": example.squeeze(1) < self._law.ways * self._law.shots,
            },
        )

    def _pixels(self, tasks: TensorTasks, example: Tensor) -> Tensor:
        """Return the distorted images of examples [B, 1], float [B, channels, size, size]."""
        known = tasks.parameters
        images = self._images[known["image"].gather(1, example).squeeze(1)].float() / 255
        jitter = known["jitter"].gather(1, example.unsqueeze(2).expand(-1, -1, 6)).squeeze(1)  # [B, 6]
        kind = known["classes"].gather(1, known["label"].gather(1, example)).squeeze(1)  # [B]
        maps = distortions(self._law, jitter, kind // self._num_classes)
        return warped(images, maps)


def distortions(law: FewShot, jitter: Tensor, quarters: Tensor) -> Tensor:
    """Return where each pixel of a distorted image comes from: affine maps [B, 2, 3].

        place = R(angle) · [[1 / (1 + sx), shear], [0, 1 / (1 + sy)]] · pixel + shift

    Args:
        law: has the sizes of the distortions.
        jitter: in −1..1, [B, 6].
        quarters: the rotation of the class in quarters of a turn, [B].
    """
    angle = (quarters + law.turn * jitter[:, 0]) * (math.pi / 2)  # [B]
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)  # [B, 2, 2]
    across, down = 1 / (1 + law.stretch * jitter[:, 1]), 1 / (1 + law.stretch * jitter[:, 2])  # [B]
    rows = torch.stack([across, law.shear * jitter[:, 3]], 1), torch.stack([torch.zeros_like(down), down], 1)
    shift = law.shift * jitter[:, 4:].unsqueeze(2)  # [B, 2, 1]
    return torch.cat([rotation @ torch.stack(rows, 1), shift], dim=2)


def warped(images: Tensor, maps: Tensor) -> Tensor:
    """Return images [B, channels, size, size] under affine maps; what comes from outside is empty."""
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _known(law: FewShot, pool: Pool, split: Split) -> Tensor:
    """Return the classes of a split; with rotations, class c turned by r quarters is c + r × classes."""
    classes, each = pool.classes(split), law.shots + law.queries
    kinds = torch.cat([classes + r * len(pool.first) for r in range(4 if law.rotations else 1)])
    if len(kinds) < law.ways:
        raise UserError(
            f"distribution.ways: expected at most the {len(kinds)} {split} classes of {law.source}, got "
            f"{law.ways}; choose fewer ways"
        )
    place = int(pool.numbers[classes].argmin())
    if (fewest := int(pool.numbers[classes[place]])) < each:
        raise UserError(
            f"distribution.queries: expected shots + queries of at most the {fewest} images of the class "
            f"{pool.names[int(classes[place])]!r}, got {each}; choose fewer"
        )
    return kinds


def _images(pool: Pool, classes: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """Return the places of ``each`` different images of every class, [N, ways, each]."""
    widest = int(pool.numbers.max())
    key = torch.rand(*classes.shape, widest, generator=generator)  # [N, ways, widest]
    missing = torch.arange(widest) >= pool.numbers[classes].unsqueeze(2)
    chosen: Tensor = key.masked_fill(missing, -1.0).topk(each, dim=2).indices
    return pool.first[classes].unsqueeze(2) + chosen


def _places(num_tasks: int, known: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return ``wanted`` different places below ``known`` for each task, [N, wanted]."""
    places: Tensor = torch.rand(num_tasks, known, generator=generator).topk(wanted, dim=1).indices
    return places
