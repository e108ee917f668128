"""Several processes train and judge together: the bits of one process, and no rank that waits for ever.

The ranks are real processes with real sockets, forked from one that has imported torch.
"""

import json
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from forked import COMMAND, Forked

import rl2meta.evaluation
import rl2meta.experiments.contest
from rl2meta.ranks import TIMEOUT

BATCH = ["device=cpu", "training.shards=4", "training.trials_per_update=8"]
PULLS = ["training.updates=3", "training.episodes_per_trial=3", "agent.epochs=2"]
TRPO = [
    "training.updates=2",
    "agent.hidden_sizes=[8]",
    "agent.line_searches=2",
    "agent.conjugate_gradients=2",
]
JUDGED = ["training.evaluate_every=2", "training.evaluation_tasks=6"]
_IMAGES = ["training.updates=2", "agent.filters=2", "agent.episodes_per_phase=2", "distribution.ways=2"]
_IMAGES += ["distribution.size=8", "training.episodes_per_trial=6", "evaluation.episodes_per_trial=null"]
CASES = {
    "rl2": ["smoke", *PULLS, *JUDGED, "agent.reward_units=measured"],
    "all_actions": ["smoke", *PULLS, "agent.surrogate=all_actions", "agent.critic=privileged"],
    "over_all_tasks": ["maml_bandit", *TRPO, "training.episodes_per_trial=2"],
    "regression": ["maml_sinusoid", "training.updates=3", "agent.hidden_sizes=[8]"],
    "mlsh": [
        *("mlsh_moving_bandits", "training.updates=2", "training.episodes_per_trial=6", "agent.epochs=1"),
        *("agent.episodes_per_phase=2", "agent.warm_up=1", "agent.minibatches=2", "distribution.horizon=8"),
    ],
    "learned_optimiser": [
        *("learned_optimiser_quadratics", "training.updates=2", "training.episodes_per_trial=6"),
        *("agent.episodes_per_phase=2", "agent.unroll=1", "agent.passes=1", "distribution.dimension=4"),
    ],
    "pretrained": ["pretrained_glyphs_5way_1shot", *_IMAGES],
    "classification": ["maml_glyphs_5way_1shot", *_IMAGES],
    "sequence": ["snail_glyphs_5way_1shot", *_IMAGES, "agent.features=4", "agent.core=lstm"],
    "reptile": ["reptile_sinusoid", "training.updates=2", "agent.hidden_sizes=[5]"],
}
"""What to train: a config and settings beside those of ``BATCH``."""
TRAIN_ALL = """
import json, sys
import rl2meta
from rl2meta.ranks import joined
with joined() as ranks:
    for name, (config, *settings) in json.loads({cases!r}).items():
        rl2meta.train(config, settings, run_dir={folder!r} + "/" + name, ranks=ranks)
sys.exit()
"""


EVALUATE = """
import json, sys
import rl2meta, rl2meta.evaluation as e, rl2meta.experiments.contest as c
from rl2meta.ranks import joined
e.TENSORS_TOGETHER, c.FEWEST_TUNING_TASKS = 20, 50  # batches for every rank
with joined() as ranks:
    runs = {{path.split("/")[-1]: rl2meta.load_run(path) for path in {runs}}}
    for run in runs.values():
        run.path = None  # so nothing is drawn
    found = rl2meta.compare(runs, tasks=50, against="thompson,ucb1", ranks=ranks).results
told = {{name: [x.rewards.tolist(), x.regrets.tolist(), dict(x.constants)] for name, x in found.items()}}
with open(f"{out}-{{ranks.number}}", "w") as file:
    json.dump(told, file)
sys.exit()
"""


class Ended(NamedTuple):
    """How a rank ended: its exit code, what it printed, and what it said of errors."""

    code: int
    out: str
    err: str


class Started(NamedTuple):
    """Ranks at work, and the files of what they say, without endings."""

    ranks: list[Forked]
    said: list[Path]


