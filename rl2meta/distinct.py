"""Which tasks of a batch are the same task: a finite family draws each of its tasks several times."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl2meta.tasks import Tasks, TensorTasks

Labels = NDArray[np.int64]


def same_tasks(tasks: Tasks) -> Labels:
    """Return a label for each task, [num_tasks]: equal exactly for tasks with equal parameters."""
    rows = _rows(tasks) if isinstance(tasks, TensorTasks) else np.array(_texts(tasks))  # [num_tasks]
    return np.unique(rows, return_inverse=True)[1].reshape(len(tasks)).astype(np.int64)


def repeated(labels: Labels) -> Labels | None:
    """Return ``labels`` if tasks repeat; None if all tasks differ, or all are one task.

    A single task says nothing about others. Then an interval can only be over the trials on it.
    """
    num_distinct = len(np.unique(labels))
    return labels if 1 < num_distinct < len(labels) else None


def _rows(tasks: TensorTasks) -> NDArray[Any]:
    """Return the parameters of each task as one value of raw bytes, [num_tasks]."""
    columns = [np.ascontiguousarray(tensor.cpu().numpy()) for tensor in tasks.parameters.values()]
    flat = [column.reshape(len(tasks), -1).view(np.uint8).reshape(len(tasks), -1) for column in columns]
    together = np.ascontiguousarray(np.concatenate(flat, axis=1))  # [num_tasks, bytes]
    return together.view(f"V{together.shape[1]}").reshape(len(tasks))


def _texts(tasks: Tasks) -> list[str]:
    return [json.dumps(tasks[i : i + 1].to_dict(), sort_keys=True) for i in range(len(tasks))]
