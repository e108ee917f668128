"""Families that are wrong, each in one way: what is said of them, and that no run is made of them."""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import COMMAND, Forked

from rl2meta import cli
from rl2meta.commands.check import run_checks
from rl2meta.experiments.rehearsal import draw
from rl2meta.randomness import derive
from rl2meta.workers.plugged_in import PluggedIn

FAULTY = Path(__file__).parent / "outside" / "faulty"
HERE = "workers.processes=0"  # fast; what hangs or dies is tried in worker processes
QUICK = ("workers.processes=1", "workers.timeout=0.5")
ANY = r"environment 0 \(task \{{'switch': \d\}}, seed \d+\), step {}: "
AGAIN = r"environment \d \(task \{'switch': \d\}\), step \d+: "
LATE = r"environment 0 \(task \{'switch': 2\}, seed \d+\), step 7, step: "
MODULES = {
    "broken_grammar": "def lamps(:\n    pass\n",
    "raises_at_import": "raise OSError('no lamp here')\n",
    "exits_at_import": "import sys\nsys.exit(3)\n",
    "needs_another": "import a_package_that_is_not_there\n",
}

# What shows in the first steps of one environment: kind -> what is said.
EARLY = {
    "FloatsOfAnotherWidth": ANY.format("0, reset") + r"expected a NumPy array float32 \[3\].*float64 \[3\]",
    "AnotherShape": ANY.format("0, reset") + r"expected a NumPy array float32 \[3\].*got float32 \[2\]",
    "Scalar": ANY.format("0, reset") + r"expected a NumPy array .*got float 0.5",
    "ListOfNumbers": ANY.format("0, reset") + r"expected a NumPy array .*got list \[0.1, 0.2, 0.3\]",
    "SeenSequence": ANY.format("0, make_env")
    + r"observation_space: expected an observation space .*got Sequence",
    "SeenGraph": ANY.format("0, make_env") + r"observation_space: expected an observation space .*got Graph",
    "SeenText": ANY.format("0, make_env")
    + r"observation_space: expected an observation space .*got Text.*wrap",
    "DoneTuple": ANY.format("0, make_env")
    + r"action_space: expected an action space that is Discrete, .*got Tuple",
    "DoneDict": ANY.format("0, make_env")
    + r"action_space: expected an action space that is Discrete, .*got Dict.*wrap",
    "NoSpace": ANY.format("0, make_env") + r"expected a gymnasium Space for observation_space, got None",
    "NaNAtFirst": ANY.format("0, step") + r"expected finite numbers for an observation, got \[nan nan nan\]",
    "NaNAtTheEnd": ANY.format("4, step") + r"expected finite numbers for an observation",
    "NaNInReset": ANY.format("0, reset") + r"expected finite numbers for an observation",
    "RewardInAnArray": ANY.format("0, step") + r"expected a float for a reward, got ndarray",
    "RewardNone": ANY.format("0, step") + r"expected a float for a reward, got NoneType",
    "RewardString": ANY.format("0, step") + r"expected a float for a reward, got str '1.0'",
    "TerminatedInt": ANY.format("0, step") + r"expected a bool for terminated, got int 0",
    "TruncatedArray": ANY.format("0, step") + r"expected a bool for truncated, got ndarray",
    "FourValues": ANY.format("0, step") + r"expected \(observation, reward, terminated.*got a tuple of 4",
    "InfoNone": ANY.format("0, step") + r"expected a dict for the info of a step, got NoneType",
    "ObservationAlone": ANY.format("0, reset") + r"expected \(observation, info\) from .*got ndarray",
    "ResetWithoutSeed": ANY.format("0, reset") + r"raised TypeError: .*unexpected keyword argument 'seed'",
    "OldLamp": ANY.format("0, make_env") + r"expected a gymnasium.Env from make_env\(\), got OldLamp",
    "NeedsMore": ANY.format("0, make_env") + r"raised TypeError: .*missing 1 required .*'bulb'",
    "NaNLate": LATE + r"expected finite numbers for an observation, got \[nan nan nan\]",
    "InfiniteReward": LATE + "expected a finite number for a reward, got inf",
    "NaNReward": LATE + "expected a finite number for a reward, got nan",
    "RaisesLate": LATE + r"raised ZeroDivisionError: the fuse blew\n +File .*faulty_lamps.py",
    "ExitsLate": LATE + r"called sys.exit\('no power'\)",
}
# What takes several environments, or all of what a check does.
LATER = {
    "ShapeOfTheTask": ANY.format("0, make_env") + r"expected the observation_space of the other tasks, Box",
    "ActionsOfTheTask": ANY.format("0, make_env") + r"expected the action_space of the other tasks, Discrete",
    "RegretNegative": LATE + r"expected a regret >= 0 in the info, got -0.5",
    "RegretNaN": LATE + r"expected a number for 'regret' in the info of every step, got nan",
    "RegretAtTimes": LATE + r"expected a number for 'regret' in the info of every step, got None",
}
# What a run can live with, if need be.
TOLERABLE = {
    "GlobalRandomness": AGAIN + r"expected the same from the same task, seed .* in a new .*np_random",
    "Clock": AGAIN + r"expected the same from the same task, seed .*not from .*clocks",
    "Outside": r"observation: expected one of Box\(0.0, 1.0, \(3,\), float32\), got \[7. 7. 7.\]",
    "OutlivesReset": AGAIN + "expected the same .*in an environment that was played in and reset",
    "TaskOfTheReset": "8 tasks, one seed.*expected observations or rewards that differ, got the same",
    "TaskForgotten": AGAIN + r"expected the same .*got the reward \d.0, and \d.0 in an env.* played in",
    "Shaky": "expected draws only from the given generators, got random's global generator used",
    "RegretLater": r"task \{'switch': 2\}, step 7: expected 'regret' in the info of every step or of none",
}
DEADLY = {
    "DiesLate": LATE + "the worker process ended with exit code 7",
    "HangsLate": LATE + r"did not return within 0.5 s .*\n +File .*in step\n +File .* in paid",
    "HangsInReset": ANY.format("0, reset") + r"did not return within 0.5 s .*\n +File .*in reset",
    "HangsInClose": ANY.format("0, close") + r"did not return within 0.5 s .*\n +File .*in close",
}
FAMILIES = {
    "NoGenerator": (
        r"NoGenerator: sample: expected the same task from generators with the same seed, got .*draw only "
        r"from the"
    ),
    "NoMapping": r"NoMapping: sample: expected a mapping for a task, got int \d",
    "Objects": r"sample: expected a task of numbers, .*got Lamp .*build it in make_env",
    "NumbersAsNames": r"sample: expected strings as the names in a task, got int 1",
    "SampleRaises": r"sample: raised KeyError: 'switch'\n +File .*faulty_families.py",
    "SampleWithoutSplit": r"sample: raised TypeError: .*takes 2 positional arguments but 3 were given",
    "MakesNothing": r"expected a gymnasium.Env from make_env\(\), got NoneType",
    "HasNoHorizon": r"expected horizon, an int >= 1 \(steps in an episode at most\), got None",
    "HasNoMakeEnv": r"expected a family of tasks, got <class .*HasNoMakeEnv.>; name a class with",
    "Picky": r"Picky.__init__\(\) missing 1 required positional argument: 'colour'",
    "Picky distribution.color=red": r"Picky.__init__\(\) got an unexpected keyword argument 'color'",
    "ConstructorRaises": r"ConstructorRaises: RuntimeError: no lamps left",
    "Lamps distribution.horizon=0": r"expected horizon, an int >= 1 .*got 0",
    "Lamps distribution.horizon=1.5": r"expected horizon, an int >= 1 .*got 1.5",
    "NUMBER": r"faulty_families:NUMBER: expected a class, got int 7",
    "Lampz": r"faulty_families has no 'Lampz'; did you mean 'Lamps'\?",
}
INDIFFERENT = {
    "OneTask": r"sample: expected tasks that differ, got \{'switch': 1\} 16 times",
    "IgnoresTasks": r"expected observations or rewards that differ, got the same from every task",
}
CART = "gymnasium distribution.id=CartPole-v1"
TARGETS = {
    "faulty_lamps:Lamp": r"expected a family of tasks, got an environment, Lamp; name a class",
    "faulty_lamps:OldLamp": r"expected a family of tasks, got an environment, OldLamp; name a class",
    "faulty_familiez:Lamps": r"expected a module that can be imported, got none of the name faulty_familiez",
    "broken_grammar:Lamps": r"importing broken_grammar raised SyntaxError: .*broken_grammar.py, line 1",
    "raises_at_import:Lamps": r"importing raises_at_import raised OSError: no lamp here\n +File .*, line 1",
    "exits_at_import:Lamps": r"importing exits_at_import called sys.exit\(3\)",
    "needs_another:Lamps": r"needs_another raised ModuleNotFoundError: .*a_package_that_is_not_there",
    "faulty_families.Lamps": r"expected a YAML file, .*module:Class.*for a class: faulty_families:Lamps",
    "CartPole-v1": r"got none of them; for a Gymnasium id: gymnasium distribution.id=CartPole-v1, and what",
    "nothing.yaml": r"'nothing.yaml': expected a YAML file, .*got none of them; Known",
    "faulty_families:": r"expected module:Class, such as my_package.my_module:MyTasks",
    "gymnasium distribution.id=CartPole-v99": r"distribution.id: expected a Gymnasium id.*got 'CartPole-v99'",
    CART: r"expected something in vary_kwargs, vary_attributes or vary_options, or vary_seed: true; without "
    "it all tasks are equal",
    f"{CART} distribution.vary_attributes.gravty=[1,2]": r"got 'gravty'; did you mean 'gravity'\?",
    f"{CART} distribution.vary_kwargs.colour=[1,2]": r"unexpected keyword argument 'colour'",
    "gymnasium distribution.id=faulty_families:EndlessLamp-v0 distribution.vary_kwargs.switch=[1,2]": (
        r"distribution.horizon: expected a number of steps: .* is registered without max_episode_steps"
    ),
    "set_task_envs distribution.env=faulty_lamps:Lamp distribution.horizon=5 distribution.kwargs.switch=1": (
        r"expected an environment with sample_tasks, got Lamp, which has none"
    ),
}

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run ``rl2meta ARGS`` in this process, beside the faulty modules -> (exit code, all that was said)."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(FAULTY))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def call(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rl2meta", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return call


