"""Kills, damage, refusals and power cuts: python tests/soak [--short] [--part P] [--seed N] [--out FILE].

It takes about half an hour, with --short some seconds; it needs Linux. It prints each failure with file, step
and signal. With --out it replaces the table in that document. The exit code is 1 if anything failed.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch loads; children are forked, and must find no threads
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "workers" / "families")]
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[1], *filter(None, [os.environ.get("PYTHONPATH")])])

import torch  # noqa: E402
from damage import damaged_checkpoints, damaged_run_folders  # noqa: E402
from experiments import KINDS  # noqa: E402
from kills import kills_at_file_operations, random_kills  # noqa: E402
from power import power_cuts  # noqa: E402
from refusals import places_and_outputs, refused_operations, too_large_files  # noqa: E402
from report import Row, table  # noqa: E402

import rl2meta  # noqa: E402


def main() -> int:
    """Run all probes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--short", action="store_true", help="a few tries of each kind")
    parser.add_argument("--part", type=float, default=1.0, help="the part of the half hour to take")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--out", type=Path, help="a document whose table is replaced")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_STATE_HOME"] = str(Path(home, "state"))
        _import_everything()
        rows = _probe(Path(home), options.short, options.part, random.Random(seed))
    text = table(rows)
    print(text)
    if options.out is not None:
        _replace(options.out, text)
    return int(any(row.failures for row in rows))


def _probe(home: Path, short: bool, part: float, chance: random.Random) -> list[Row]:
    def tries(few: int, many: int) -> int:
        return few if short else max(few, round(part * many))

    every = 60 if short else max(1, round(1 / part))
    probes = {
        "kills": lambda at: random_kills(at, tries(1, 100), chance),
        "operations": lambda at: kills_at_file_operations(at, every, chance),
        "checkpoints": lambda at: damaged_checkpoints(at, tries(50, 1300), chance),
        "folders": lambda at: damaged_run_folders(at, tries(2, 300), chance),
        "refusals": lambda at: refused_operations(at, every, chance),
        "sizes": lambda at: too_large_files(at, tries(1, 40), chance),
        "outputs": places_and_outputs,
        "power": lambda at: power_cuts(at, tries(10, 200), chance),
    }
    rows = []
    for name, probe in probes.items():
        begun, spent = time.monotonic(), _cpu()
        (home / name).mkdir()
        rows.append(row := probe(home / name))
        print(f"{time.monotonic() - begun:6.1f} s, {_cpu() - spent:5.1f} s of CPU  {row.text()}", flush=True)
        for failure in row.failures:
            print(f"  FAILED  {failure}", flush=True)
    return rows


def _cpu() -> float:
    return sum(os.times()[:4])


def _import_everything() -> None:
    """Train agents of both kinds and judge them, so that children begin with all modules loaded."""
    little = {"updates": 1, "trials_per_update": 4, "episodes_per_trial": 8}
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            rl2meta.train({**KINDS[name], "training": little}, run_dir=Path(folder, f"run{number}"))
            for number, name in enumerate(("RL²", "MAML-TRPO", "MAML regression"))
        ]
        rl2meta.compare(runs[:2])


def _replace(path: Path, text: str) -> None:
    document = path.read_text()
    path.write_text(re.sub(r"(?m)^\| what \| must .*\n(\|.*\n)*", lambda _: text, document, count=1))


if __name__ == "__main__":
    sys.exit(main())
