"""The files of a commit in a folder of their own, for a while."""

import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from rl2meta.errors import UserError

OPTION = "--against-commit"


def root(package: Path | None = None) -> Path:
    """Return the folder of the git checkout that this package, or another folder ``package``, is run from.

    Raises:
        UserError: if it is not in a checkout that knows its files, such as an installed copy, or there is no
            git.
    """
    package = package or Path(__file__).parents[1]
    try:
        _git(package, "ls-files", "--error-unmatch", "--", "__init__.py")
        return Path(_git(package, "rev-parse", "--show-toplevel").decode().strip())
    except _Refused as said:
        raise UserError(
            f"{OPTION}: expected rl2meta to run from a git checkout, got {package} ({said}); clone the "
            "repository, and install it with: pip install -c constraints.txt -e ."
        ) from None


def resolved(top: Path, revision: str) -> str:
    """Return the short name of the commit that a revision means, such as a commit, a tag or HEAD~3.

    Raises:
        UserError: if it means none.
    """
    words = ("rev-parse", "--verify", "--short", "--end-of-options", f"{revision}^{{commit}}")
    try:
        return _git(top, *words).decode().strip()
    except _Refused:
        raise UserError(
            f"{OPTION}: expected a commit, a tag or a branch of {top}, got {revision!r}; 'git log --oneline' "
            "names the commits, and 'git fetch --tags' brings those that are missing"
        ) from None


@contextmanager
def checked_out(top: Path, revision: str) -> Iterator[Path]:
    """Yield a new folder that holds the files of a commit, and remove it afterwards.

    The repository itself stays as it is: no worktree is added to it.
    """
    try:
        files = _git(top, "archive", "--format=tar", revision)
    except _Refused as said:
        raise UserError(f"{OPTION}: expected the files of {revision}, got: {said}; try 'git fsck'") from None
    with tempfile.TemporaryDirectory(prefix="rl2meta-") as folder:
        with tarfile.open(fileobj=BytesIO(files)) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # the first 3.11 had none
            archive.extractall(folder)
        yield Path(folder)


class _Refused(Exception):
    """Git failed; the text is the first line that it said."""


def _git(folder: Path, *words: str) -> bytes:
    """Return what git says in a folder."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    except OSError as error:
        raise _Refused(f"git: {error.strerror}") from None
    if done.returncode != 0:
        raise _Refused((done.stderr.decode(errors="replace").strip() or "git failed").splitlines()[0])
    return done.stdout
