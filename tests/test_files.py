"""Files that may be anything: whoever reads them gets the content or a message, at once."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rl2meta.errors import UserError
from rl2meta.files import read_file, read_text, reading

TERABYTE = 2**40


def test_the_content_comes_back_through_links_too(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"\0\r\n\xff")
    link.symlink_to(path)
    assert read_file(path) == read_file(link) == b"\0\r\n\xff"
    path.write_bytes(b"\xc3\xa9\r\nb\rc\n")
    assert read_text(path) == "é\nb\nc\n"  # as Path.read_text gives it


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket", "loop", "missing"])
def test_what_is_no_file_is_refused_at_once_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "thing"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "socket":
            monkeypatch.chdir(tmp_path)  # the name of a socket must be short
            listener.bind("thing")
        elif kind == "loop":
            path.symlink_to(path)
        with pytest.raises(UserError, match=f"cannot read {path}: .*; restore it from a copy"), reading(path):
            read_file(path)


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, TERABYTE)  # takes no place on the disk
    with pytest.raises(OSError, match="its 1,099,511,627,776 bytes are too large for the memory"):
        read_file(path)
    with pytest.raises(OSError, match="expected at most 4,000 bytes, got 1,099,511,627,776"):
        read_file(path, most=4000)
    os.truncate(path, 2**25)
    with pytest.raises(OSError, match="too large for the memory"):
        read_file(path, times=2**30)  # the file alone would fit


LIMITED = """
import resource, sys
from pathlib import Path
from rl2meta.errors import UserError
from rl2meta.files import read_file, reading
resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
try:
    with reading(Path(sys.argv[1])):
        read_file(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
def test_a_limit_of_the_process_is_a_message_too(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 2**29)
    said = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert said.stdout.startswith(f"cannot read {path}: its 536,870,912 bytes are too large for the memory")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("seed: 1".encode("utf-16"))
    with pytest.raises(UserError, match=f"cannot read {path}: 'utf-8' codec"), reading(path):
        read_text(path)
