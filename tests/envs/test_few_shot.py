"""N-way K-shot tasks: which classes and images they have, and how these are distorted."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rl2meta.envs import glyphs as letters
from rl2meta.envs import image_pools
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.few_shot import FewShot, distortions, warped
from rl2meta.envs.image_pools import _read
from rl2meta.errors import UserError
from rl2meta.tasks import TensorTasks, sample_tasks

CPU = torch.device("cpu")


def folders(path: Path, groups: int = 4, classes: int = 3, images: int = 6, side: int = 6) -> Path:
    """Write classes in groups; the brightness of every image says which image of which class it is."""
    for group in range(groups):
        for number in range(classes):
            place = path / f"group{group}" / f"class{number}"
            place.mkdir(parents=True)
            for image in range(images):
                brightness = 20 * (group * classes + number) + image
                Image.fromarray(np.full((side, side), brightness, np.uint8)).save(place / f"{image}.png")
    return path


@pytest.fixture(name="law")
def fixture_law(tmp_path: Path) -> FewShot:
    return plain(source="image_folders", path=str(folders(tmp_path)))


def plain(**settings: Any) -> FewShot:
    """A family without distortions, so that an image keeps its brightness."""
    small = {"ways": 3, "shots": 2, "queries": 2, "size": 6, "turn": 0.0, "shear": 0.0, "stretch": 0.0}
    return FewShot(**{**small, "shift": 0.0, **settings})


def lived(law: FewShot, tasks: TensorTasks, episodes: int) -> dict[str, torch.Tensor]:
    """Play class 0 in every episode; return brightness, target and so on, [num_tasks, episodes]."""
    env = law.make_envs(len(tasks), CPU)
    seen, _ = env.reset(seed=0, options={"tasks": tasks})
    rows: list[dict[str, torch.Tensor]] = []
    for _ in range(episodes):
        brightness = (seen.amax(dim=(1, 2, 3)) * 255).round().long()
        seen, reward, _, _, info = env.step(torch.zeros(len(tasks), dtype=torch.int64))
        rows.append({"brightness": brightness, "reward": reward, **info})
    names = ("brightness", "reward", "target", "class", "support", "regret")
    return {name: torch.stack([row[name] for row in rows], dim=1) for name in names}


def test_the_family_keeps_the_contract(law: FewShot) -> None:
    check_distribution(law)  # it says that it is not steady: every episode of a task has its own image


def test_support_and_queries_share_no_image_and_say_the_truth(law: FewShot) -> None:
    tasks = sample_tasks(law, 50, 0, "train")
    seen = lived(law, tasks, 12)
    assert torch.equal(seen["support"], torch.arange(12).expand(50, 12) < 6)
    assert torch.equal(seen["brightness"] // 20, seen["class"])  # the class that is told is that of the image
    assert torch.equal(seen["reward"], (seen["target"] == 0).float())
    assert torch.equal(seen["regret"], 1 - seen["reward"])
    for images, target, kinds in zip(seen["brightness"], seen["target"], seen["class"], strict=True):
        assert len(set(images.tolist())) == 12  # no image twice, neither within nor between the two
        for start in range(0, 12, 3):
            assert sorted(target[start : start + 3].tolist()) == [0, 1, 2]  # every round has each class
        assert len(set(zip(target.tolist(), kinds.tolist(), strict=True))) == 3  # a number means one class


def test_after_the_last_query_the_first_comes_again(law: FewShot) -> None:
    seen = lived(law, sample_tasks(law, 4, 0, "test"), 18)
    assert torch.equal(seen["brightness"][:, 6:12], seen["brightness"][:, 12:])
    assert not seen["support"][:, 6:].any()


def test_whole_groups_are_held_out(law: FewShot) -> None:
    train, test = (
        set(sample_tasks(law, 200, 0, split).parameters["classes"].flatten().tolist())
        for split in ("train", "test")
    )
    assert len(train) + len(test) == 12 and not train & test
    assert {kind // 3 for kind in train}.isdisjoint({kind // 3 for kind in test})


def test_a_class_that_is_turned_is_another_class(tmp_path: Path) -> None:
    for number in range(4):
        image = np.zeros((6, 6), np.uint8)
        image[0, :3] = 60 * (number + 1)  # a stroke at the upper left
        (tmp_path / f"c{number}").mkdir()
        for copy in range(4):
            Image.fromarray(image).save(tmp_path / f"c{number}" / f"{copy}.png")
    law = plain(source="image_folders", path=str(tmp_path), rotations=True, ways=8)
    tasks = sample_tasks(law, 20, 0, "train")
    assert int(tasks.parameters["classes"].max()) >= 12  # class + 4 · quarters
    env = law.make_envs(20, CPU)
    seen, _ = env.reset(seed=0, options={"tasks": tasks})
    told = env.step(torch.zeros(20, dtype=torch.int64))[4]["class"]
    ends = {0: (0, 0), 1: (5, 0), 2: (5, 5), 3: (0, 5)}
    for image, kind in zip(seen[:, 0], told.tolist(), strict=True):
        row, column = ends[kind // 4]
        assert image[row, column] > 0 and int((image > 0.01).sum()) == 3


def test_distortions_are_as_large_as_they_say() -> None:
    law, none = FewShot(turn=1 / 6, stretch=0.2, shear=0.3, shift=0.2), torch.zeros(1, dtype=torch.int64)
    turned = distortions(law, torch.tensor([[1.0, 0, 0, 0, 0, 0]]), none)[0]
    assert math.degrees(math.atan2(turned[1, 0], turned[0, 0])) == pytest.approx(15)
    others = distortions(law, torch.tensor([[0.0, 1, -1, 1, 1, -1]]), none)[0]
    expected = torch.tensor([[1 / 1.2, 0.3, 0.2], [0.0, 1 / 0.8, -0.2]])
    torch.testing.assert_close(others, expected)
    image = torch.rand(1, 1, 6, 6)
    torch.testing.assert_close(warped(image, distortions(law, torch.zeros(1, 6), none)), image)


def test_examples_of_one_image_differ_by_distortion_alone(law: FewShot) -> None:
    distorted = FewShot(**{**vars(law), "shift": 0.5})
    tasks = sample_tasks(distorted, 5, 0, "train")
    again = lived(distorted, tasks, 8), lived(distorted, tasks, 8)
    assert torch.equal(again[0]["brightness"], again[1]["brightness"])  # a trial repeats to the bit
    assert (
        distorted.sample(5, torch.Generator().manual_seed(1), "train").parameters["jitter"].abs().max() <= 1
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ways": 100}, "distribution.ways: expected at most the 9 train classes"),
        ({"queries": 9}, "distribution.queries: expected shots \\+ queries of at most the 6 images"),
        ({"path": "/nowhere/at/all"}, "distribution.path: expected a folder with a folder of images"),
    ],
)
def test_what_does_not_fit_is_explained(law: FewShot, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sample_tasks(FewShot(**{**vars(law), **settings}), 2, 0, "train")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (folders(tmp_path) / "group0" / "class0" / "7.png").write_text("x")
    with pytest.raises(UserError, match=r"expected an image, got .*7\.png"):
        plain(source="image_folders", path=str(tmp_path)).pool()
    with pytest.raises(ValueError, match="a path if and only if source is image_folders"):
        FewShot(source="image_folders")


def test_transparency_is_a_white_page_and_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[2:4, :, 3] = 255  # two rows of black ink on a transparent page
    Image.fromarray(ink).save(tmp_path / "ink.png")
    greys = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(greys).save(tmp_path / "greys.png")
    page, ramp = _read([tmp_path / "ink.png", tmp_path / "greys.png"], 8, 1)[:, 0].numpy()
    assert (page[2:4] == 0).all() and (page[[0, 1, 4, 5, 6, 7]] == 255).all()
    np.testing.assert_array_equal(ramp, greys // 256)


@pytest.fixture(name="few")
def fixture_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Few letters, and a cache of their own; letters that look the same, too."""
    codes = [ord(letter) for letter in "ABOgЖАДΣΒωԱბ"]  # Latin A and B, Cyrillic А, Greek Β
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(letters, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(letters, "_shared_letters", lambda: codes)
    letters.glyphs.cache_clear()
    image_pools.pool_of.cache_clear()
    yield codes
    letters.glyphs.cache_clear()
    image_pools.pool_of.cache_clear()


def test_letters_are_drawn_once_without_those_that_look_alike(
    few: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = letters.glyphs()
    assert "".join(map(chr, known.letters.tolist())) == "ABOgЖДΣωԱბ"  # the earlier script keeps its letter
    assert known.held_out.tolist() == [False] * 6 + [True] * 4
    assert known.images.shape == (10, 12, 28, 28) and known.images.float().mean(dim=(2, 3)).min() > 5
    monkeypatch.setattr(letters, "_drawn", lambda: pytest.fail("expected the file"))
    letters.glyphs.cache_clear()
    assert torch.equal(letters.glyphs().images, known.images)
    monkeypatch.undo()


def test_a_damaged_file_of_letters_is_drawn_again(few: list[int], tmp_path: Path) -> None:
    letters.glyphs()
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    letters.glyphs.cache_clear()
    assert len(letters.glyphs().letters) == 10
    law = FewShot(ways=3, queries=3)
    classes = sample_tasks(law, 20, 0, "test").parameters["classes"]
    assert classes.min() >= 6


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pool = FewShot(source="digits", size=8).pool()
    assert (pool.train.tolist(), pool.test.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    data = datasets.load_digits()
    first = data.images[list(data.target).index(7)] / 16
    shown = pool.images[int(pool.first[7]), 0].numpy() / 255
    np.testing.assert_allclose(shown, first, atol=1 / 255)