def refused(said: tuple[int, str], message: str) -> None:
    code, text = said
    assert re.search(message, text), text
    assert code == 2 and "Traceback" not in text, text


@pytest.mark.parametrize("env", [*EARLY, *LATER])
def test_a_faulty_environment_is_told_by_its_fault(run: Run, env: str) -> None:
    said = run("check", "faulty_families:Lamps", f"distribution.env={env}", HERE)
    refused(said, {**EARLY, **LATER}[env])
    assert said[1].count("FAULT") == 1 and "the rest was not tried" in said[1]  # nothing buries it


@pytest.mark.parametrize("env", TOLERABLE)
def test_the_other_checks_go_on_after_a_tolerable_fault(run: Run, env: str) -> None:
    said = run("check", "faulty_families:Lamps", f"distribution.env={env}", HERE)
    refused(said, TOLERABLE[env])
    assert re.search(TOLERABLE[env], said[1].split("  FAULT")[1])  # it is the first
    assert "agent maml_trpo, a trial and an update" in said[1] and "was not tried" not in said[1]


@pytest.mark.parametrize("env", [*DEADLY, "NaNLate", "RaisesLate", "ExitsLate"])
def test_what_hangs_or_dies_takes_nothing_along(run: Run, env: str) -> None:
    said = run("check", "faulty_families:Lamps", f"distribution.env={env}", *QUICK)
    refused(said, {**DEADLY, **EARLY}[env])
    assert said[1].count("FAULT") == 1


