"""Watch an agent through one trial on one held-out task, from Python."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rl2meta.agents.references.catalogue import NAMES
from rl2meta.beliefs import TellingAgent
from rl2meta.colours import colours_of
from rl2meta.devices import resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.experiments.comparing import of_length, refuse_another_law
from rl2meta.experiments.components import judged_episodes, make_worker, references_of, row_name
from rl2meta.experiments.config import RunConfig, suggestion
from rl2meta.experiments.entry import load_run
from rl2meta.experiments.groups import Group
from rl2meta.experiments.judging import Say, folder_name, silent, within
from rl2meta.experiments.rehearsal import fill
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import new_folder
from rl2meta.experiments.sizes import refuse_watching
from rl2meta.experiments.watch_gif import animation
from rl2meta.experiments.watch_page import Player, page, player_data, positions
from rl2meta.experiments.watch_pictures import Draw, Pictures, drawing, encoded, pictures_of
from rl2meta.experiments.watched_trial import WatchedTrial, watch_trial
from rl2meta.experiments.zoo import located, results_of, said_path
from rl2meta.files import write_atomically, writing
from rl2meta.kernels import set_kernels
from rl2meta.tasks import Tasks, sample_tasks, shares_tasks
from rl2meta.trial import Agent
from rl2meta.workers.plugged_in import PluggedIn


@dataclass(frozen=True)
class Watch:
    """A trial to look at.

    Attributes:
        page: watch.html, which needs no other file and no network.
        animation: watch.gif.
        trials: what was recorded, by the name of the agent.
    """

    page: Path
    animation: Path
    trials: Mapping[str, WatchedTrial]

    @property
    def path(self) -> Path:
        """The folder of both files."""
        return self.page.parent


class _Contestant(NamedTuple):
    """An agent to watch: its name, what the page says of it, and the experiment that its tasks come from."""

    name: str
    about: str
    agent: Agent[Any]
    config: RunConfig
    trained: bool


def watch(
    run: Run | str | Path,
    *,
    task: int = 0,
    seed: int | None = None,
    episodes: int | None = None,
    against: Run | str | Path | None = None,
    out: str | Path | None = None,
    trust: Collection[str] = (),
    say: Say = silent,
) -> Watch:
    """Record one trial on one held-out task as a page to step through and as an animation.

    Args:
        run: a run, its folder, or ``zoo:NAME``; its newest complete checkpoint acts.
        task: the number of the task among the held-out tasks of ``evaluate`` with the same seed.
        seed: of the held-out tasks and of the luck; None: that of the run's config.
        episodes: number of episodes in the trial; None: as in an evaluation of the run.
        against: a reference's name, or another run on the same task distribution, to be watched on the same
            task with the same luck. Constants of references have their defaults.
        out: a new folder for the files; None: ``watch``, ``watch_2``, ... in the run folder. Of a zoo agent,
            ``zoo-NAME-watch`` in the current folder.
        trust: modules that run folders from elsewhere may import.
        say: called with one line of text before each step.

    Raises:
        UserError: for a folder without a run, a task, seed or number of episodes out of range, an unknown
            reference, or a folder that exists.
    """
    run = _loaded(run, trust)
    if run.path is None and out is None:
        raise UserError("out: expected a folder for a run that has none, got None; give out='watch'")
    length = within("--episodes", judged_episodes(run.config) if episodes is None else episodes, 1, 2**31 - 1)
    config = of_length(run.config, length)
    refuse_watching(config)
    evaluation = config.settings.evaluation
    seed = within("--seed", evaluation.seed if seed is None else seed, 0, 2**63 - 1)
    task = within("--task", task, 0, evaluation.tasks - 1)
    contestants = [_of_run(run, length), *_rivals(config, run, against, trust)]
    set_precision(config.settings.precision)
    set_kernels("torch")
    set_threads(config.settings.threads)
    chosen = sample_tasks(config.distribution, evaluation.tasks, seed, "test")[task : task + 1]
    facts = _facts(run, config, chosen, task, seed, against)
    default = Path("watch") if run.path is None else results_of(run.path, "watch")
    with new_folder(default, None if out is None else Path(out)) as folder:
        trials = {each.name: _record(each, chosen, length, seed, say) for each in contestants}
        return _write(folder, facts, contestants, trials, chosen, say)


def _loaded(run: Run | str | Path, trust: Collection[str]) -> Run:
    found = run if isinstance(run, Run | Group) else load_run(run, trust=trust)
    if isinstance(found, Group):
        raise UserError(
            f"{found.path or 'watch'}: expected one run, got a group; name one of its runs, such as "
            f"{found.runs[0].path or 'group.runs[0]'}"
        )
    return found


def _of_run(run: Run, episodes: int) -> _Contestant:
    fill(run.agent.phase, episodes, f"{run.path or 'run'}: --episodes")
    said = f"after {run.update:,} updates on {run.env_steps:,} environment steps"
    return _Contestant(row_name(run.config), said, run.agent, of_length(run.config, episodes), True)


def _rivals(
    config: RunConfig, run: Run, against: Run | str | Path | None, trust: Collection[str]
) -> list[_Contestant]:
    """Return the second agent, if there is one; its name differs from that of the first."""
    if against is None:
        return []
    first, length = row_name(config), judged_episodes(config)
    if not isinstance(against, Run | Group) and not located(against).is_dir():
        return [_reference(config, str(against), length)]
    other = _loaded(against, trust)
    refuse_another_law(run, other)
    rival = _of_run(other, length)
    if rival.name == first:
        place = "the other run" if other.path is None else folder_name(other.path)
        rival = rival._replace(name=f"{first}: {place}")
    return [rival]


def _reference(config: RunConfig, name: str, episodes: int) -> _Contestant:
    known = references_of(config, episodes)
    if name not in known:
        raise UserError(
            f"--against: expected a run folder or a reference, got {name!r}{suggestion(name, known)}"
        )
    reference = known[name]
    constants = ", its constants at their defaults" if reference.grid else ""
    about = f"{reference.description}{constants}; {reference.prior}"
    return _Contestant(name, about, reference.build(), config, False)


def _record(each: _Contestant, task: Tasks, episodes: int, seed: int, say: Say) -> WatchedTrial:
    say(f"recording {each.name} ...")
    worker = make_worker(each.config, resolve_device("cpu"))
    try:
        return watch_trial(worker, each.agent, task, episodes, seed)
    finally:
        worker.close()


def _facts(
    run: Run, config: RunConfig, task: Tasks, number: int, seed: int, against: Run | str | Path | None
) -> dict[str, Any]:
    """Return what the page says of the trial as a whole."""
    length, law = judged_episodes(config), config.distribution
    best = law.optimal_return(task)
    return {
        "title": f"{row_name(config)} on {law}",
        "subtitle": f"held-out task {number} of seed {seed}, {length} episode{'s' * (length > 1)}",
        "best": None if best is None else length * float(best[0]),
        "number": number,
        "seed": seed,
        "command": _command(run, number, seed, length, against),
        "shared": shares_tasks(law, law, seed, 512),
    }


def _command(run: Run, task: int, seed: int, episodes: int, against: Run | str | Path | None) -> str:
    words = [
        "rl2meta",
        "watch",
        "RUN" if run.path is None else said_path(run.path),
        "--task",
        str(task),
        "--seed",
        str(seed),
    ]
    words += ["--episodes", str(episodes)]
    rival = against.path if isinstance(against, Run) else against
    return shlex.join([*words, *([] if rival is None else ["--against", str(rival)])])


def _write(
    folder: Path,
    facts: Mapping[str, Any],
    contestants: Sequence[_Contestant],
    trials: Mapping[str, WatchedTrial],
    task: Tasks,
    say: Say,
) -> Watch:
    lengths = [len(each.places) for each in trials.values()]
    say("drawing ...")
    law = contestants[0].config.law
    draws = [drawing(_drawn(each.config), task, trials[each.name]) for each in contestants]
    pictures, drawn, fault = _pictures(law, draws, lengths)
    trained = [each.name for each in contestants if each.trained]
    colours = colours_of(trained, [each.name for each in contestants if not each.trained], NAMES)
    players = [
        Player(each.name, each.about, colours[each.name], trials[each.name], shown)
        for each, shown in zip(contestants, encoded(pictures), strict=True)
    ]
    data = _data({**facts, "fault": fault}, contestants, players, drawn)
    text = _text(data, f"{facts['title']}: rl2meta watch")
    shown = [index for index, step in enumerate(data["at"]) if step in drawn]
    moving = animation(data, pictures, shown)  # before a file is written: whoever stops this leaves none
    paths = folder / "watch.html", folder / "watch.gif"
    with writing(folder):
        write_atomically(paths[0], text)
        write_atomically(paths[1], moving)
    return Watch(*paths, trials)


def _drawn(config: RunConfig) -> Any:
    """Return the law that draws what an agent saw: with revealed tasks if it saw those."""
    return config.law if isinstance(config.law, PluggedIn) else config.distribution


def _text(data: Mapping[str, Any], title: str) -> str:
    try:
        return page(data, title)
    except ValueError as error:
        raise UserError(
            f"expected finite numbers in what the agents did and told, got others ({error}); the policy has "
            "diverged: look at the metrics of its training, or lower the inner learning rates"
        ) from None


def _pictures(
    law: Any, draws: Sequence[Draw | None], lengths: Sequence[int]
) -> tuple[list[Pictures], list[int], str]:
    """Return pictures, when they are from, and why there are none: a user's environments may not render."""
    try:
        return *pictures_of(draws, lengths), ""
    except Exception as error:
        if not isinstance(law, PluggedIn):
            raise
        return *pictures_of([None for _ in draws], lengths), f": {error}"


