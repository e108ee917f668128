"""Pictures of tasks: a frame is a function of a task and of what has happened to it, and of nothing else."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rl2meta.errors import UserError
from rl2meta.history import History, Recorder
from rl2meta.tasks import TaskDistribution, Tasks

if TYPE_CHECKING:  # matplotlib takes a while to import, and most environments never draw
    from matplotlib.figure import Figure

Frame = NDArray[np.uint8]
MODES = ("human", "rgb_array", "ansi")
"""Gymnasium's names: a window, arrays of pixels, text."""
FPS = 4
"""Frames per second: a step of a trial is worth a look."""
SIZE = (640, 480)
_INCHES = 4.8  # the height of every figure, so text takes the same share of pictures of any size
_STYLED = (
    *("axes.", "figure.", "font.", "image.", "legend.", "lines.", "mathtext.", "patch.", "path.", "scatter."),
    *("text.", "xtick.", "ytick."),
)
"""Settings of matplotlib that show in a picture; users may have others in their matplotlibrc."""


@runtime_checkable
class Drawn(Protocol):
    """A law that can draw its tasks; a ``TaskDistribution`` may have this method."""

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw task ``row`` and what has happened to it into an empty figure, 4.8 inches high.

        The same arguments give the same picture.
        """
        ...


@runtime_checkable
class Described(Protocol):
    """A law that can describe its tasks as text; a ``TaskDistribution`` may have this method."""

    def describe(self, tasks: Tasks, row: int, history: History) -> str:
        """Return task ``row`` and what has happened to it as lines of text."""
        ...


@runtime_checkable
class Wrapped(Protocol):
    """A law with the tasks of another one, which draws and describes them."""

    @property
    def distribution(self) -> TaskDistribution:
        """The other law."""
        ...

    def inside(self, history: History) -> History:
        """Return the history with observations as the other law has them."""
        ...


def can_draw(law: Any) -> bool:
    """Return whether ``frame`` can draw the tasks of a law."""
    return isinstance(law.distribution if isinstance(law, Wrapped) else law, Drawn)


def can_describe(law: Any) -> bool:
    """Return whether ``text`` can describe the tasks of a law."""
    return isinstance(law.distribution if isinstance(law, Wrapped) else law, Described)


def modes_of(law: Any) -> list[str]:
    """Return the render modes of a law's environments, here: "human" needs a display."""
    there = {"human": can_draw(law) and has_display(), "rgb_array": can_draw(law), "ansi": can_describe(law)}
    return [mode for mode in MODES if there[mode]]


def has_display() -> bool:
    """Return whether windows can be opened, as far as the environment variables tell."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def frame(
    law: TaskDistribution, tasks: Tasks, row: int, history: History, size: tuple[int, int] = SIZE
) -> Frame:
    """Return a picture of task ``row`` with what has happened to it, uint8 [height, width, 3].

    The same arguments give the same pixels, whatever matplotlib's settings are.

    Args:
        law: of the tasks; see ``can_draw``.
        tasks: on any device.
        row: of the task.
        history: what has happened to it.
        size: width and height in pixels.

    Raises:
        UserError: for a law that cannot draw.
        ValueError: for a row that there is not, or a size without pixels.
    """
    law, history = _unwrapped(law, history)
    if not isinstance(law, Drawn):
        raise UserError(
            f"{law}: expected a law with a method draw, got none; docs/new_family.md has an example"
        )
    if not 0 <= row < len(tasks):
        raise ValueError(f"row: expected one of {len(tasks)} tasks, 0 … {len(tasks) - 1}, got {row}")
    if min(size) < 1:
        raise ValueError(f"size: expected width and height of at least 1 pixel, got {size}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _default_style():
        canvas: Any = FigureCanvasAgg(_figure(size))
        law.draw(canvas.figure, tasks, row, history)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # [height, width, 4] -> [height, width, 3]


def text(law: TaskDistribution, tasks: Tasks, row: int, history: History) -> str:
    """Return task ``row`` with what has happened to it as lines of text.

    Raises:
        UserError: for a law that has no text.
    """
    law, history = _unwrapped(law, history)
    if not isinstance(law, Described):
        raise UserError(f"{law}: expected a law with a method describe, got none; use frame")
    return law.describe(tasks, row, history)


def _unwrapped(law: TaskDistribution, history: History) -> tuple[TaskDistribution, History]:
    return (law.distribution, law.inside(history)) if isinstance(law, Wrapped) else (law, history)


def _figure(size: tuple[int, int]) -> "Figure":
    """Return an empty figure without pyplot's global state."""
    from matplotlib.figure import Figure

    dpi = size[1] / _INCHES
    inches = [(pixels + 1e-3) / dpi for pixels in size]  # matplotlib cuts off fractions of a pixel
    return Figure(figsize=(inches[0], inches[1]), dpi=dpi, facecolor="white")