@pytest.mark.parametrize("family", [*FAMILIES, *INDIFFERENT])
def test_a_faulty_family_is_told_by_its_fault(run: Run, family: str) -> None:
    refused(run("check", *f"faulty_families:{family}".split(), HERE), {**FAMILIES, **INDIFFERENT}[family])


@pytest.mark.parametrize("target", TARGETS)
def test_a_faulty_target_is_told_by_its_fault(run: Run, target: str) -> None:
    refused(run("check", *target.split(), HERE), TARGETS[target])


def test_a_family_that_workers_cannot_get_is_refused(run: Run) -> None:
    message = "expected a family that can be pickled, .*keep environments, files and lambdas out of it"
    refused(run("check", "faulty_families:HoldsALambda", *QUICK), message)


def test_good_families_are_well(run: Run) -> None:
    code, said = run("check", "faulty_families:Lamps", HERE)
    assert code == 0 and said.endswith("all is well\n"), said
    assert re.findall(r"^  (\w+) +agent (\w+)", said, re.MULTILINE) == [
        ("ok", "rl2"),
        ("ok", "maml_trpo"),
        ("unfit", "maml_regression"),
        ("unfit", "learned_optimiser"),
        ("unfit", "maml_classification"),
        ("unfit", "pretrained_classification"),
        ("unfit", "sequence_classification"),
        ("unfit", "reptile"),
        ("ok", "mlsh"),
    ]
    refused(run("check", "faulty_families:lamps", HERE), "expected a class, got function")
    endless = ("distribution.id=faulty_families:EndlessLamp-v0", "distribution.horizon=4")
    varied = "distribution.vary_kwargs.switch={integers: [0, 3]}"
    code, said = run("check", "gymnasium", *endless, varied, HERE)  # truncated by the horizon
    assert code == 0, said


