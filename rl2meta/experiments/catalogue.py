"""The built-in agents, families and configs by name, each with one line. Importing this loads no torch."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import NamedTuple

FAMILY_GROUP = "rl2meta.task_distributions"
"""The entry-point group in which a package offers families: ``name = my_package.my_module:MyTasks``."""
AGENT_GROUP = "rl2meta.agents"
"""The entry-point group in which a package offers agents: ``name = my_package.my_module:MY_AGENT``."""


class Entry(NamedTuple):
    """A built-in agent or family.

    Attributes:
        path: ``module:name``.
        line: one line of description; a test compares it with the line in the module.
    """

    path: str
    line: str


AGENTS: Mapping[str, Entry] = {
    "rl2": Entry(
        "rl2meta.agents.rl2:RL2",
        "a core whose hidden state learns within the trial, trained by PPO on whole trials",
    ),
    "maml_trpo": Entry(
        "rl2meta.agents.maml_trpo:MAML_TRPO",
        "initial weights that adapt by a few policy-gradient steps, learnt by trust-region steps",
    ),
    "maml_regression": Entry(
        "rl2meta.agents.maml_regression:MAML_REGRESSION",
        "initial weights that adapt by a few gradient steps on squared errors, learnt by Adam",
    ),
    "learned_optimiser": Entry(
        "rl2meta.agents.learned_optimiser:LEARNED_OPTIMISER",
        "a rule of gradient steps, such as an LSTM, that trains networks from random initial weights",
    ),
    "maml_classification": Entry(
        "rl2meta.agents.maml_classification:MAML_CLASSIFICATION",
        "initial weights that adapt by a few gradient steps on cross-entropies, learnt by Adam",
    ),
    "pretrained_classification": Entry(
        "rl2meta.agents.pretrained_classification:PRETRAINED_CLASSIFICATION",
        "one network for all training classes at once, fine-tuned on a task or asked for nearest features",
    ),
    "sequence_classification": Entry(
        "rl2meta.agents.sequence_classification:SEQUENCE_CLASSIFICATION",
        "a core that reads images with their classes, and then tells the class of an image; supervised",
    ),
    "reptile": Entry(
        "rl2meta.agents.reptile:REPTILE",
        "initial weights near those that a few gradient steps lead to, for any loss; learnt by first order",
    ),
    "mlsh": Entry(
        "rl2meta.agents.mlsh:MLSH",
        "sub-policies that all tasks share, and a new master for each task that learns to choose among them",
    ),
}

DISTRIBUTIONS: Mapping[str, Entry] = {
    "bernoulli_bandits": Entry(
        "rl2meta.envs.bandits:BernoulliBandits",
        "Bandits whose arms pay 1 with probability pᵢ ~ U[low, high], independently, else 0.",
    ),
    "gaussian_bandits": Entry(
        "rl2meta.envs.bandits:GaussianBandits",
        "Bandits whose arms pay N(μᵢ, 1) with μᵢ ~ N(mean, 1), independently.",
    ),
    "dependent_bandits": Entry(
        "rl2meta.envs.dependent_bandits:DependentBandits",
        "Two Bernoulli arms that pay 1 with the probabilities p₁ and p₂ = 1 − p₁, else 0.",
    ),
    "two_step": Entry(
        "rl2meta.envs.two_step:TwoStep",
        "A first action leads to one of two sides by chance, and one side pays more often than the other.",
    ),
    "tabular_mdps": Entry(
        "rl2meta.envs.tabular:TabularMDPs",
        "MDPs with mean rewards μ(s, a) ~ N(m, d²) and P(· | s, a) ~ Dirichlet(α, …, α), all independent.",
    ),
    "dark_rooms": Entry(
        "rl2meta.envs.mazes:DarkRooms",
        "Mazes with a hidden goal cell: a step that ends on the goal pays 1, any other step pays 0.",
    ),
    "key_to_door": Entry(
        "rl2meta.envs.mazes:KeyToDoor",
        "Mazes with a hidden key and a hidden door: the key pays 1 once, then reaching the door pays 1.",
    ),
    "moving_bandits": Entry(
        "rl2meta.envs.moving_bandits:MovingBandits",
        "Walkers that see two points in a square, one of which pays 1 for each step that ends near it.",
    ),
    "four_rooms": Entry(
        "rl2meta.envs.four_rooms:FourRooms",
        "Four rooms with slippery floors and a hidden goal cell: a step that ends on the goal pays 1.",
    ),
    "point_navigation": Entry(
        "rl2meta.envs.navigation:PointNavigation",
        "Points that start at (0, 0); the reward is minus the distance to a hidden goal "
        "g ~ U[−side/2, side/2]².",
    ),
    "sinusoids": Entry(
        "rl2meta.envs.sinusoids:Sinusoids",
        "Curves y = A sin(x − φ); the agent must learn the amplitude A and the phase φ from a few points.",
    ),
    "quadratics": Entry(
        "rl2meta.envs.quadratics:Quadratics",
        "Quadratics L(θ) = ‖Wθ − y‖² with p × p matrices W and vectors y of random numbers.",
    ),
    "digits": Entry(
        "rl2meta.envs.digits:Digits",
        "Handwritten digits of 8 × 8 pixels, drawn with replacement; all tasks have the same 1,797 pictures.",
    ),
    "few_shot": Entry(
        "rl2meta.envs.few_shot:FewShot",
        "N classes that the agent must tell apart after K examples of each; training never has test classes.",
    ),
    "gymnasium": Entry(
        "rl2meta.envs.gym_tasks:GymnasiumTasks",
        "The environments of one Gymnasium id, with parameters drawn for every task.",
    ),
    "set_task_envs": Entry(
        "rl2meta.envs.task_conventions:SetTaskEnvs",
        "Environments with ``sample_tasks(num_tasks)`` and ``set_task(task)``, as in learn2learn and garage.",
    ),
    "benchmark_tasks": Entry(
        "rl2meta.envs.task_conventions:BenchmarkTasks",
        "The tasks of a benchmark object that follows Meta-World's convention, such as ML1, ML10 and ML45.",
    ),
    "cheetah_directions": Entry(
        "rl2meta.envs.locomotion:CheetahDirections",
        "Half-cheetahs that must run forward (d = 1) or backward (d = −1): r = d·v − 0.05·‖a‖².",
    ),
    "cheetah_velocities": Entry(
        "rl2meta.envs.locomotion:CheetahVelocities",
        "Half-cheetahs that must run at a speed g ~ U[low, high]: r = −|v − g| − 0.05·‖a‖².",
    ),
    "ant_directions": Entry(
        "rl2meta.envs.locomotion:AntDirections",
        "Ants that must run forward (d = 1) or backward (d = −1): r = d·v − costs + 0.05.",
    ),
    "ant_velocities": Entry(
        "rl2meta.envs.locomotion:AntVelocities",
        "Ants that must run at a speed g ~ U[low, high]: r = −|v − g| + 1 − costs + 0.05.",
    ),
}


def offered(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of installed packages in a group, by name."""
    return {point.name: point for point in entry_points(group=group)}


