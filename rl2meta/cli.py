"""The command line. Heavy imports wait until a command needs them, so that help answers at once."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rl2meta import __version__
from rl2meta.commands.options import Device, LearningConfigs, Scratch, Settings, Suites
from rl2meta.errors import UserError
from rl2meta.memory import keep_memory

app = typer.Typer(
    name="rl2meta",
    help="Train agents that learn to learn, and judge them on tasks they have never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a user's mistake ends with its message and exit code 2, without a traceback."""
    # Read when torch loads: how long an idle thread spins before it sleeps. Never spinning costs most of the
    # speed on an idle machine, long spinning on a busy one (docs/results.md has figures).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    keep_memory()
    sys.path.append(os.getcwd())  # so that modules of the folder one works in are found, behind all others
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not under a test's capture
            stream.reconfigure(errors="replace")  # an ASCII terminal shows ? for ±, and no traceback
    from rl2meta.commands.signals import Interrupted, handled, raise_interrupted

    try:
        with handled(raise_interrupted):
            app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        typer.echo(
            f"error: expected a size that fits into memory; lower the sizes ({error!s:.200})", err=True
        )
        sys.exit(2)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        sys.exit(stop.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rl2meta {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train agents that learn to learn, and judge them on tasks they have never seen."""


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG", help="A YAML file, or the name of a shipped config (see 'rl2meta list')."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as training.updates=100."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where everything about the run goes (required); new, unless resumed."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
) -> None:
    """Train an agent, such as: rl2meta train rl2_bandit seed=1 --run-dir runs/first.

    Ctrl-C and SIGTERM save, and say how to go on.
    """
    from rl2meta.commands.train import resume_run, start_run

    if run_dir is None:
        raise UserError("--run-dir: expected a folder for the run, got none; add --run-dir runs/NAME")
    if resume and config is not None and "=" in config:
        overrides, config = [config, *(overrides or [])], None
    if resume:
        code = resume_run(run_dir, config, overrides or [])
    elif config is None:
        raise UserError("CONFIG: expected a YAML file or a shipped config's name; see 'rl2meta list'")
    else:
        code = start_run(config, overrides or [], run_dir)
    raise typer.Exit(code)


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder of a trained agent.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Judge it on other tasks than it was trained on, such as distribution.reward_mean=0, in "
            "longer trials, evaluation.episodes_per_trial=20, or with what its kind lets change after "
            "training, agent.KEY=VALUE.",
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="Held-out tasks; the config's number if not given.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which held-out tasks; the config's if not given.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="References, comma-separated, or 'all' or 'none'; the config's if not given."),
    ] = None,
    scratch: Scratch = 0,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the results; DIR/evaluation[_N] if not given.")
    ] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; the config's if not given.")] = None,
) -> None:
    """Judge a trained agent by its regret on held-out tasks, beside references and exact ceilings."""
    from rl2meta.commands.evaluate import evaluate_run

    evaluate_run(
        run_dir,
        overrides or [],
        tasks=tasks,
        seed=seed,
        against=against,
        scratch=scratch,
        out=out,
        device=device,
        threads=threads,
    )


@app.command()
def compare(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Run folders on one task law; differences are to the first of them."
        ),
    ],
    against: Annotated[str, typer.Option(help="References, comma-separated, or 'all' or 'none'.")] = "all",
    tasks: Annotated[
        int | None, typer.Option(help="Held-out tasks; the first run's number if not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Which held-out tasks; the first run's if not given.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes in a trial; the longest of the runs' if not given.")
    ] = None,
    scratch: Scratch = 0,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for the results; compare-NAME1-NAME2[_N] beside the first run if not given."
        ),
    ] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; the first run's if not given.")] = None,
) -> None:
    """Judge several trained agents side by side, on the same held-out tasks."""
    from rl2meta.commands.compare import compare_runs

    compare_runs(
        run_dirs,
        tasks=tasks,
        seed=seed,
        episodes=episodes,
        against=against,
        settings=settings or [],
        scratch=scratch,
        out=out,
        device=device,
        threads=threads,
    )


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="duan2016-bandits or duan2016-mdps.")],
    cells: Annotated[
        list[str] | None,
        typer.Option(metavar="CELL", help="Such as n=10,k=5; may stand several times. All if not given."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Environment steps to train each cell on, at most, such as 2e6; its config's if not given."
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="Held-out tasks of each cell; its config's number if not given.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where runs and table go and are found again; runs/TABLE if not given."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N; a run goes on where it was begun.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; one per core if not given.")] = None,
) -> None:
    """Fill a published table: train or reuse each cell, evaluate every column, and go on where it stopped."""
    from rl2meta.commands.reproduce import reproduce

    code = reproduce(
        table,
        cells=cells or [],
        budget=budget,
        tasks=tasks,
        out=out,
        device=device,
        threads=threads,
    )
    raise typer.Exit(code)


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG_OR_FAMILY",
            help="A YAML file, a shipped config, my_package.my_module:MyTasks, or a family's name.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as distribution.horizon=100."),
    ] = None,
) -> None:
    """Try out a family of tasks, and say in plain words what must change before it can be trained on.

    Such as: rl2meta check my_package.my_module:MyTasks
    """
    from rl2meta.commands.check import run_checks

    raise typer.Exit(run_checks(target, overrides or []))


@app.command("list")
def list_components() -> None:
    """List agents, task distributions, references and shipped configs."""
    from rl2meta.commands.list import print_components

    print_components()


@app.command()
def benchmark(
    suite: Suites = "train",
    seconds: Annotated[float, typer.Option(help="Seconds to measure each workload, in all.")] = 30.0,
    against: Annotated[str | None, typer.Option(help="A rival: sb3 (sb3-contrib's RecurrentPPO).")] = None,
    configs: LearningConfigs = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each config of learning; default 3.")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Precision on a GPU: float32 or tf32.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default one per core.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new JSON file to save the figures to.")] = None,
) -> None:
    """Measure the speed of every stage, or how many seconds of training reach a score (suite learning)."""
    from rl2meta.commands.benchmark import run_benchmark

    run_benchmark(
        suite=suite,
        seconds=seconds,
        against=against,
        configs=configs or [],
        seeds=seeds,
        device=device,
        precision=precision,
        threads=threads,
        out=out,
    )
