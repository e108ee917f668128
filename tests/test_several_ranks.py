"""Several processes train and judge together: the bits of one process, and no rank that waits for ever.

The ranks are real processes with real sockets. They are forked from a server that has imported torch once, so
each takes milliseconds to start; one test goes through ``torchrun``.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rl2meta
from rl2meta import UserError
from rl2meta.experiments.components import make_learner, make_worker, read_config
from rl2meta.randomness import generator
from rl2meta.ranks import TIMEOUT, Ranks, joined
from rl2meta.shards import ALONE, Shards
from rl2meta.tasks import sample_tasks
from rl2meta.training import ShardedLearner
from rl2meta.trial import Trajectory, Trial, over_fields

SMALL = ["device=cpu", "training.shards=4", "training.updates=20", "training.trials_per_update=16"]
KINDS = {
    "rl2": ("smoke", ["agent.reward_units=measured"]),
    "all actions": ("smoke", ["agent.surrogate=all_actions", "agent.critic=privileged"]),
    "maml_trpo": ("maml_bandit", ["agent.hidden_sizes=[8]", "agent.line_searches=4"]),
    "maml_regression": ("maml_sinusoid", ["agent.hidden_sizes=[8]"]),
}
"""What to train: a config and settings beside ``SMALL``."""


def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl2meta.experiments.evaluations", "tests.ranks_at_work"])
    return context