def test_tasks_that_show_nothing_while_rewards_are_rare_are_a_note(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("check", "faulty_families:Nothing")  # imports it
    import faulty_lamps

    monkeypatch.setattr(faulty_lamps.Lamp, "paid", lambda self, action: 0.0)
    code, said = run("check", "faulty_families:Lamps", HERE)
    assert code == 0 and re.search(
        r"note: 8 tasks, .*got the same.*reward of 0 throughout; are rewards rare\?", said
    ), said


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_time_is_refused(run: Run, limit: str) -> None:
    message = r"--limit: expected seconds, more than 0 and at most 1e\+06, got " + limit
    refused(run("check", "faulty_families:Lamps", "--limit", limit), message)


# A limit may ring while a callback of the garbage collector runs, which then tells what it could not raise.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_ends_each_check(run: Run) -> None:
    slow = ("check", "sound_lamps:Sound", "distribution.env=Slow", "distribution.horizon=500", HERE)
    code, said = run(*slow, "--limit", "0.3")
    assert code == 0 and said.count("took more than 0.3 s") >= 2, said
    assert "A larger --limit gives it more time" in said


def test_a_close_that_fails_in_the_workers_is_a_fault(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is logged and not raised is seen too."""
    from rl2meta.workers.plugged_in import PluggedVectorEnv

    run("check", "faulty_families:Nothing")
    monkeypatch.setattr(
        PluggedVectorEnv, "close", lambda self: logging.getLogger("rl2meta.workers").warning("%s", "stuck")
    )
    assert run_checks("faulty_families:Lamps", [HERE]) == 2
    said = capfd.readouterr().out
    assert re.search(r"FAULT  \d+ random steps.*\n +stuck\n", said), said


@pytest.mark.parametrize("env", ["HangsInReset", "RaisesLate", "Outside"])
def test_the_same_from_a_shell(tmp_path: Path, env: str) -> None:
    """Where this process's signals, streams and paths are not in play."""
    program = f"import sys; sys.path.insert(0, {str(FAULTY)!r}); sys.dont_write_bytecode = True\n{COMMAND}"
    check = "check", "faulty_families:Lamps", f"distribution.env={env}", *QUICK
    with Forked(program, *check, env={"PYTHONDONTWRITEBYTECODE": "1"}, folder=tmp_path) as process:
        said = process.communicate()
    refused((process.returncode, said), {**EARLY, **TOLERABLE, **DEADLY}[env])


def test_a_built_in_family_is_checked_without_workers(run: Run) -> None:
    code, said = run("check", "smoke")
    assert code == 0 and "sample()" not in said, said
    assert re.search("unfit +agent maml_regression", said)


def test_ctrl_c_is_no_fault(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl2meta.commands.signals import Interrupted
    from rl2meta.experiments import checks as check

    def interrupted(env: Any, skip_render_check: bool) -> None:
        raise Interrupted(2)

    monkeypatch.setattr(check, "gymnasium_check", interrupted)
    code, said = run("check", "smoke")
    assert code == 130 and "FAULT" not in said and "interrupted by SIGINT" in said


def config(folder: Path, name: str, *overrides: str, **more: Any) -> tuple[str, ...]:
    """Write the config of a small run -> the arguments of ``rl2meta train``."""
    small = {
        "distribution": {"name": f"faulty_families:{name}", **more},
        "agent": {"name": "rl2", "core": {"hidden_size": 8}},
        "training": {"updates": 5, "trials_per_update": 4, "episodes_per_trial": 2},
        "device": "cpu",
        "threads": 1,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    return "train", str(folder / "small.yaml"), *overrides, "--run-dir", str(folder / "run")


@pytest.mark.parametrize("env", [*EARLY, *LATER])
def test_no_run_is_made_of_a_faulty_environment(run: Run, tmp_path: Path, env: str) -> None:
    refused(run(*config(tmp_path, "Lamps", HERE, f"seed={_seed(True)}", env=env)), {**EARLY, **LATER}[env])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", [*DEADLY, "RaisesLate"])
def test_no_run_is_made_of_what_hangs_or_dies(run: Run, tmp_path: Path, env: str) -> None:
    arguments = config(tmp_path, "Lamps", *QUICK, f"seed={_seed(True)}", env=env)
    refused(run(*arguments), {**DEADLY, **EARLY}[env])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_run_is_made_of_a_faulty_family(run: Run, tmp_path: Path, family: str) -> None:
    name, *overrides = family.split()
    refused(run(*config(tmp_path, name, HERE, *overrides)), FAMILIES[family])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", ["NaNReward", "RaisesLate", "DiesLate", "HangsLate"])
def test_a_fault_of_few_tasks_stops_the_run_with_the_same_words(run: Run, tmp_path: Path, env: str) -> None:
    """The rehearsal meets none of the tasks in which the environment fails."""
    said = run(*config(tmp_path, "Lamps", *QUICK, f"seed={_seed(False)}", env=env))
    message = {**EARLY, **DEADLY}[env].replace("environment 0", r"environment \d")
    message = message.partition(r" .*\n")[0].partition(r"\n")[0]
    refused(said, message)
    assert re.search(r"stopped and saved at update \d/5; mend the environment and continue with:", said[1])
    assert (tmp_path / "run" / "checkpoints").is_dir()


def _seed(met: bool) -> int:
    """Return the seed of a run whose rehearsal meets switch 2 in its first environment, or in none."""
    from faulty_families import Lamps

    for seed in range(100):
        rehearsed = derive(derive(seed, "rehearsal"), "train", 0)
        switches = [task["switch"] for task in draw(PluggedIn(Lamps()), 2, rehearsed, "train").entries]
        if switches[0] == 2 if met else 2 not in switches:
            return seed
    raise AssertionError("expected such a seed among the first 100")


AGENTS_AND_WORDS = {
    "faulty_agents:IN_PLACE": (r"FAULT  adapt leaves .*\n +adapt: expected a new carry .*\n  ok ", 1),
    "faulty_agents:ONE_ACTION": (
        r"FAULT  a trial, .*\n +act: action: expected integers .*\nthe rest was not",
        1,
    ),
    "faulty_agents:NO_MODEL": (r"FAULT  its config, .*\n +config: expected a pydantic model", 1),
    "faulty_agents:NO_DEFAULTS": (
        r"faulty_agents:NO_DEFAULTS: 1 fault\n +agent.units: expected a value, got",
        0,
    ),
    "faulty_agents:GOOD agent.unit=3": (r"agent.unit: unknown key; did you mean 'units'\?", 0),
    "faulty_agents:NO_KIND": (r"faulty_agents:NO_KIND: expected a class, got dict", 0),
    "rl3": (r"'rl3': expected a YAML file, .*an agent, .*did you mean 'rl2'\?", 0),
}


@pytest.mark.parametrize("target", AGENTS_AND_WORDS)
def test_a_faulty_agent_is_told_by_its_fault(run: Run, target: str) -> None:
    said, (message, faults) = run("check", *target.split()), AGENTS_AND_WORDS[target]
    refused(said, message)
    assert said[1].count("FAULT  ") == faults


@pytest.mark.parametrize("target", ["rl2 agent.core.hidden_size=8", "faulty_agents:GOOD"])
def test_good_agents_are_well(run: Run, target: str) -> None:
    code, said = run("check", *target.split())
    assert code == 0 and said.startswith(f"checking agent {target.split()[0]}\n"), said
    assert said.endswith("all is well\n") and "adapt leaves the old carry alone" in said
    assert run("check", *target.split(), "distribution.num_arms=2")[1].startswith(
        f"checking agent {target.split()[0]} on BernoulliBandits(num_arms=2"
    )


def test_the_agent_of_a_config_is_checked_where_it_comes_from_elsewhere(run: Run, tmp_path: Path) -> None:
    """On the config's own tasks and with its settings, after the family."""
    small = {
        "distribution": {"name": "faulty_families:Lamps"},
        "agent": {"name": "faulty_agents:IN_PLACE", "units": 4},
        "training": {"updates": 1, "trials_per_update": 2, "episodes_per_trial": 2},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    said = run("check", tmp_path / "small.yaml", HERE)
    refused(
        said, r"ok     agent faulty_agents:IN_PLACE, a trial and an update\n(  ok     agent: .*\n)+  FAULT"
    )
    assert said[1].count("FAULT") == 1 and "FAULT  agent: adapt leaves the old carry alone" in said[1]
