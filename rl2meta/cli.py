"""The command line. Slow imports wait until a command needs them, so that help appears at once."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rl2meta import __version__
from rl2meta.commands.limits import (
    current_folder,
    message_of,
    refuse_little_memory,
    refuse_ranks,
    refuse_undecoded,
)
from rl2meta.commands.options import (
    AgainstCommit,
    Commands,
    Device,
    Iqm,
    Jobs,
    LearningConfigs,
    Limit,
    Profile,
    Scratch,
    Search,
    Settings,
    ShortCommand,
    Suites,
    TakesSettings,
    Trust,
)
from rl2meta.commands.output import Output
from rl2meta.commands.signals import Interrupted, handled, raise_interrupted
from rl2meta.commands.warnings import show_warnings
from rl2meta.commands.zoo import zoo_app
from rl2meta.descriptors import fill_standard_descriptors
from rl2meta.errors import UserError
from rl2meta.memory import keep_memory

app = typer.Typer(
    name="rl2meta",
    cls=Commands,
    help="Train agents that learn to learn, and judge them on tasks they have never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a user's mistake gives its message and exit code 2, without a traceback."""
    fill_standard_descriptors()
    output = Output()
    sys.exit(output.end(_run()))


def _run() -> int:
    """Run a command; return its exit code."""
    try:
        _prepare()
        with handled(raise_interrupted):
            app()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # Click is silent about it
            return _failed(stop.__context__)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        return stop.exit_code
    except Exception as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    """Say what went wrong; only a real bug is raised again, with its traceback."""
    said = message_of(error)
    if said is None:
        raise error
    typer.echo(f"error: {said}", err=True)
    return 2


