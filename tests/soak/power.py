"""Power cuts, by a model of the worst disk: what was not synced may be there, or in part, or not at all."""

import os
import random
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

from experiments import KINDS
from kills import WATCHED
from report import Row

import rl2meta
from rl2meta.errors import UserError

Image = dict[Path, bytes | None]  # a file's content; None for a folder


class Disk:
    """The contents that files had at their last fsync, and the names that folders had at theirs.

    Files and folders are known by their inodes. All of them are held open, so that none is used again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.held: list[int] = []
        descriptor = os.open(root, os.O_RDONLY)
        self.synced(descriptor)
        os.close(descriptor)

    def synced(self, descriptor: int) -> None:
        """Note what a file or a folder holds now."""
        status = os.fstat(descriptor)
        self.held.append(os.dup(descriptor))
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(descriptor) as entries:
                self.names[status.st_ino] = {entry.name: entry.inode() for entry in entries}
        else:
            self.content[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def after_cut(self, chance: random.Random) -> Image:
        """Return what a power cut at this moment leaves; each thing not synced by chance."""
        files: dict[int, bytes] = {}
        names: dict[int, dict[str, int]] = {}
        for path in (self.root, *self.root.rglob("*")):
            self._look(path, files, names)
        image: Image = {}
        self._walk(self.root.stat().st_ino, Path(), files, names, image, chance)
        return image

    def _look(self, path: Path, files: dict[int, bytes], names: dict[int, dict[str, int]]) -> None:
        inode = path.stat().st_ino
        self.held.append(os.open(path, os.O_RDONLY))
        if path.is_dir():
            names[inode] = {each.name: each.stat().st_ino for each in path.iterdir()}
        else:
            files[inode] = path.read_bytes()

    def _walk(
        self,
        folder: int,
        place: Path,
        files: dict[int, bytes],
        names: dict[int, dict[str, int]],
        image: Image,
        chance: random.Random,
    ) -> None:
        """Add a folder to the image: with the names of its last sync or, as likely, with those of now."""
        there = self.names.get(folder, {})
        chosen = names.get(folder, there) if chance.random() < 0.5 else there
        for name, inode in chosen.items():
            if inode in names or inode in self.names:
                image[place / name] = None
                self._walk(inode, place / name, files, names, image, chance)
            else:
                image[place / name] = self._bytes(inode, files, chance)

    def _bytes(self, inode: int, files: dict[int, bytes], chance: random.Random) -> bytes:
        kept, now = self.content.get(inode, b""), files.get(inode, b"")
        if kept == now:
            return kept
        part = chance.randrange(len(now) + 1)
        return chance.choice((kept, now, now[:part], bytes(len(now)), now[:part] + bytes(len(now) - part)))


def power_cuts(home: Path, number: int, chance: random.Random) -> Row:
    """Train, cut the power at random file operations, and load what is left."""
    row = Row(
        "a power cut at a random moment of a training; what was not synced is lost, in part or whole",
        "the newest checkpoint that was told as saved, or a newer one, is whole",
    )
    while row.tried < number:
        for told, image in _cuts_of_one_training(home / "disk", chance):
            _load(row, home / "left", told, image)
    return row


def _cuts_of_one_training(root: Path, chance: random.Random) -> list[tuple[int, Image]]:
    """Return what would be left by power cuts during one training, and the update saved by then."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    disk, sync, cuts, told = Disk(root), os.fsync, [], [0]
    watching = [True]

    def fsync(descriptor: Any) -> None:
        sync(descriptor)
        disk.synced(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        changes = event in WATCHED - {"open", "os.listdir"} and str(root) in str(arguments[0])
        if changes and watching[0] and told[0] and chance.random() < 0.15:
            watching[0] = False  # the look itself opens files
            cuts.append((told[0], disk.after_cut(chance)))
            watching[0] = True

    def saved(run: rl2meta.Run, row: dict[str, Any]) -> None:
        whole = [int(path.name[7:]) for path in (root / "run" / "checkpoints").glob("update_????????")]
        told[0] = max(whole, default=0)  # an update ended after its save had returned

    config = {**KINDS["RL²"], "training": {**KINDS["RL²"]["training"], "updates": 12, "checkpoint_every": 2}}
    sys.addaudithook(hook)
    os.fsync = fsync  # type: ignore[assignment]
    try:
        rl2meta.train(config, run_dir=root / "run", callbacks=[saved])
    finally:
        os.fsync, watching[0] = sync, False
        for descriptor in disk.held:
            os.close(descriptor)
    return cuts


def _load(row: Row, folder: Path, told: int, image: Image) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, data in image.items():
        if data is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).write_bytes(data)
    try:
        found: object = rl2meta.load_run(folder / "run").update
    except UserError as error:
        found = str(error)
    row.check(isinstance(found, int) and found >= told, f"saved {told}, found {found}")
