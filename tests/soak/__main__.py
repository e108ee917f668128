"""Kills, damage, refusals and power cuts: python tests/soak [--short | --part P] [--only PROBE] [--out FILE].

It takes some 30 minutes of CPU time, with --short some seconds; it needs Linux. It prints each failure with
file, step and signal, and the seed, with which --seed repeats it. With --out it replaces the table in that
document. The exit code is 1 if anything failed.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
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
from several import killed_ranks, numbers_of_ranks  # noqa: E402
from workers_killed import killed_workers  # noqa: E402

import rl2meta  # noqa: E402

Probe = Callable[[Path, random.Random], Row]


def main() -> int:
    """Run all probes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--short", action="store_true", help="a few tries of each kind")
    parser.add_argument("--part", type=float, default=1.0, help="the part of the whole time to take")
    parser.add_argument("--only", help="the name of one probe, such as kills")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--out", type=Path, help="a document whose table, or row of it, is replaced")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_STATE_HOME"] = str(Path(home, "state"))
        _import_everything()
        rows = _probe(Path(home), options.short, options.part, options.only, seed)
    print(table(rows))
    if options.out is not None:
        _replace(options.out, rows, options.only is not None)
    return int(any(row.failures for row in rows))


def _probes(short: bool, part: float) -> dict[str, Probe]:
    def tries(few: int, many: int) -> int:
        return few if short else max(few, round(part * many))

    every = 60 if short else max(1, round(1 / part))
    probes: dict[str, Probe] = {
        "kills": lambda at, chance: random_kills(at, tries(1, 100), chance),
        "operations": lambda at, chance: kills_at_file_operations(at, every, chance),
        "checkpoints": lambda at, chance: damaged_checkpoints(at, tries(50, 1300), chance),
        "folders": lambda at, chance: damaged_run_folders(at, tries(2, 300), chance),
        "refusals": lambda at, chance: refused_operations(at, every, chance),
        "sizes": lambda at, chance: too_large_files(at, tries(1, 40), chance),
        "outputs": lambda at, chance: places_and_outputs(at),
        "power": lambda at, chance: power_cuts(at, tries(10, 200), chance),
    }
    if short:  # tests/test_several_ranks.py and tests/workers try the others
        return probes
    return probes | {
        "workers": lambda at, chance: killed_workers(at, tries(1, 20), chance),
        "ranks": lambda at, chance: numbers_of_ranks(at),
        "killed ranks": lambda at, chance: killed_ranks(at, tries(2, 40), chance),
    }


def _probe(home: Path, short: bool, part: float, only: str | None, seed: int) -> list[Row]:
    probes = _probes(short, part)
    rows = []
    for name in probes if only is None else [only]:
        begun, spent = time.monotonic(), _cpu()
        (home / name).mkdir()
        chance = random.Random(f"{seed} {name}")  # so that one probe alone does what it did among all
        rows.append(row := probes[name](home / name, chance))
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


def _replace(path: Path, rows: list[Row], alone: bool) -> None:
    """Replace the table of a document, or one row of it if one probe ran alone."""
    text, document = table(rows), path.read_text()
    old = r"\| what \| must .*\n(\|.*\n)*"
    if alone:
        (row,) = rows
        old, text = rf"\| {re.escape(row.what)} \|.*\n", f"{row.text()}\n"
    path.write_text(re.sub(f"(?m)^{old}", lambda _: text, document, count=1))


if __name__ == "__main__":
    sys.exit(main())