class Server:
    """Starts ranks as ``torchrun`` would on one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def start(
        self,
        size: int,
        *argv: object,
        first: Mapping[int, str] | None = None,
        more: Mapping[int, list[str]] | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> Started:
        """Start ranks.

        Args:
            size: their number.
            argv: of the command line.
            first: code that a rank runs before the command line.
            more: more arguments of a rank.
            env: more of the environment.
            seconds: that a rank waits for the others.
        """
        self._count += 1
        group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port())}
        group |= {TIMEOUT: str(seconds), **(env or {})}
        said = [self._folder / f"{self._count}-{rank}" for rank in range(size)]
        ranks = [
            Forked(
                f"{(first or {}).get(rank, '')}\n{COMMAND}",
                *argv,
                *(more or {}).get(rank, []),
                env=group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                files=(Path(f"{path}.out"), Path(f"{path}.err")),
            )
            for rank, path in enumerate(said)
        ]
        return Started(ranks, said)

    def wait(self, started: Started) -> list[Ended]:
        """Return how ranks ended."""
        codes = [rank.wait() or 0 for rank in started.ranks]
        texts = [[Path(f"{path}.{end}").read_text() for end in ("out", "err")] for path in started.said]
        return [Ended(code, *text) for code, text in zip(codes, texts, strict=True)]

    def run(self, size: int, *argv: object, **options: Any) -> list[Ended]:
        """Start ranks and return how they ended."""
        return self.wait(self.start(size, *argv, **options))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("said"))


@pytest.fixture(scope="module")
def alone(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of ``CASES``, trained by one process."""
    return _all_trained(server, tmp_path_factory.mktemp("alone"), 1)


def test_four_ranks_and_two_have_the_bits_of_one(server: Server, alone: Path, tmp_path: Path) -> None:
    by_four = ["rl2", "over_all_tasks"]
    by_two = [name for name in CASES if name not in by_four]
    for size, names in ((4, by_four), (2, by_two)):
        folder = _all_trained(server, tmp_path / str(size), size, names)
        for name in names:
            assert _bits(folder / name) == _bits(alone / name), name
    newest = _bits(alone / "rl2")[1][-1]
    assert "held_out_return" in newest and newest["env_steps"] == 3 * 8 * 3


def test_every_rank_has_workers_of_its_own(server: Server, tmp_path: Path) -> None:
    settings = ["device=cpu", "training.shards=2", "training.updates=1", "training.trials_per_update=4"]
    settings += ["training.episodes_per_trial=2", "distribution.horizon=5"]
    for size, processes in ((1, 0), (2, 1)):
        run = [f"workers.processes={processes}", "--run-dir", tmp_path / str(size)]
        ended = server.run(size, "train", "rl2_cartpole", *settings, *run)
        assert [each.code for each in ended] == [0] * size, ended
    assert _bits(tmp_path / "1") == _bits(tmp_path / "2")


