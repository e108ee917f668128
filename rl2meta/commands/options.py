"""Options of the command line that several commands share, or that have long help texts."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Scratch = Annotated[
    int, typer.Option(help="Number of tasks on which SB3's PPO also learns from scratch, each on its own.")
]
Iqm = Annotated[bool, typer.Option("--iqm", help="Add the interquartile mean of the returns to the table.")]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Also draw which share of the returns lies above each value."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="Trainings of a group at a time; it changes no result. Default: as many as there are cores."
    ),
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
