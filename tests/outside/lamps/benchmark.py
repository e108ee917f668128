"""As Meta-World has them: classes of environments, and tasks that nobody looks into."""

import pickle
import random
from typing import Any, NamedTuple

from lamps.envs import SWITCHES, Lamp


class Task(NamedTuple):
    env_name: str
    data: bytes


class TaskedLamp(Lamp):
    """Cannot be reset before it has a task."""

    def set_task(self, task: Task) -> None:
        self.switch = pickle.loads(task.data)

    def reset(self, **kwargs: Any) -> Any:
        assert self.switch >= 0
        return super().reset(**kwargs)

    def __init__(self) -> None:
        super().__init__(-1)


class Brighter(TaskedLamp):
    pass


class LampBenchmark:
    """Two rooms of three switches for training, and the fourth switch for tests."""

    def __init__(self, seed: int | None = None) -> None:
        rng = random.Random(seed)
        self.train_classes = {"lamp": TaskedLamp, "brighter": Brighter}
        self.test_classes = {"lamp": TaskedLamp}
        self.train_tasks = [
            Task(name, pickle.dumps(rng.randrange(SWITCHES - 1)))
            for name in self.train_classes
            for _ in range(9)
        ]
        self.test_tasks = [Task("lamp", pickle.dumps(SWITCHES - 1))]
