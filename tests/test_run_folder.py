"""Run folders: who may write, what a kill leaves, what is refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from rl2meta import files
from rl2meta.errors import UserError
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.files import write_atomically

CONFIG = "seed: 1\nname: ε\n"


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "a", CONFIG)


def test_a_created_folder_can_be_opened(folder):
    opened = RunFolder.open(folder.path)
    assert opened == folder
    assert opened.config_text() == CONFIG
    assert opened.config_path.read_bytes() == CONFIG.encode()
    paths = (folder.metrics_path, folder.checkpoints_path, folder.tensorboard_path)
    assert {path.parent for path in paths} == {folder.path}
    assert len(set(paths)) == 3


def test_an_empty_folder_may_become_a_run(tmp_path):
    assert RunFolder.create(tmp_path, CONFIG).config_text() == CONFIG


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"already in use.*--run-dir.*--resume"):
        RunFolder.create(tmp_path, CONFIG)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_second_run_in_the_same_folder_is_refused(folder):
    with pytest.raises(UserError, match="already in use"):
        RunFolder.create(folder.path, "other: 1\n")
    assert folder.config_text() == CONFIG


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"in use \(a file\)"):
        RunFolder.create(tmp_path / "file", CONFIG)
    with pytest.raises(UserError, match=r"cannot write .*file/below"):
        RunFolder.create(tmp_path / "file" / "below", CONFIG)


def test_of_two_that_create_at_once_one_is_refused(tmp_path, monkeypatch):
    # The other process is as fast as can be: it comes after our first look, just before we lock the folder.
    path, locked = tmp_path / "run", RunFolder.locked

    def locked_too_late(folder):
        monkeypatch.setattr(RunFolder, "locked", locked)
        RunFolder.create(path, "other: 1\n")
        return locked(folder)

    monkeypatch.setattr(RunFolder, "locked", locked_too_late)
    with pytest.raises(UserError, match="already in use"):
        RunFolder.create(path, CONFIG)
    assert RunFolder.open(path).config_text() == "other: 1\n"


def test_only_a_run_can_be_opened(tmp_path):
    with pytest.raises(UserError, match="got nothing; give one that training wrote"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(UserError, match=r"without a config\.yaml"):
        RunFolder.open(tmp_path)


def test_an_unreadable_config_is_named(folder):
    folder.config_path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"cannot read .*config\.yaml"):
        folder.config_text()


HOLD_LOCK = """
import sys
from pathlib import Path
from rl2meta.experiments.run_folder import RunFolder
with RunFolder.open(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_lock_keeps_other_processes_out_and_dies_with_its_holder(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, folder.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another process is writing to {folder.path}"), folder.locked():
            pytest.fail("two processes hold the lock")
        holder.kill()
    with folder.locked():
        pass


def test_the_lock_is_released_when_the_block_fails(folder):
    with pytest.raises(KeyError), folder.locked():
        raise KeyError
    with folder.locked():
        pass


def test_metrics_come_back_as_they_were_appended(folder):
    assert folder.read_metrics() == []
    rows = [{"update": 1, "loss": 0.1 + 0.2, "note": "α\n"}, {"update": 2, "loss": -1e-300, "note": None}]
    for row in rows:
        folder.append_metrics(row)
        assert folder.metrics_path.read_bytes().endswith(b"\n")  # on disk at once
    assert folder.read_metrics() == rows
    assert [json.loads(line) for line in folder.metrics_path.read_text().splitlines()] == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_metrics_that_json_cannot_hold_are_refused_by_name(folder, value):
    with pytest.raises(ValueError, match=r"expected finite metrics, got loss=.* at update 3"):
        folder.append_metrics({"update": 3, "loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append_metrics({"update": 3, "losses": [value]})
    assert folder.read_metrics() == []


def test_metrics_without_an_update_are_refused(folder):
    with pytest.raises(ValueError, match="under 'update', got None"):
        folder.append_metrics({"loss": 1.0})


def test_truncation_keeps_the_rows_up_to_the_update(folder):
    for update in (1, 2, 3, 4):
        folder.append_metrics({"update": update, "x": 1 / update})
    lines = folder.metrics_path.read_bytes().splitlines(keepends=True)
    folder.truncate_metrics(2)
    assert folder.metrics_path.read_bytes() == b"".join(lines[:2])
    folder.append_metrics({"update": 3, "x": 0.5})
    assert [row["update"] for row in folder.read_metrics()] == [1, 2, 3]
    folder.truncate_metrics(0)
    assert folder.metrics_path.read_bytes() == b""


def test_truncation_without_metrics_makes_none(folder):
    folder.truncate_metrics(5)
    assert not folder.metrics_path.exists()


def test_a_line_torn_anywhere_by_a_kill_is_forgotten(folder):
    rows = [{"update": 1, "loss": 0.5}, {"update": 2, "note": "é", "loss": 0.25}]
    for row in rows:
        folder.append_metrics(row)
    whole, digests = folder.metrics_path.read_bytes(), digests_path(folder).read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) + 1):
        folder.metrics_path.write_bytes(whole[:end])
        digests_path(folder).write_bytes(digests)
        kept = rows if end >= len(whole) - 1 else rows[:1]  # only the line's end is missing: it is whole
        assert folder.read_metrics() == kept
        folder.truncate_metrics(2)
        folder.append_metrics({"update": 3})
        assert folder.read_metrics() == [*kept, {"update": 3}]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', "", "\x00\x00"])
def test_damage_before_the_last_line_is_named_not_dropped(folder, line):
    folder.append_metrics({"update": 1})
    with folder.metrics_path.open("a") as file:
        file.write(line + "\n")
    folder.append_metrics({"update": 3})
    before = folder.metrics_path.read_bytes()
    with pytest.raises(UserError, match="got something else in line 2"):
        folder.truncate_metrics(3)
    assert folder.metrics_path.read_bytes() == before


def appended(folder, count):
    for update in range(1, count + 1):
        folder.append_metrics({"update": update, "loss": update / 7, "note": "é"})
    return folder.metrics_path.read_bytes(), digests_path(folder).read_bytes()


def digests_path(folder):
    return folder.metrics_path.with_name("metrics.digests")


def test_a_flipped_digit_is_named(folder):
    rows, digests = appended(folder, 4)
    for position in range(rows.rindex(b"\n", 0, -1)):  # in the last row a bit may look like a kill
        damaged = bytearray(rows)
        damaged[position] ^= 1
        folder.metrics_path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"in line \d .*metrics\.jsonl|metrics\.jsonl, got .* in line \d"):
            folder.read_metrics()
        assert (folder.metrics_path.read_bytes(), digests_path(folder).read_bytes()) == (damaged, digests)
    folder.metrics_path.write_bytes(rows.replace(b"0.2857", b"0.2858"))
    with pytest.raises(UserError, match=r"in line 2 of .*metrics\.jsonl .* got another row; restore both"):
        folder.truncate_metrics(3)
    assert folder.truncate_metrics(1) == 1  # what comes after is made anew
    assert [row["update"] for row in folder.read_metrics()] == [1]


@pytest.mark.parametrize("damage", ["flipped", "removed", "doubled", "swapped", "BOM", "empty"])
def test_rows_and_digests_that_do_not_agree_are_refused(folder, damage):
    appended(folder, 4)
    path = digests_path(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    first = bytes([lines[0][0] ^ 1])
    path.write_bytes(
        {
            "flipped": first + b"".join(lines)[1:],
            "removed": b"".join(lines[:-1]),
            "doubled": b"".join([lines[0], *lines]),
            "swapped": b"".join(reversed(lines)),
            "BOM": b"\xff\xfe" + b"".join(lines),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(UserError, match=r"digests, got (another row|a row without a digest); restore both"):
        folder.read_metrics()


def test_runs_of_earlier_versions_are_unchecked_until_they_are_resumed(folder):
    appended(folder, 4)
    digests_path(folder).unlink()
    damaged = folder.metrics_path.read_bytes().replace(b"0.2857", b"0.2858")
    folder.metrics_path.write_bytes(damaged)
    assert [row["update"] for row in folder.read_metrics()] == [1, 2, 3, 4]
    assert folder.truncate_metrics(3) == 3
    folder.append_metrics({"update": 4})
    assert len(folder.read_metrics()) == len(digests_path(folder).read_bytes().splitlines()) == 4
    folder.metrics_path.write_bytes(folder.metrics_path.read_bytes().replace(b"0.2858", b"0.2857"))
    with pytest.raises(UserError, match="got another row"):
        folder.read_metrics()


def test_a_digest_whose_row_a_kill_prevented_is_forgotten(folder):
    rows, digests = appended(folder, 3)
    two = rows[: rows.rindex(b"\n", 0, -1) + 1]
    for end in range(len(two), len(rows)):  # the third row, torn anywhere or not begun
        folder.metrics_path.write_bytes(rows[:end])
        digests_path(folder).write_bytes(digests)
        kept = 3 if end == len(rows) - 1 else 2
        assert len(folder.read_metrics()) == kept
        assert folder.truncate_metrics(3) == kept
        folder.append_metrics({"update": 4})
        assert [row["update"] for row in folder.read_metrics()] == [*range(1, kept + 1), 4]
    folder.metrics_path.unlink()  # a kill before the first row
    assert folder.read_metrics() == []
    assert folder.truncate_metrics(0) == 0
    folder.append_metrics({"update": 1})
    assert folder.read_metrics() == [{"update": 1}]


def test_a_kill_between_the_two_renames_of_a_truncation_loses_nothing(folder):
    _, digests = appended(folder, 4)
    folder.truncate_metrics(2)
    digests_path(folder).write_bytes(digests)  # as if it had been killed before the second
    assert [row["update"] for row in folder.read_metrics()] == [1, 2]
    assert folder.truncate_metrics(2) == 2
    folder.append_metrics({"update": 3})
    assert [row["update"] for row in folder.read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        '{"update": 1}\n{"update": 2}\n'.encode("utf-16"),
        '{"update": 1}\n'.encode("utf-32"),
        b'\xef\xbb\xbf{"update": 1}\n',
        b'{"update": 1, "x": "\xff"}\n',
        b'{"update": 1, "x": NaN}\n',
        b'{"update": true}\n',
        b'{"update": 1.0}\n',
        b'{"update": 0}\n',
        b'{"update": -1}\n',
        b'{"update": 1}\n{"update": 1}\n',
        b'{"update": 2}\n{"update": 1}\n',
        b'{"update": 1}\n\n{"update": 2}\n',
        b'{"update": ' + b"[" * 10**5 + b"\n",
        b'{"update": ' + b"1" * 5000 + b"}\n",
    ],
)
def test_rows_that_no_run_wrote_are_named(folder, text):
    folder.metrics_path.write_bytes(text)
    with pytest.raises(UserError, match=r"rising updates in .*metrics\.jsonl, got something else in line \d"):
        folder.read_metrics()
    with pytest.raises(UserError, match="got something else in line"):
        folder.truncate_metrics(5)
    assert folder.metrics_path.read_bytes() == text


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "metrics.digests"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "huge", "loop"])
def test_what_is_no_file_of_a_run_is_named_and_left_alone(folder, name, kind):
    appended(folder, 2)
    path = folder.path / name
    path.unlink()
    if kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    before = path.lstat()
    readers = [folder.read_metrics, lambda: folder.truncate_metrics(0)]
    for read in [folder.config_text] if name == "config.yaml" else readers:
        with pytest.raises(UserError, match=f"cannot read {path}: "):
            read()
    assert path.lstat() == before


def claim(folder, out):
    with folder.new_evaluation_folder(out) as made:
        (made / "something").write_text("")
    return made


def test_evaluations_get_folders_of_their_own(folder):
    made = [claim(folder, None) for _ in range(3)]
    assert [path.name for path in made] == ["evaluation", "evaluation_2", "evaluation_3"]
    assert all(path.is_dir() and path.parent == folder.path for path in made)
    shutil.rmtree(made[1])
    (folder.path / "evaluation_2").write_text("a file in the way")
    assert claim(folder, None).name == "evaluation_4"


def test_an_evaluation_goes_where_it_is_told_but_over_nothing(folder, tmp_path):
    out = tmp_path / "deep" / "out"
    with folder.new_evaluation_folder(out) as made:
        assert made == out
        with pytest.raises(UserError, match="expected a new folder"):  # though it is empty: it is taken
            claim(folder, out)
        (out / "regret.csv").write_text("")
    with pytest.raises(UserError, match="expected a new folder, got a folder with something"):
        claim(folder, out)
    with pytest.raises(UserError, match="got a file"):
        claim(folder, out / "regret.csv")
    with pytest.raises(UserError):
        claim(folder, out / "regret.csv" / "below")


def test_an_evaluation_that_fails_leaves_no_folder(folder):
    with pytest.raises(RuntimeError), folder.new_evaluation_folder(None) as made:
        raise RuntimeError
    assert not made.exists()


def test_what_the_disk_refuses_names_the_path(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*/b: No space left on device; free some space"):
        RunFolder.create(folder.path.with_name("b"), CONFIG)
    folder.metrics_path.mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        folder.append_metrics({"update": 1})


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError(5, "Input/output error")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, step, fail)
            with pytest.raises(OSError, match="Input/output error"):
                write_atomically(path, b"new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]
    write_atomically(path, b"new\r\n")
    assert path.read_bytes() == b"new\r\n"
