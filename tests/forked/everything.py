"""Imports what the command line would import otherwise, which takes seconds; forks come after it."""

import importlib

import torch

for _name in (
    *("stable_baselines3.common.logger", "torch.distributed", "torch.utils.tensorboard", "matplotlib.figure"),
    *("rl2meta.cli", "rl2meta.commands.train", "rl2meta.experiments.evaluations", "rl2meta.experiments.job"),
    *("rl2meta.agents.rl2", "rl2meta.agents.maml_trpo", "rl2meta.agents.maml_regression"),
):
    importlib.import_module(_name)
torch.set_num_threads(1)
# what the first use imports
torch.func.grad(lambda x: torch.func.vmap(torch.sin)(x).sum())(torch.ones(2))
