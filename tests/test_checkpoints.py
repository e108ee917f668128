"""Checkpoints: exact, whole after a kill at any moment, and never trusted when damaged."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl2meta import files
from rl2meta.errors import UserError
from rl2meta.experiments.checkpoints import (
    STATE,
    TENSORS,
    Checkpoint,
    CorruptCheckpoint,
    load,
    newest,
    prune,
    save,
)


def make(update, value=0.0):
    tensors = {"w": torch.full((3, 2), value), "steps": torch.tensor(update)}
    return Checkpoint(update, tensors, {"learner": {"lr": 0.1}, "best": None, "history": [1, 2.5, "é"]})


def same(a, b):
    tensors = a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(a.tensors[name], b.tensors[name]) and a.tensors[name].dtype == b.tensors[name].dtype
        for name in a.tensors
    )
    return (a.update, a.state) == (b.update, b.state) and tensors


def no_warning(message):
    pytest.fail(f"warned: {message}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_kind_of_tensor_comes_back_to_the_bit(tmp_path):
    tensors = {
        "f64": torch.tensor([0.1, -0.0, float("nan"), float("inf")], dtype=torch.float64),
        "bf16": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "rng": torch.Generator().manual_seed(1).get_state(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "expanded": torch.ones(1).expand(4),
    }
    loaded = load(save(tmp_path, Checkpoint(3, tensors, {}))).tensors
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(loaded["f64"][1])


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    base = torch.arange(6.0)
    loaded = load(save(tmp_path, Checkpoint(0, {"all": base, "tied": base, "part": base[2:4]}, {}))).tensors
    assert torch.equal(loaded["tied"], base)
    assert torch.equal(loaded["part"], base[2:4])
    loaded["all"].zero_()
    assert torch.equal(loaded["tied"], base)


def test_the_state_comes_back_to_the_bit_and_in_order(tmp_path):
    state = {"z": [0.1 + 0.2, 5e-324, -0.0, 2**70, True, None], "a": {"é\ud800\n": "", "": {}}, "m": []}
    loaded = load(save(tmp_path, Checkpoint(0, {}, state))).state
    assert loaded == state
    assert list(loaded) == ["z", "a", "m"]
    assert repr(loaded["z"]) == repr(state["z"])


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1.0, float("nan")]}, r"nan \(float\) at state\['a'\]\[1\]"),
        ({"a": float("-inf")}, r"-inf \(float\) at state\['a'\]"),
        ({"a": {1: 2}}, r"the key 1 in state\['a'\]"),
        ({"a": (1, 2)}, r"\(1, 2\) \(tuple\) at state\['a'\]"),
        ({"a": torch.ones(1)}, r"tensor.* \(Tensor\) at state\['a'\]"),
    ],
)
def test_a_state_that_json_would_change_is_refused(tmp_path, state, where):
    with pytest.raises(ValueError, match=f"expected what JSON can give back, got {where}"):
        save(tmp_path, Checkpoint(0, {}, state))
    assert names(tmp_path) == []


def test_negative_updates_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an update >= 0, got -1"):
        save(tmp_path, make(-1))


def test_an_identical_checkpoint_is_kept_as_it_is(tmp_path):
    path = save(tmp_path, make(5))
    inode = path.stat().st_ino
    assert save(tmp_path, make(5)) == path
    assert path.stat().st_ino == inode
    assert names(tmp_path) == ["update_00000005"]


@pytest.mark.parametrize("damage", [False, True])
def test_another_checkpoint_of_the_same_update_is_replaced(tmp_path, damage):
    path = save(tmp_path, make(5))
    if damage:
        (path / TENSORS).unlink()
    save(tmp_path, make(5, 1.0))
    assert same(load(path), make(5, 1.0))
    assert names(tmp_path) == ["update_00000005"]


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = save(tmp_path_factory.mktemp("intact"), make(7, 0.3))
    return path, {name: (path / name).read_bytes() for name in (TENSORS, STATE)}


def write_altered(intact, name, data):
    path, files = intact
    copy = path.with_name("copy")
    copy.mkdir(exist_ok=True)
    for file, content in {**files, name: data}.items():
        (copy / file).write_bytes(content)
    return copy


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_every_altered_byte_is_noticed(intact, data):
    name = data.draw(st.sampled_from([TENSORS, STATE]))
    content = bytearray(intact[1][name])
    for position in data.draw(
        st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3, unique=True)
    ):
        content[position] ^= data.draw(st.integers(1, 255))
    copy = write_altered(intact, name, bytes(content))
    with pytest.raises(CorruptCheckpoint) as caught:
        load(copy)
    assert str(copy) in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [TENSORS, STATE])
def test_every_cut_and_every_excess_is_noticed(intact, name):
    whole = intact[1][name]
    for data in [whole[:end] for end in range(len(whole))] + [whole + b"\n", whole + b"\0", whole * 2]:
        with pytest.raises(CorruptCheckpoint, match=name):
            load(write_altered(intact, name, data))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[1]", "unknown format None, expected 1"),
        (b'{"format":2}', "unknown format 2, expected 1"),
        (b'{"format":1}', "does not match its digest"),
        (b'{"format":1,"state":NaN}', "does not match its digest"),
    ],
)
def test_what_is_wrong_with_a_state_is_named(intact, content, what):
    with pytest.raises(CorruptCheckpoint, match=what):
        load(write_altered(intact, STATE, content))


def test_a_state_in_other_words_is_refused(intact):
    # Spaces change no meaning, but nothing that save did not write is trusted.
    with pytest.raises(CorruptCheckpoint, match="does not match its digest"):
        load(write_altered(intact, STATE, intact[1][STATE].replace(b":", b": ")))


def test_tensors_of_another_checkpoint_are_refused(intact, tmp_path):
    other = save(tmp_path, make(7, 0.4))
    with pytest.raises(CorruptCheckpoint, match="does not match its digest"):
        load(write_altered(intact, TENSORS, (other / TENSORS).read_bytes()))


def sealed(body):
    """The state file of ``body`` with its digest, as the format says: compact JSON in UTF-8."""
    digest = hashlib.sha256(compact(body)).hexdigest()
    return compact({**body, "sha256": digest})


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


def test_sealing_by_hand_is_what_save_does(intact):
    body = json.loads(intact[1][STATE])
    del body["sha256"]
    assert sealed(body) == intact[1][STATE]


def test_sealed_nonsense_is_refused(intact):
    junk = b"\x08" + bytes(7) + b"not json"
    body = {"format": 1, "update": 7, "state": {}, "tensors_sha256": hashlib.sha256(junk).hexdigest()}
    copy = write_altered(intact, TENSORS, junk)
    (copy / STATE).write_bytes(sealed(body))
    with pytest.raises(CorruptCheckpoint, match=f"{TENSORS} cannot be read"):
        load(copy)


@pytest.mark.parametrize(
    "odd",
    [{"update": value} for value in ("8", True, -1, 7.0, None, [7])]
    + [{"state": value} for value in (None, [], "x", 3)]
    + [{"tensors_sha256": value} for value in (None, 3, ["x"])]
    + [{"format": value} for value in (True, 1.0, "1", None, [])],
)
def test_what_was_sealed_and_is_odd_is_refused(intact, odd):
    body = json.loads(intact[1][STATE])
    del body["sha256"]
    copy = write_altered(intact, STATE, sealed({**body, **odd}))
    with pytest.raises(CorruptCheckpoint, match=STATE):
        load(copy)


@pytest.mark.parametrize("value", [b"1e400", b"-1e400", b"1" * 5000, b"[" * 900 + b"]" * 900])
def test_numbers_and_depths_that_python_cannot_give_back_are_refused(intact, value):
    text = intact[1][STATE].replace(b'"best":null', b'"best":' + value)
    body = text[: text.rindex(b',"sha256"')] + b"}"
    seal = b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'
    try:
        load(write_altered(intact, STATE, body[:-1] + seal))
    except CorruptCheckpoint as error:
        assert STATE in str(error)
    else:
        assert value.startswith(b"[")  # what is merely deep is no damage


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("kind", ["huge", "fifo", "folder"])
@pytest.mark.parametrize("name", [TENSORS, STATE])
def test_what_is_no_file_or_too_large_is_named_and_the_older_one_used(tmp_path, name, kind):
    save_all(tmp_path, 1, 2)
    path = tmp_path / "update_00000002" / name
    path.unlink()
    if kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    warnings = []
    assert newest(tmp_path, warnings.append).update == 1
    assert len(warnings) == 1
    assert f"update_00000002: {name} cannot be read: " in warnings[0]
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["update_00000001", "update_00000002"]


def test_a_copy_under_another_name_is_named_and_passed_over(tmp_path):
    path = save(tmp_path, make(7))
    for name in ("update_00000099", "update_000000007", "update_00000099.replaced"):
        shutil.copytree(path, tmp_path / name)
    warnings = []
    assert same(newest(tmp_path, warnings.append), make(7))
    assert len(warnings) == 2 or len(warnings) == 3  # the two of update 7 stand in any order
    assert "update_00000099: it holds update 7, expected the name update_00000007" in warnings[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("kind", ["file", "fifo", "loop", "forbidden"])
def test_a_folder_that_cannot_be_read_is_no_fresh_start(tmp_path, kind):
    folder = tmp_path / "checkpoints"
    if kind == "file":
        folder.write_text("")
    elif kind == "fifo":
        os.mkfifo(folder)
    elif kind == "loop":
        folder.symlink_to(folder)
    else:
        folder.mkdir(mode=0)
        if os.access(folder, os.R_OK):
            pytest.skip("root may read everything")
    with pytest.raises(UserError, match=f"cannot read {folder}: "):
        newest(folder, no_warning)


def test_what_stands_in_the_place_of_older_checkpoints_stops_no_run(tmp_path):
    (tmp_path / "update_00000001").write_text("a file")
    (tmp_path / "update_00000002").symlink_to("nowhere")
    (tmp_path / "update_00000009.tmp").write_text("a file")
    for update in (2, 3):  # the first takes the place of the link
        save(tmp_path, make(update))
        prune(tmp_path, keep=1)
        assert names(tmp_path) == [f"update_0000000{update}"]


def test_reading_while_a_run_saves_and_prunes_finds_one_each_time(tmp_path):
    save(tmp_path, make(1))
    done = threading.Event()

    def run():
        for update in range(2, 60):
            save(tmp_path, make(update))
            prune(tmp_path, keep=1)
        done.set()

    writer = threading.Thread(target=run)
    writer.start()
    seen = [1]
    while not done.is_set():
        seen.append(newest(tmp_path, no_warning).update)
    writer.join()
    assert seen == sorted(seen)
    assert newest(tmp_path, no_warning).update == 59


@pytest.mark.parametrize("name", [TENSORS, STATE])
def test_a_missing_file_is_named(tmp_path, name):
    path = save(tmp_path, make(1))
    (path / name).unlink()
    with pytest.raises(CorruptCheckpoint, match=f"update_00000001: {name} is missing"):
        load(path)


# --- the newest, and pruning ----------------------------------------------------------------------


def save_all(folder, *updates, corrupt=()):
    for update in updates:
        path = save(folder, make(update))
        if update in corrupt:
            (path / TENSORS).write_bytes(b"")


def test_the_newest_is_the_one_with_the_largest_update(tmp_path):
    assert newest(tmp_path / "missing", no_warning) is None
    save_all(tmp_path, 100_000_000, 9, 99_999_999)  # neither by age nor by name
    assert newest(tmp_path, no_warning).update == 100_000_000


def test_damaged_ones_are_passed_over_by_name(tmp_path):
    save_all(tmp_path, 1, 2, 3, 4, corrupt=(3, 4))
    warnings = []
    assert same(newest(tmp_path, warnings.append), make(2))
    assert [("update_00000004" in text, "update_00000003" in text) for text in warnings] == [
        (True, False),
        (False, True),
    ]


def test_no_silent_fresh_start(tmp_path):
    save_all(tmp_path, 1, 2, corrupt=(1, 2))
    warnings = []
    with pytest.raises(UserError, match=f"expected a whole checkpoint in {tmp_path}, got 2 damaged"):
        newest(tmp_path, warnings.append)
    assert len(warnings) == 2


def test_leftovers_are_ignored_and_then_removed(tmp_path):
    (tmp_path / "update_00000009.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert newest(tmp_path, no_warning) is None
    save_all(tmp_path, 1)
    assert newest(tmp_path, no_warning).update == 1
    assert names(tmp_path) == ["notes.txt", "update_00000001"]


def test_pruning_counts_only_whole_checkpoints(tmp_path):
    save_all(tmp_path, 1, 2, 3, 4, 5, corrupt=(2, 4))
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["update_00000003", "update_00000004", "update_00000005"]
    prune(tmp_path, keep=3)
    assert len(names(tmp_path)) == 3
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["update_00000005"]


def test_pruning_never_empties(tmp_path):
    save_all(tmp_path, 1, 2, corrupt=(1, 2))
    prune(tmp_path, keep=1)
    assert len(names(tmp_path)) == 2
    prune(tmp_path / "missing", keep=1)
    with pytest.raises(ValueError, match="expected to keep at least 1 checkpoint, got keep=0"):
        prune(tmp_path, keep=0)


def test_a_full_disk_costs_no_older_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, make(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for checkpoint in (make(1, 9.0), make(2)):
        with pytest.raises(UserError, match=r"cannot write .*update_0000000\d: No space left on device"):
            save(tmp_path, checkpoint)
        assert names(tmp_path) == ["update_00000001"]
        assert same(newest(tmp_path, no_warning), make(1))


# --- kills ----------------------------------------------------------------------------------------

# Forks instead of starting an interpreter for every kill: importing torch takes seconds.
PRELUDE = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from rl2meta.experiments.checkpoints import Checkpoint, load, newest, prune, save
torch.set_num_threads(1)
folder = Path(sys.argv[1])

def make(update, value):
    return Checkpoint(update, {"w": torch.full((size,), float(value))}, {"value": value})

def check(loaded):
    assert loaded is not None, "lost"
    assert loaded.tensors["w"].unique().tolist() == [loaded.state["value"]], "mixed"
    return loaded

def refuse(message):
    raise AssertionError("a kill left a damaged checkpoint: " + message)

def in_child(work):
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            print("child failed:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return child
"""