def _data(
    facts: Mapping[str, Any],
    contestants: Sequence[_Contestant],
    players: Sequence[Player],
    drawn: Sequence[int],
) -> dict[str, Any]:
    """Return all data of the page."""
    at = positions(max(len(player.watched.places) for player in players), drawn)
    regret = all(player.watched.known("regret") is not None for player in players)
    return {
        **{name: facts[name] for name in ("title", "subtitle", "best", "command")},
        "at": at,
        "regret": regret,
        "curve": "regret so far, expected" if regret else "reward so far",
        "action": "action",
        "agents": [player_data(player, at) for player in players],
        "notes": [*_notes(facts, contestants, players, at, drawn)],
    }


def _notes(
    facts: Mapping[str, Any],
    contestants: Sequence[_Contestant],
    players: Sequence[Player],
    at: Sequence[int],
    drawn: Sequence[int],
) -> Iterator[str]:
    """Yield sentences that a reader should know."""
    if len(players) > 1:
        yield "Both agents have the same task and the same random stream of the environment."
    if facts["shared"]:
        yield "The family has so few tasks that training may have seen this one: it is not held out."
    for player, each in zip(players, contestants, strict=True):
        if not player.pictures:
            yield f"{player.name}: no pictures, so the page shows what the agent sees{facts['fault']}."
        if each.trained and not isinstance(each.agent, TellingAgent):
            yield f"{player.name}: the agent has no method act_and_tell, so it tells nothing."
    if len(drawn) < at[-1] + 1 and players[0].pictures:
        yield f"There is a picture every {drawn[1]} steps, to save time and bytes; all else is of every step."
    if at[1] > 1:
        yield f"The slider moves by {at[1]} steps; sums count every step."
    yield f"Written by: {facts['command']}"
