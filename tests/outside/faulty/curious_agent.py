"""An agent that takes what is not public."""

from dataclasses import replace

import faulty_agents

import rl2meta.networks
from rl2meta.commands.options import Device
from rl2meta.spaces import _one_hot


class Config(faulty_agents.Config):
    """Its settings."""


KIND = replace(faulty_agents.GOOD, config=Config)
TAKEN = Device, _one_hot, rl2meta.networks._LOG_ROOT_TAU
