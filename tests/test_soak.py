"""The short form of the soak, and what it stands on."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent / "soak"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def test_the_short_soak_finds_nothing() -> None:
    environment = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, SOAK, "--short", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\|.*\| (\d+) of (\d+)(?: \(.*\))? \|$", done.stdout, flags=re.MULTILINE)
    assert len(rows) == 8 and all(held == tried != "0" for held, tried in rows), done.stdout


def test_a_power_cut_keeps_what_was_synced_and_nothing_else_for_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SOAK)
    import power

    disk = power.Disk(tmp_path)
    for name in ("synced", "unsynced", "unnamed"):
        (tmp_path / name).write_bytes(b"12345678")
        if name == "unnamed":  # its content is on the disk, its name is not
            continue
        _sync(disk, tmp_path)
    for name in ("synced", "unnamed"):
        _sync(disk, tmp_path / name)
    (tmp_path / "synced").rename(tmp_path / "renamed")
    chance = random.Random(0)
    images = [disk.after_cut(chance) for _ in range(200)]
    for descriptor in disk.held:
        os.close(descriptor)
    left = [{str(path): data for path, data in image.items()} for image in images]
    assert all(each.get("synced", each.get("renamed")) == b"12345678" for each in left)
    assert {"renamed" in each for each in left} == {True, False}
    assert {each.get("unnamed") for each in left} == {None, b"12345678"}
    contents = {each.get("unsynced") for each in left}
    assert {b"", b"12345678", b"1234\0\0\0\0", bytes(8)} < contents


def _sync(disk: object, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    disk.synced(descriptor)  # type: ignore[attr-defined]
    os.close(descriptor)