def test_a_run_goes_on_with_another_number_of_ranks(server: Server, alone: Path, tmp_path: Path) -> None:
    """A rank is killed in the middle of an update; the others say so at once and end, and the run goes on."""
    killed = "import os, rl2meta.agents.ppo as ppo; step, calls = ppo.PPO.step, []\n"
    killed += "def dying(*given):\n    calls.append(0)\n    len(calls) > 13 and os.kill(os.getpid(), 9)\n"
    killed += "    return step(*given)\nppo.PPO.step = dying"
    run = ["--run-dir", tmp_path / "run"]
    train = ["train", *CASES["rl2"], *BATCH, "training.checkpoint_every=1"]
    first, second = server.run(2, *train, *run, first={1: killed})
    assert second.code == -signal.SIGKILL and first.code == 2
    assert "got none of rank 1: it was killed" in first.err and "--resume" in first.err
    assert len(_bits(tmp_path / "run")[1]) == 2
    # torchrun starts the same command again; with a machine less it would be as here
    ended = server.run(4, *train, *run, env={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert [each.code for each in ended] == [0] * 4 and "at update 2" in ended[0].out, ended
    assert _bits(tmp_path / "run") == _bits(alone / "rl2")


def test_a_disk_that_fails_is_told_to_all(server: Server, tmp_path: Path) -> None:
    full = "import rl2meta.experiments.checkpoint_files as f, rl2meta.experiments.checkpoints as c\n"
    full += "def fail(path, data): raise OSError(28, 'No space left on device')\n"
    full += "import rl2meta.training as t; learnt = t._learnt\n"
    full += "def later(*given):\n    c.write_durably = fail\n    return learnt(*given)\nt._learnt = later"
    train = ["train", *CASES["rl2"], *BATCH, "--run-dir", tmp_path / "run"]
    first, second = server.run(2, *train, first={0: full})
    assert first.code == second.code == 2
    assert first.err.startswith("error: cannot write") and "No space left" in first.err
    assert second.err.startswith("error: rank 0: cannot write") and "No space left" in second.err
    assert second.out == ""  # the leader prints, and nobody else


def test_a_rank_that_hangs_is_named(server: Server, tmp_path: Path) -> None:
    hang = "import time, rl2meta.training as t; t._learnt = lambda *given: time.sleep(30)"
    train = ["train", *CASES["rl2"], *BATCH, "--run-dir", tmp_path / "run"]
    started = server.start(2, *train, first={1: hang}, seconds=3)
    ended = server.wait(Started(started.ranks[:1], started.said[:1]))
    started.ranks[1].kill()
    started.ranks[1].wait()
    assert ended[0].code == 2 and "got none of rank 1: it hangs, after 3 s" in ended[0].err


def test_a_signal_to_one_rank_stops_all_of_them(server: Server, alone: Path, tmp_path: Path) -> None:
    asked = "import os, signal, rl2meta.experiments.trainings as t; after = t._after_update\n"
    asked += "def told(*given):\n    os.kill(os.getpid(), signal.SIGTERM)\n    return after(*given)\n"
    asked += "t._after_update = told"
    run = ["--run-dir", tmp_path / "run"]
    ended = server.run(2, "train", *CASES["over_all_tasks"], *BATCH, *run, first={1: asked})
    assert [each.code for each in ended] == [128 + signal.SIGTERM] * 2, ended
    assert "stopped and saved at update 1/2" in ended[0].out and ended[1].out == ""
    (last,) = server.run(1, "train", "--resume", *run)
    assert last.code == 0 and _bits(tmp_path / "run") == _bits(alone / "over_all_tasks")


def test_ranks_that_differ_are_refused(server: Server, tmp_path: Path) -> None:
    other = "import rl2meta.experiments.agreement as a; a._code_digest = lambda: 'other'"
    train = ["train", *CASES["rl2"], *BATCH, "--run-dir", tmp_path / "run"]
    ended = server.run(2, *train, first={1: other}, more={1: ["seed=5"]})
    assert [each.code for each in ended] == [2, 2]
    for each in ended:
        assert "seed is 0 on rank 0, 5 on rank 1" in each.err and "the code of rl2meta is" in each.err
        assert "Traceback" not in each.err
    assert not (tmp_path / "run").exists()


def test_an_evaluation_is_that_of_one_process(server: Server, alone: Path, tmp_path: Path) -> None:
    assert rl2meta.evaluation.TENSORS_TOGETHER > 20 and rl2meta.experiments.contest.FEWEST_TUNING_TASKS > 50
    for size in (1, 2):
        code = EVALUATE.format(
            runs=[str(alone / "rl2"), str(alone / "all_actions")], out=f"{tmp_path}/{size}"
        )
        ended = server.run(size, first=dict.fromkeys(range(size), code))
        assert [each.code for each in ended] == [0] * size, ended
    found = [json.loads((tmp_path / name).read_text()) for name in ("1-0", "2-0", "2-1")]
    assert found[0].keys() == {"rl2", "all_actions", "thompson", "ucb1"}
    assert all(each == found[0] for each in found)


def _all_trained(server: Server, folder: Path, size: int, names: list[str] | None = None) -> Path:
    cases = json.dumps({name: [*CASES[name], *BATCH] for name in names or CASES})
    code = TRAIN_ALL.format(cases=cases, folder=str(folder))
    ended = server.run(size, first=dict.fromkeys(range(size), code))
    assert [each.code for each in ended] == [0] * size, ended
    return folder


def _bits(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the tensors of the newest checkpoint, and the metrics without durations."""
    newest = max((run / "checkpoints").iterdir())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if "second" not in name} for row in rows]
    return (newest / "tensors.safetensors").read_bytes(), kept


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
    return port