# The audit hook runs before each of Python's file operations: the n-th one is where the n-th child dies.
KILL_AT_EACH_STEP = (
    PRELUDE
    + """
size = 10
watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir"}

def work_until(n):
    steps = 0
    def hook(event, arguments):
        nonlocal steps
        if event in watched and str(folder) in str(arguments[0]):
            steps += 1
            if steps == n:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    save(folder, make(2, 1))   # replaces
    save(folder, make(3, 1))   # adds
    prune(folder, 1)           # removes

for n in range(1, 1000):
    shutil.rmtree(folder, ignore_errors=True)
    save(folder, make(1, 0))
    save(folder, make(2, 0))
    _, status = os.waitpid(in_child(lambda: work_until(n)), 0)
    loaded = check(newest(folder, refuse))
    assert loaded.update in (2, 3) and (loaded.update, loaded.state["value"]) != (3, 0)
    for path in folder.glob("update_????????"):
        check(load(path))      # the older ones too
    save(folder, make(4, 4))   # the next save removes what the kill left
    assert check(newest(folder, refuse)).update == 4
    left = sorted(path.name for path in folder.iterdir())
    assert all(name.startswith("update_") and name[7:].isdigit() for name in left), left
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0 and loaded.update == 3 and len(left) == 2, left
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print("steps", n)
"""
)