def shipped_configs() -> dict[str, str]:
    """Return the text of each shipped config, by name."""
    folder = files("rl2meta.configs")
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda p: p.name)
    return {path.name.removesuffix(".yaml"): path.read_text(encoding="utf-8") for path in paths}


def shipped_papers() -> dict[str, str]:
    """Return the text of each published table's file, by name."""
    folder = files("rl2meta.configs").joinpath("papers")
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda p: p.name)
    return {path.name.removesuffix(".yaml"): path.read_text(encoding="utf-8") for path in paths}


def list_agents() -> dict[str, str]:
    """Return the agents for ``agent.name``, each with one line, including those of installed packages."""
    return _listed(AGENTS, AGENT_GROUP)


def list_distributions() -> dict[str, str]:
    """Return the families for ``distribution.name``, each with one line, including those of packages."""
    return _listed(DISTRIBUTIONS, FAMILY_GROUP)


def list_configs() -> dict[str, str]:
    """Return the shipped configs, each with one line."""
    return {name: first_line(text) for name, text in shipped_configs().items()}


def first_line(text: str) -> str:
    """Return the first line of a file's text, without the sign of a comment."""
    return text.split("\n")[0].lstrip("# ")


def _listed(built_in: Mapping[str, Entry], group: str) -> dict[str, str]:
    found = {name: f"offered by a package as {point.value}" for name, point in offered(group).items()}
    return found | {name: entry.line for name, entry in built_in.items()}
