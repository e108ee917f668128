"""Options of the command line that several commands share, or that have long help texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

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
    str | None,
    typer.Option(
        help="Suites to measure, comma-separated: env, rollout, train (RL²), maml (MAML-TRPO), "
        "few_shot (MAML on images), references, workers, learning (seconds of training to a score). Default: "
        "train; with --against-commit train,rollout,maml."
    ),
]
AgainstCommit = Annotated[
    str | None,
    typer.Option(
        metavar="REV",
        help="A commit, tag or branch of the git checkout that rl2meta runs from: say if the checkout is "
        "slower than it, beyond the noise. Exit code 1 if so.",
    ),
]
History = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.md",
        help="A page that ends with the table of learning by date and commit, to which rows are added; or a "
        "new file.",
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


class Commands(TyperGroup):
    """The commands. Without ``--help`` in front of a command, nothing is there to be checked.

    To check a value, Typer loads Pydantic, which takes a quarter of the time that a help page may take. It
    does so even for a flag that was not given, unless the flag has a default.
    """

    def get_help_option(self, ctx: Any) -> Any:
        """Return ``--help`` with the default that it is not given."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option


class ShortCommand(TyperCommand):
    """A command that may stand alone: all its parameters then have their defaults, and none is checked."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, if there are any."""
        if args:
            return super().parse_args(ctx, args)
        ctx.params.update({each.name: each.get_default(ctx) for each in self.params})
        ctx.args = []
        return []


class TakesSettings(TyperCommand):
    """A command with settings KEY=VALUE: it says so to those who give a setting as an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; to the message about an option that is a setting, add how to give it."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # Click's NoSuchOption; Typer may bring a Click of its own
            option = getattr(error, "option_name", None)
            if type(error).__name__ == "NoSuchOption" and option and (setting := _setting(option, given)):
                error.message = f"No such option: {option}; settings have no dashes: {setting}"  # type: ignore[attr-defined]
                error.possibilities = None  # type: ignore[attr-defined]
            raise


def _setting(option: str, given: Sequence[str]) -> str:
    """Return ``key=value`` for an option that is the name of a setting, or nothing."""
    from rl2meta.experiments.components import known_to  # imports torch
    from rl2meta.experiments.hints import meant

    place = next((i for i, each in enumerate(given) if each.split("=")[0] == option), None)
    if place is None:  # of "-run-dir" Click says "-r"
        return ""
    _, equals, value = given[place].partition("=")
    value = value if equals else next(iter(given[place + 1 :]), "VALUE")
    key = option.lstrip("-").replace("-", "_")
    known = known_to(next((each for each in given if not each.startswith("-")), ""))
    keys = [key] if key in known else meant(key, known)
    return " or ".join(f"{each}={value}" for each in keys)