KILL_AT_RANDOM = (
    PRELUDE
    + """
size = 50_000
random.seed(0)

def work(write):
    for update in range(1, 10**6):
        save(folder, make(update, 0))
        save(folder, make(update, update))
        os.write(write, update.to_bytes(4, "big"))  # told only when it is saved
        prune(folder, 2)

for trial in range(8):
    shutil.rmtree(folder, ignore_errors=True)
    read, write = os.pipe()
    child = in_child(lambda: work(write))
    os.read(read, 4)
    time.sleep(random.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(write)
    told = [1]
    while data := os.read(read, 4):
        told.append(int.from_bytes(data, "big"))
    os.close(read)
    loaded = check(newest(folder, refuse))
    assert loaded.update in (told[-1], told[-1] + 1), (loaded.update, told[-1])
    assert (loaded.update, loaded.state["value"]) != (told[-1], 0)
print("trials", trial + 1)
"""
)


def run_script(script, folder):
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_kill_before_any_file_operation_loses_nothing(tmp_path):
    word, steps = run_script(KILL_AT_EACH_STEP, tmp_path / "checkpoints")
    assert word == "steps"
    assert int(steps) > 25  # the hook saw the writes, the renames and the removals


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_kill_at_a_random_moment_loses_nothing(tmp_path):
    assert run_script(KILL_AT_RANDOM, tmp_path / "checkpoints") == ["trials", "8"]


def test_what_was_about_to_be_replaced_is_found_and_put_back(tmp_path):
    path = save(tmp_path, make(5))
    path.rename(path.with_name(path.name + ".replaced"))
    assert same(newest(tmp_path, no_warning), make(5))
    save(tmp_path, make(6))
    assert names(tmp_path) == ["update_00000005", "update_00000006"]
    shutil.copytree(path, path.with_name(path.name + ".replaced"))
    save(tmp_path, make(7))
    assert names(tmp_path) == ["update_00000005", "update_00000006", "update_00000007"]


def test_keeping_more_than_there_are_ends_at_once(tmp_path):
    save(tmp_path, Checkpoint(1, {}, {}))
    prune(tmp_path, 10**30)
    assert newest(tmp_path, pytest.fail).update == 1
