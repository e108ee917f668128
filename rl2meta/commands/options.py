"""Options of the command line that several commands share, or that have long help texts."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Scratch = Annotated[
    int, typer.Option(help="Number of tasks on which SB3's PPO also learns from scratch, each on its own.")
]
Limit = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Time for each check; one that takes longer ends with a note, and the next one begins.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME:KEY=VALUE",
        help="A setting of the run in folder NAME that may change after training, such as "
        "maml:agent.inner_learning_rates=[0.2,0.1]; may be given several times.",
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE",
        help="A module that a run folder from elsewhere may import, and so run; may be given several times. "
        "Folders that you trained need none.",
    ),
]
Suites = Annotated[
    str,
    typer.Option(
        help="Suites to measure, comma-separated: env, rollout, train (RL²), maml (MAML-TRPO), references, "
        "workers, learning (seconds of training to a score)."
    ),
]
LearningConfigs = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        metavar="NAME",
        help="A config that learning trains, such as rl2_bandit; repeat the option for several. Default: all "
        "that have a stated score.",
    ),
]
Search = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE|KEY=RANGE",
        help="What to vary: a YAML file, a shipped search space (rl2, maml_trpo), or a setting with its "
        "range, such as agent.learning_rate=1e-4..1e-2[log], agent.epochs=1..6[int] or "
        "agent.clip_range=[0.1,0.2]; "
        "repeat the option for several. Default: the shipped search space of the config's agent.",
    ),
]