def _default_style() -> AbstractContextManager[None]:
    """Return a context with matplotlib's defaults of all that shows in a picture."""
    import matplotlib

    defaults: Any = matplotlib.rcParamsDefault
    return matplotlib.rc_context({name: defaults[name] for name in defaults if name.startswith(_STYLED)})


class Screen:
    """What B environments keep and show where a render mode is set.

    Args:
        law: of the tasks.
        mode: one of ``MODES``.
        rows: the environments to show.

    Raises:
        UserError: for a mode that the law does not have, or that this machine cannot show.
    """

    def __init__(self, law: TaskDistribution, mode: str, rows: Sequence[int]) -> None:
        check_mode(law, mode)
        self.mode, self.rows = mode, tuple(rows)
        self._law, self._recorder = law, Recorder(law.horizon)
        self._tasks: Tasks | None = None
        self._window: _Window | None = None

    def begin(self, observation: Any, tasks: Tasks | None, new_trial: bool) -> None:
        """Note a reset; see ``Recorder.begin``."""
        self._tasks = tasks
        self._recorder.begin(observation, new_trial)

    def step(
        self, action: Any, reward: Any, last: Any, after: Any, now: Any, truth: Mapping[str, Any]
    ) -> None:
        """Note a step; see ``Recorder.step``."""
        self._recorder.step(action, reward, last, after, now, truth)

    def history(self, row: int) -> History:
        """Return what has happened to environment ``row``."""
        return self._recorder.history(row)

    def show(self, row: int, history: History) -> Any:
        """Return a frame or a text; with the mode "human", show the frame in a window and return None."""
        assert self._tasks is not None  # there is a history
        if self.mode == "ansi":
            return text(self._law, self._tasks, row, history)
        pixels = frame(self._law, self._tasks, row, history)
        if self.mode == "rgb_array":
            return pixels
        self._window = self._window or _Window(str(self._law))
        return self._window.show(pixels)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


@runtime_checkable
class Filmed(Protocol):
    """Environments that keep what happens to them from the reset after they got a ``screen``."""

    screen: Screen | None
    render_mode: str | None


def filmed(envs: Any) -> Filmed:
    """Return the environments; UserError if they cannot keep what happens."""
    if isinstance(envs, Filmed):
        return envs
    raise UserError(
        f"render_mode: expected environments that keep what happens, such as TensorVectorEnv, got "
        f"{type(envs).__name__}; use render_mode=None"
    )


def check_mode(law: TaskDistribution, mode: str) -> None:
    """Raise UserError for a mode that a law's environments do not have, here."""
    known = modes_of(law)
    if mode in known:
        return
    if mode == "human" and can_draw(law):
        raise UserError(
            "render_mode='human': expected a display, got neither DISPLAY nor WAYLAND_DISPLAY; use "
            "render_mode='rgb_array' and save the frames, for example with gymnasium.wrappers.RecordVideo"
        )
    has = f"one of {', '.join(map(repr, known))}, or None" if known else "None, as the family draws nothing"
    raise UserError(f"render_mode: expected {has}, got {mode!r}; docs/new_family.md says how a family draws")


class _Window:
    """A window of matplotlib; it needs pyplot, which knows the toolkits for windows."""

    def __init__(self, title: str) -> None:
        from matplotlib import pyplot

        with pyplot.rc_context({"toolbar": "None"}):
            width, height = (pixels / 100 for pixels in SIZE)
            self._figure = pyplot.figure(figsize=(width, height), dpi=100)
        if self._figure.canvas.required_interactive_framework is None:
            pyplot.close(self._figure)
            raise UserError(
                "render_mode='human': expected a toolkit for windows and a display that it can open, got "
                f"matplotlib's backend {pyplot.get_backend()}; install python3-tk or PyQt6, or use "
                "render_mode='rgb_array'"
            )
        if self._figure.canvas.manager is not None:
            self._figure.canvas.manager.set_window_title(title)
        axes = self._figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        self._image = axes.imshow(np.full((SIZE[1], SIZE[0], 3), 255, np.uint8), aspect="auto")
        self._figure.show()

    def show(self, pixels: Frame) -> None:
        """Show a frame for 1 / ``FPS`` seconds; nothing if the user has closed the window."""
        from matplotlib import pyplot

        if pyplot.fignum_exists(self._figure.number):
            self._image.set_data(pixels)
            self._figure.canvas.draw_idle()
            self._figure.canvas.start_event_loop(1 / FPS)

    def close(self) -> None:
        """Close the window."""
        from matplotlib import pyplot

        pyplot.close(self._figure)
