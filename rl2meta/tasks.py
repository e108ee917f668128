"""Task distributions, batches of tasks, and the environments of these tasks.

A *task* is one bandit or one MDP. The law (``TaskDistribution``), the draw (``Tasks``) and the state
(``TaskVectorEnv``) are three objects, so the held-out tasks never depend on the random draws of training.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.randomness import generator

Split = Literal["train", "test"]
Index = slice | Tensor


@runtime_checkable
class Tasks(Protocol):
    """A batch of tasks: data, without behaviour or randomness."""

    def __len__(self) -> int:
        """Return the number of tasks."""
        ...

    def __getitem__(self, index: Index) -> Self:
        """Return the tasks at ``index``: a slice, or a tensor of positions (repeats allowed)."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the same tasks on ``device``."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the tasks as data for JSON."""
        ...

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return exactly the tasks of which ``to_dict`` made ``data``."""
        ...


@dataclass(frozen=True)
class TensorTasks:
    """Tasks whose parameters are tensors with the tasks along the first axis.

    Attributes:
        parameters: name -> tensor [num_tasks, ...], all with the same number of tasks and on the same device.
    """

    parameters: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.parameters.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"expected parameters of one length (the number of tasks), got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __getitem__(self, index: Index) -> Self:
        return type(self)({name: tensor[index] for name, tensor in self.parameters.items()})

    def to(self, device: torch.device) -> Self:
        """Return the same tasks on ``device``."""
        return type(self)({name: tensor.to(device) for name, tensor in self.parameters.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return ``{name: {"dtype", "shape", "values"}}``; JSON numbers represent every float32 exactly."""
        return {name: _tensor_to_dict(tensor) for name, tensor in self.parameters.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the tasks of which ``to_dict`` made ``data``, on the CPU."""
        return cls({name: _tensor_from_dict(entry) for name, entry in data.items()})


@dataclass(frozen=True)
class MappingTasks:
    """Tasks of single environments: each is a mapping from names to values.

    Attributes:
        entries: one mapping per task, with numbers, strings, booleans, None, NumPy arrays, and lists and
            mappings of them.

    Raises:
        ValueError: for a task that is not a mapping, or holds other values.
    """

    entries: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        for task in self.entries:
            if not isinstance(task, Mapping):
                raise ValueError(f"expected a mapping for a task, got {type(task).__name__} {task!r:.80}")
            _encoded(task)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Index) -> Self:
        if isinstance(index, slice):
            return type(self)(self.entries[index])
        return type(self)(tuple(self.entries[i] for i in torch.arange(len(self))[index.cpu()].tolist()))

    def to(self, device: torch.device) -> Self:
        """Return the same tasks: they are always in main memory."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"tasks": [...]}``; JSON numbers represent floats exactly."""
        return {"tasks": [_encoded(task) for task in self.entries]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the tasks of which ``to_dict`` made ``data``."""
        return cls(tuple(_decoded(task) for task in data["tasks"]))


class TaskVectorEnv(Protocol):
    """Many environments that step together, each on its own task, with tensors for actions and observations.

    Gymnasium's ``reset`` sets the tasks: ``reset(seed=..., options={"tasks": tasks})``. ``reset()`` without
    arguments keeps the tasks, ``reset(seed=...)`` without tasks draws them, and ``options["tasks"]`` always
    wins. ``options["episodes_before"]``, int64 [num_envs], is the number of episodes of the trial before the
    one that starts; families whose tasks never change may ignore it. ``options["episodes_wanted"]``, an int,
    is the number of episodes until the next reset; environments may idle after them. When an episode ends,
    the next begins in the same step on the *same* task (Gymnasium's same-step autoreset). ``info`` has the
    same keys at every step: ``final_obs`` (the observation before a restart) and, if the family knows them,
    ``expected_reward`` and ``regret`` (>= 0), each [num_envs]; ``regrets``, the regret of every action of a
    Discrete space in the state before the step, [num_envs, A], which is not to be changed in place; and
    ``target``, the correct action, [num_envs, ...].
    """

    num_envs: int
    device: torch.device

    @property
    def finished(self) -> bool:
        """Whether every environment has completed the wanted episodes and idles.

        Always false if the answer needs a read-back from the device.
        """
        ...

    def close(self) -> None:
        """Release all resources."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every environment; return the first observations, [num_envs, ...], and info."""
        ...

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all environments; return observation, reward, terminated, truncated, [num_envs, ...], info."""
        ...


class TaskDistribution(Protocol):
    """The law of the tasks; it holds no random generator and no state.

    It may also have ``model``, one of ``rl2meta.models``, which describes its tasks; ``models.model_of``
    reads it. References are defined on models; without a model, the only reference is a random agent. It may
    have the methods ``draw`` and ``describe`` of ``rl2meta.rendering``, for pictures and text of its tasks.
    """

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The observations of one environment; the same for every task."""
        ...

    @property
    def action_space(self) -> gym.Space[Any]:
        """The actions of one environment; the same for every task."""
        ...

    @property
    def horizon(self) -> int:
        """Maximum number of steps in an episode."""
        ...

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> Tasks:
        """Draw tasks with a CPU generator, so they are the same for every device.

        A family with a finite number of tasks partitions them by ``split``.
        """
        ...

    def make_envs(self, num_envs: int, device: torch.device) -> TaskVectorEnv:
        """Return ``num_envs`` environments that step together on ``device``."""
        ...

    def optimal_return(self, tasks: Tasks) -> Tensor | None:
        """Return the best expected return of one episode if the task is known, [num_tasks]; or None."""
        ...

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return the best expected return of a trial for an agent that knows the law but not the task.

        It is a mean over tasks; None if unknown.
        """
        ...


def sample_tasks(distribution: TaskDistribution, num_tasks: int, seed: int, split: Split) -> Tasks:
    """Draw ``num_tasks`` tasks; train and test have different random streams under the same seed.

    Raises:
        ValueError: for an unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"expected a split of {get_args(Split)}, got {split!r}")
    return distribution.sample(num_tasks, generator(seed, "tasks", split), split)


def refuse_other_shapes(actions: Tensor, num_envs: int, space: gym.Space[Any]) -> None:
    """Raise ValueError unless there is one action of ``space`` for each environment.

    Broadcasting would hide the mistake.
    """
    expected = (num_envs, *(space.shape or ()))
    if actions.shape != expected:
        raise ValueError(
            f"expected actions of shape {expected}, one per environment, got {tuple(actions.shape)}"
        )


def shares_tasks(
    trained: TaskDistribution, judged: TaskDistribution, seed: int, num_tasks: int = 512
) -> bool:
    """Return whether test tasks of ``judged`` occur among training tasks of ``trained``.

    This happens in families with too few tasks to hold any out, and reports must say so. The function
    compares ``num_tasks`` draws of both.
    """
    train, test = (
        sample_tasks(trained, num_tasks, seed, "train"),
        sample_tasks(judged, num_tasks, seed, "test"),
    )
    return not _texts(train).isdisjoint(_texts(test))


def _texts(tasks: Tasks) -> set[str]:
    return {json.dumps(tasks[i : i + 1].to_dict(), sort_keys=True) for i in range(len(tasks))}


def _tensor_to_dict(tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "values": tensor.flatten().tolist()}


def _tensor_from_dict(entry: Mapping[str, Any]) -> Tensor:
    return torch.tensor(entry["values"], dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])


_ARRAY = "__array__"


def _encoded(value: Any) -> Any:
    """Return a value of a task as data for JSON."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {
            _ARRAY: {"dtype": str(value.dtype), "shape": list(value.shape), "values": value.ravel().tolist()}
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {_key(name): _encoded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        "expected a task of numbers, strings, booleans, None, NumPy arrays, lists and mappings, got "
        f"{type(value).__name__} {value!r:.80}; put numbers or names into a task, and build it in make_env"
    )


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"expected strings as the names in a task, got {type(name).__name__} {name!r:.80}")
    return name


def _decoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {_ARRAY}:
            array = value[_ARRAY]
            return np.array(array["values"], dtype=array["dtype"]).reshape(array["shape"])
        return {name: _decoded(part) for name, part in value.items()}
    return [_decoded(part) for part in value] if isinstance(value, list) else value