def _prepare() -> None:
    """Make this process ready for a command.

    Raises:
        UserError: for arguments that are not text, and if the current folder is gone.
    """
    # How long an idle thread spins before it sleeps; it is read when torch loads. On an idle machine, no
    # spinning makes torch much slower; on a busy machine, long spinning does (figures: docs/results.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    keep_memory()
    sys.path.append(current_folder())  # last, so that modules of it are found after all others
    refuse_undecoded(sys.argv[1:])


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rl2meta {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train agents that learn to learn, and judge them on tasks they have never seen."""
    refuse_little_memory()
    if (command := context.invoked_subcommand) not in ("train", "evaluate", "compare"):
        refuse_ranks(f"rl2meta {command}")
    show_warnings()


@app.command(cls=TakesSettings)
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
            metavar="DIR", help="The folder for all files of the run (required); a new one, unless --resume."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            "--start-from",
            metavar="RUN",
            help="Another run of the same agent, or zoo:NAME, whose weights training begins with. Tasks, "
            "trial lengths, budget and the learner's settings may differ; the network's shapes may not.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="SEEDS",
            help="Train a group: one run for each seed, such as 0-4 or 0,3,7, in DIR/seed0, DIR/seed3, ... "
            "The same command continues a group that is there.",
        ),
    ] = None,
    jobs: Jobs = None,
    trust: Trust = None,
) -> None:
    """Train an agent, such as: rl2meta train rl2_bandit seed=1 --run-dir runs/first.

    Ctrl-C and SIGTERM save a checkpoint, stop, and print how to continue.
    """
    from rl2meta.commands.train import resume_run, start_run

    if run_dir is None:
        raise UserError("--run-dir: expected a folder for the run, got none; add --run-dir runs/NAME")
    if seeds is not None or (resume and (run_dir / "group.yaml").is_file()):
        from rl2meta.commands.train_group import start_or_resume

        refuse_ranks("--seeds")
        raise typer.Exit(
            start_or_resume(config, overrides or [], seeds, run_dir, jobs, start_from, resume, trust or [])
        )
    if jobs is not None:
        raise UserError(f"--jobs: expected --seeds beside it, got --jobs {jobs} for one run; leave it out")
    if resume and start_from is not None:
        raise UserError("--from: expected a new run, got --resume; leave one of them out")
    if resume and config is not None and "=" in config:
        overrides, config = [config, *(overrides or [])], None
    if resume:
        code = resume_run(run_dir, config, overrides or [], trust or [])
    elif config is None:
        raise UserError("CONFIG: expected a YAML file or a shipped config's name; see 'rl2meta list'")
    else:
        code = start_run(config, overrides or [], run_dir, start_from, trust or [])
    raise typer.Exit(code)


@app.command()
def evaluate(
    run_dir: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a run or a group, or zoo:NAME.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings to change for the evaluation: the tasks, such as distribution.reward_mean=0; the "
            "length of a trial, evaluation.episodes_per_trial=20; agent.KEY=VALUE if the agent allows KEY to "
            "change after training.",
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="Number of held-out tasks; default: as in the config.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of these tasks; default: as in the config.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="References, comma-separated, or 'all' or 'none'; default: as in the config."),
    ] = None,
    scratch: Scratch = 0,
    iqm: Iqm = False,
    profile: Profile = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for the results; default: DIR/evaluation[_N], or zoo-NAME-evaluation[_N] here."
        ),
    ] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: as in the config.")] = None,
    trust: Trust = None,
) -> None:
    """Evaluate a trained agent on held-out tasks: its regret beside references and exact ceilings."""
    from rl2meta.commands.evaluate import evaluate_run

    evaluate_run(
        run_dir,
        overrides or [],
        tasks=tasks,
        seed=seed,
        against=against,
        scratch=scratch,
        iqm=iqm,
        profile=profile,
        out=out,
        device=device,
        threads=threads,
        trust=trust or [],
    )


@app.command()
def compare(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Folders of runs and groups with one task distribution, or zoo:NAME; differences are to the "
            "first. Runs that differ in the seed alone become a group.",
        ),
    ],
    against: Annotated[str, typer.Option(help="References, comma-separated, or 'all' or 'none'.")] = "all",
    tasks: Annotated[
        int | None, typer.Option(help="Number of held-out tasks; default: as in the first run.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of these tasks; default: the first run's.")] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes in a trial; default: the longest trial of the runs.")
    ] = None,
    scratch: Scratch = 0,
    iqm: Iqm = False,
    profile: Profile = False,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for the results; default: compare-NAME1-NAME2[_N] beside the first run."
        ),
    ] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: as in the first run.")] = None,
    trust: Trust = None,
) -> None:
    """Evaluate several trained agents side by side, on the same held-out tasks."""
    from rl2meta.commands.evaluate import compare_runs

    compare_runs(
        run_dirs,
        tasks=tasks,
        seed=seed,
        episodes=episodes,
        against=against,
        settings=settings or [],
        scratch=scratch,
        iqm=iqm,
        profile=profile,
        out=out,
        device=device,
        threads=threads,
        trust=trust or [],
    )


@app.command()
def watch(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, or zoo:NAME.")],
    task: Annotated[int, typer.Option(help="The number of the held-out task, from 0 on.")] = 0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the held-out tasks and the luck; default: as in the config.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes in the trial; default: as in an evaluation.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="A reference, or the folder of another run, on the same task with the same luck.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for watch.html and watch.gif; default: DIR/watch[_N], or zoo-NAME-watch[_N] "
            "here."
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Watch an agent through one trial, step by step: what it does, and what it believes or prefers.

    For example: rl2meta watch runs/first --task 3 --against thompson
    """
    from rl2meta.commands.watch import watch_run

    watch_run(run_dir, task=task, seed=seed, episodes=episodes, against=against, out=out, trust=trust or [])


@app.command()
def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders of runs and groups on one task distribution."),
    ],
    over: Annotated[str, typer.Option(help="The horizontal axis: steps, seconds or updates.")] = "steps",
    of: Annotated[
        str | None, typer.Option(help="The curves: regret or return; default: the regret where it is known.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="The figure; default: DIR/learning.png, or plot-NAME1-NAME2.png beside the first DIR.",
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Draw learning curves of runs and groups, such as: rl2meta plot runs/a runs/b --over seconds."""
    from rl2meta.commands.plot import plot_runs

    plot_runs(runs, over=over, of=of, out=out, trust=trust or [])


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Such as duan2016-bandits.")],
    cells: Annotated[
        list[str] | None,
        typer.Option(metavar="CELL", help="Such as n=10,k=5; may be given several times. Default: all."),
    ] = None,
    core: Annotated[
        str | None,
        typer.Option(help="The core of RL² in every cell, such as slot (duan2016-mdps); default: lstm."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Maximum number of environment steps to train a cell; default: as in its config."),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="Number of held-out tasks of each cell; default: as in its config.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder for the runs and the table, new or old; default: runs/TABLE or runs/TABLE-CORE.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N; a continued run keeps its device.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: one per core.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="SEEDS", help="Train a group for each cell, with seeds such as 0-2 or 0,3,7."),
    ] = None,
    jobs: Jobs = None,
) -> None:
    """Fill a published table: train each cell or reuse its run, then evaluate; a second call continues."""
    from rl2meta.commands.reproduce import reproduce

    code = reproduce(
        table,
        cells=cells or [],
        core=core,
        budget=budget,
        tasks=tasks,
        out=out,
        device=device,
        threads=threads,
        seeds=seeds,
        jobs=jobs,
    )
    raise typer.Exit(code)


@app.command()
def tune(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config's name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change in all trials.")
    ] = None,
    search: Search = None,
    run_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for best.yaml, trials.csv and history.png.")
    ] = Path("runs/study"),
    n_trials: Annotated[int, typer.Option(help="Trials of the study that end, in all processes.")] = 50,
    n_jobs: Annotated[int, typer.Option(help="Processes of this command, each with one thread.")] = 1,
    sampler: Annotated[str, typer.Option(help="tpe or random.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="median, halving or none.")] = "median",
    study_name: Annotated[str, typer.Option(help="The study's name in its storage.")] = "study",
    storage: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A journal file, which machines may share; default: DIR/study.log."
        ),
    ] = None,
    num_seeds: Annotated[int, typer.Option(help="Trainings in each trial, each with its own seed.")] = 2,
    n_evaluations: Annotated[
        int, typer.Option(help="Times that a trial's first training is judged, and may be pruned.")
    ] = 5,
    n_startup_trials: Annotated[
        int, typer.Option(help="First trials, drawn at random; before them none is pruned.")
    ] = 10,
    tasks: Annotated[int, typer.Option(help="Tuning tasks; they are those of no final evaluation.")] = 500,
    trust: Trust = None,
) -> None:
    """Search for better settings with Optuna, where a trial is one choice of settings, not a trial on a task.

    For example: rl2meta tune rl2_bandit --search "agent.learning_rate=1e-3..0.1[log]" --run-dir runs/study

    The same command goes on with a study that was stopped; several may work on one at a time.
    """
    from rl2meta.commands.tune import run_study
    from rl2meta.experiments.tuning_plan import TuningOptions

    options = TuningOptions(
        n_trials=n_trials,
        n_jobs=n_jobs,
        sampler=sampler,
        pruner=pruner,
        num_seeds=num_seeds,
        n_evaluations=n_evaluations,
        n_startup_trials=n_startup_trials,
        tasks=tasks,
        study_name=study_name,
        storage=storage,
    )
    run_study(
        config, overrides or [], run_dir=run_dir, searches=search or [], options=options, trust=trust or []
    )


@app.command()
def sweep(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config's name.")],
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=[A,B]...",
            help="The axes of the grid, such as agent.discount=[0.9,1.0], and KEY=VALUE for all its points.",
        ),
    ],
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds at each point, such as 0-2 or 0,3,7; default: one run, the config's seed."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Points that are trained at a time, each with one thread.")] = 1,
    run_dir: Annotated[Path, typer.Option(metavar="DIR", help="The folder for all points.")] = Path(
        "runs/sweep"
    ),
    trust: Trust = None,
) -> None:
    """Train and evaluate at each point of a grid of settings; the same command goes on with it.

    For example: rl2meta sweep rl2_bandit "agent.core.hidden_size=[32,64]" --seeds 0-2 --run-dir runs/sizes
    """
    from rl2meta.commands.sweep import run_sweep

    code = run_sweep(config, settings, run_dir=run_dir, seeds=seeds, jobs=jobs, trust=trust or [])
    raise typer.Exit(code)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with runs at any depth.")] = Path(
        "runs"
    ),
) -> None:
    """List the runs below a folder: what differs between them, how far they are, and their scores."""
    from rl2meta.commands.runs import print_runs

    print_runs(folder)


@app.command(cls=TakesSettings)
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A YAML file, a shipped config, my_package.my_module:MyTasks or :MY_AGENT, or the name of a "
            "family or an agent.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as distribution.horizon=100."),
    ] = None,
    limit: Limit = 60.0,
    trust: Trust = None,
) -> None:
    """Check a family of tasks or an agent, and print in plain words what must change before it can be used.

    For example: rl2meta check my_package.my_module:MyTasks
    """
    from rl2meta.commands.check import run_checks

    raise typer.Exit(run_checks(target, overrides or [], trust or [], limit=limit))


@app.command("list", cls=ShortCommand)
def list_components(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="An agent, a task distribution, a config, a table, 'settings' for those of every config, "
            "'zoo' for the trained agents that come with the package, or zoo:NAME.",
        ),
    ] = None,
) -> None:
    """List agents, task distributions, configs, tables and the zoo; with NAME, tell all about one of them."""
    from rl2meta.commands.list import print_components, print_one

    print_components() if name is None else print_one(name)


app.add_typer(zoo_app, name="zoo", hidden=True)


@app.command()
def benchmark(
    suite: Suites = None,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each workload, in all.")] = 30.0,
    against: Annotated[
        str | None,
        typer.Option(help="A rival: sb3 (sb3-contrib's RecurrentPPO), or jax (the same, jitted)."),
    ] = None,
    against_commit: AgainstCommit = None,
    configs: LearningConfigs = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each config of learning; default 3.")] = None,
    turns: Annotated[int | None, typer.Option(help="Turns of each workload; default 5, or 15.")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Precision on a GPU: float32 or tf32.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default one per core.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new JSON file to save the figures to.")] = None,
) -> None:
    """Measure the speed of every stage, or how many seconds of training reach a score (suite learning)."""
    from rl2meta.commands.benchmark import run_benchmark, run_guard

    if against_commit is not None:
        if against is not None or configs or seeds is not None:
            raise UserError(
                "--against-commit: expected none of --against, --config and --seeds beside it; leave them out"
            )
        code = run_guard(
            against_commit,
            suite=suite,
            seconds=seconds,
            turns=turns,
            device=device,
            precision=precision,
            threads=threads,
            out=out,
        )
        raise typer.Exit(code)
    run_benchmark(
        suite=suite or "train",
        seconds=seconds,
        against=against,
        configs=configs or [],
        seeds=seeds,
        turns=turns,
        device=device,
        precision=precision,
        threads=threads,
        out=out,
    )
