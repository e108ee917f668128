"""``rl2meta benchmark``: every suite in miniature, and its instruments against what is known by hand."""

import ctypes
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rl2meta import cli
from rl2meta.agents.maml import named
from rl2meta.agents.maml_classification import MAMLClassificationConfig, maml_classification_learner
from rl2meta.agents.maml_trpo import MAMLTRPOConfig
from rl2meta.agents.rows import Rows
from rl2meta.commands import benchmark as command
from rl2meta.envs.few_shot import FewShot
from rl2meta.memory import keep_memory
from rl2meta.speed import maml
from rl2meta.speed.envs import env_suite
from rl2meta.speed.few_shot import LOOP, adapted, few_shot_suite, of_layers
from rl2meta.speed.machine import Peaks, median_seconds, peak_memory, peaks
from rl2meta.speed.measuring import Instruments, measure, table
from rl2meta.speed.recurrent import Shape, rollout_suite, train_suite
from rl2meta.speed.references import references_suite
from rl2meta.speed.report import SHIPPED, Measurement
from rl2meta.speed.suites import Suite, Workload
from rl2meta.speed.work import work_of
from rl2meta.speed.workers import worker_suite

CPU = torch.device("cpu")
PUBLISHED = Path(__file__).parents[1] / "docs" / "benchmarks"
TURNS = 2
BASE = Shape(trials=8, pulls=3, hidden_size=4)
GROWTH = {"12 trials": BASE._replace(trials=12)}
MINIATURE = Measurement(
    suites={
        "env": partial(env_suite, tasks=8, bandit_tasks=(4, 16), steps=3),
        "rollout": partial(rollout_suite, base=BASE, growth=GROWTH),
        "train": partial(train_suite, base=BASE, growth=GROWTH),
        "maml": partial(
            maml.maml_suite,
            episodes=2,
            base=maml.BASE._replace(tasks=2, horizon=3),
            growth={name: shape._replace(tasks=2, horizon=3) for name, shape in maml.GROWTH.items()},
            config=MAMLTRPOConfig(conjugate_gradients=2, line_searches=2),
        ),
        "few_shot": partial(few_shot_suite, law=FewShot(ways=2, queries=2, size=4), tasks=2),
        "references": partial(references_suite, config="smoke", tasks=20, tuning_tasks=20),
        "workers": partial(worker_suite, environments=2, steps=2),
    },
    rivals={"sb3": {"train": partial(train_suite, against="sb3", base=BASE, growth=GROWTH)}},
    turns=TURNS,
    instruments=Instruments(
        peaks=partial(peaks, size=32, copied=2**12, timed=partial(median_seconds, seconds=0.0))
    ),
)
"""Every suite, with as little to do as it can have."""
MEGABYTES = 2**20
Report = dict[str, Any]
Benchmark = Callable[..., tuple[str, Report]]
COUNTED = {
    "flops_per_step",
    "fraction_of_matrix_product",
    "fraction_of_best_matrix_product",
    "bytes_per_step",
    "fraction_of_copy",
}
ALWAYS = {"setting", "env_steps_per_second", "peak_memory_bytes"}
MACHINE = (
    "matrix_product_flops_per_second",
    "onednn_matrix_product_flops_per_second",
    "copy_bytes_per_second",
)


# Every suite, through the command line


@pytest.fixture
def benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Benchmark:
    """Run ``rl2meta benchmark ARGS`` in this process and in miniature -> what it said, and what it wrote."""
    monkeypatch.setattr(command, "run_benchmark", partial(command.run_benchmark, measurement=MINIATURE))

    def call(*args: str) -> tuple[str, Report]:
        out = tmp_path / "benchmark.json"
        options = ["--seconds", "0.001", "--device", "cpu", "--threads", "1", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["rl2meta", "benchmark", *args, *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out, json.loads(out.read_text())

    return call


def _check(said: str, suite: Report, counted: bool = True) -> None:
    """Every figure is there, once a turn where it is of a turn, and follows from the others."""
    assert suite.keys() == {"setting", "machine", "contestants", "ratios"}
    product, onednn, copy = (suite["machine"][name] for name in MACHINE)
    assert len(product) == len(onednn) == len(copy) == TURNS * len(suite["contestants"])
    assert min(*product, *onednn, *copy) > 0
    for index, (name, figures) in enumerate(suite["contestants"].items()):
        assert f"  {name} " in said
        assert figures.keys() == (ALWAYS | COUNTED if counted else ALWAYS), name
        speeds = figures["env_steps_per_second"]
        assert len(speeds) == TURNS and min(speeds) > 0 and math.isfinite(max(speeds))
        if counted:
            own = slice(index * TURNS, (index + 1) * TURNS)
            best = [max(peak) for peak in zip(product[own], onednn[own], strict=True)]
            peaks = {"matrix_product": product[own], "best_matrix_product": best, "copy": copy[own]}
            _check_fractions(figures, peaks)
    ours = next(iter(suite["contestants"].values()))["env_steps_per_second"]
    for name, ratios in suite["ratios"].items():
        theirs = suite["contestants"][name]["env_steps_per_second"]
        assert ratios == pytest.approx([a / b for a, b in zip(ours, theirs, strict=True)])
        assert f"rl2meta / {name}, turn by turn: " in said


def _check_fractions(figures: Report, peaks: dict[str, list[float]]) -> None:
    for name, most in peaks.items():
        each = figures["bytes_per_step" if name == "copy" else "flops_per_step"]
        want = [each * v / peak for v, peak in zip(figures["env_steps_per_second"], most, strict=True)]
        assert figures[f"fraction_of_{name}"] == pytest.approx(want)


def _forward(rows: int, hidden: int, inputs: int = 8, arms: int = 5) -> int:
    """Operations of one step of RL² on ``rows`` bandits: an LSTM, a head over the arms, and one of the value.

    Its input is an observation of 1, the last of 5 arms one-hot, a reward, and a flag.
    """
    return 2 * rows * (4 * hidden * (inputs + hidden) + hidden * arms + hidden)


def test_every_family_is_benchmarked_alone(benchmark: Benchmark) -> None:
    said, report = benchmark("--suite", "env")
    suite = report["suites"]["env"]
    _check(said, suite)
    sizes = {name: figures["setting"]["tasks"] for name, figures in suite["contestants"].items()}
    assert sizes.pop("BernoulliBandits, 4 tasks") == 4 and sizes.pop("BernoulliBandits, 16 tasks") == 16
    assert set(sizes.values()) == {8} and {"BernoulliBandits", "TwoStep", "PointNavigation"} <= sizes.keys()
    assert suite["contestants"]["BernoulliBandits"]["flops_per_step"] == 0
    assert suite["contestants"]["BernoulliBandits"]["bytes_per_step"] > 0


def test_rollouts_are_benchmarked(benchmark: Benchmark) -> None:
    said, report = benchmark("--suite", "rollout")
    suite = report["suites"]["rollout"]
    _check(said, suite)
    assert [each["setting"]["trials"] for each in suite["contestants"].values()] == [8, 12]
    for figures in suite["contestants"].values():
        assert figures["flops_per_step"] == _forward(rows=1, hidden=4)


def test_training_is_benchmarked_against_stable_baselines(benchmark: Benchmark) -> None:
    pytest.importorskip("sb3_contrib")
    said, report = benchmark("--suite", "train", "--against", "sb3")
    suite = report["suites"]["train"]
    _check(said, suite)
    rivals = ["RecurrentPPO, TrialEnv", "RecurrentPPO, our batched environment"]
    assert next(iter(suite["contestants"])) == "rl2meta"
    assert suite["contestants"].keys() == {"rl2meta", "12 trials", *rivals}
    assert list(suite["ratios"]) == rivals
    assert suite["setting"] == {"num_arms": 5, "epochs": 3, "minibatches": 4} | BASE._asdict()
    acting = _forward(rows=1, hidden=4)
    for name in ("rl2meta", "12 trials"):  # three epochs, each pass back less than twice the pass there
        assert 6 * acting < suite["contestants"][name]["flops_per_step"] < 10 * acting


def test_maml_and_references_are_benchmarked_in_one_run(benchmark: Benchmark) -> None:
    said, report = benchmark("--suite", "maml, references,maml")
    assert list(report["suites"]) == ["maml", "references"]
    assert report["threads"] == 1 and report["torch"] == torch.__version__
    for suite in report["suites"].values():
        _check(said, suite)
        assert not suite["ratios"]
    settings = {name: each["setting"] for name, each in report["suites"]["maml"]["contestants"].items()}
    assert settings["two layers of 256"]["hidden_sizes"] == [256, 256]
    assert settings["the metric on all steps"]["curvature_fraction"] == 1
    assert settings["rl2meta"] == {
        "tasks": 2,
        "horizon": 3,
        "hidden_sizes": [64, 64],
        "curvature_fraction": 0.1,
    }
    assert {"random", "gittins", "thompson"} <= report["suites"]["references"]["contestants"].keys()


def test_images_are_benchmarked_beside_a_loop_over_tasks(benchmark: Benchmark) -> None:
    said, report = benchmark("--suite", "few_shot")
    suite = report["suites"]["few_shot"]
    _check(said, suite, counted=False)
    assert list(suite["contestants"]) == ["rl2meta", "first order", LOOP] and list(suite["ratios"]) == [LOOP]


def test_the_loop_over_tasks_computes_what_all_tasks_at_once_compute() -> None:
    """Loss and meta-gradient after two inner steps, of the layers that both networks share."""
    config = MAMLClassificationConfig(filters=4, transductive=True)
    space = gym.spaces.Box(0.0, 1.0, (1, 8, 8), np.float32)
    learner = maml_classification_learner(space, gym.spaces.Discrete(5), config)
    pixels, label = torch.rand(3, 2, 5, 64), torch.arange(5).expand(3, 2, 5)
    ones = torch.full((3, 5), 0.2)
    phases = [Rows(pixels[:, i], label[:, i], ones, ones, torch.ones(3, 5, 0) > 0) for i in (0, 0, 1)]
    ours = learner.inner.losses(learner.inner.replay(named(learner.meta), phases)[-1], phases[-1])
    shared = [value for name, value in named(learner.meta).items() if ".norms." not in name]
    gradient = torch.autograd.grad(ours.mean(), shared)
    network = of_layers(learner.meta.network)  # type: ignore[arg-type]
    theirs = []
    for task in range(3):
        weights = adapted(network, pixels[task, 0].reshape(5, 1, 8, 8), label[task, 0], 0.4, 2)
        logits = torch.func.functional_call(network, weights, (pixels[task, 1].reshape(5, 1, 8, 8),))
        theirs.append(torch.nn.functional.cross_entropy(logits, label[task, 1]))
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-3, atol=1e-4)
    other = torch.autograd.grad(torch.stack(theirs).mean(), shared)
    for one, another in zip(gradient, other, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-2, atol=1e-4)


def test_the_benchmark_of_workers_steps_everyones_environments(benchmark: Benchmark) -> None:
    said, report = benchmark("--suite", "workers")
    suite = report["suites"]["workers"]
    _check(said, suite, counted=False)
    assert len(suite["contestants"]) == 4 and list(suite["ratios"]) == list(suite["contestants"])[1:]


@pytest.mark.parametrize(
    ("name", "make"), [("rollout", rollout_suite), ("maml", maml.maml_suite), ("few_shot", few_shot_suite)]
)
def test_the_shipped_sizes_are_those_of_the_published_figures(
    name: str, make: Callable[[torch.device], Suite]
) -> None:
    published = json.loads((PUBLISHED / f"{name}_cpu.json").read_text())["suites"][name]
    suite = make(CPU)
    assert SHIPPED.suites[name] is make and suite.setting == published["setting"]
    settings = {workload: figures["setting"] for workload, figures in published["contestants"].items()}
    assert {workload: each.setting for workload, each in suite.workloads.items()} == settings


# What the work is


def test_a_product_counts_two_operations_for_each_pair_of_numbers() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 4)

    def unit() -> int:
        torch.mm(a, b)
        return 10

    work = work_of(unit)
    assert work.flops == 2 * 8 * 16 * 4 / 10
    assert work.moved == 4 * (8 * 16 + 16 * 4 + 8 * 4) / 10


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("rows", [3, 70])
def test_a_fused_layer_counts_the_products_that_it_is_made_of(layers: int, rows: int) -> None:
    steps, inputs, hidden = 5, 3, 8
    lstm = torch.nn.LSTM(inputs, hidden, layers)
    x = torch.ones(steps, rows, inputs)

    def there() -> int:
        with torch.no_grad():
            lstm(x)
        return 1

    def back_too() -> int:
        lstm(x)[0].sum().backward()
        return 1

    each = 2 * rows * 4 * hidden  # operations a step, for each number that a gate takes
    forward = each * steps * ((inputs + hidden) + (layers - 1) * 2 * hidden)
    assert work_of(there).flops == forward
    # Nobody asks for the gradients of the input and of each layer's state at the start.
    assert work_of(back_too).flops == 3 * forward - each * (steps * inputs + layers * hidden)
    assert work_of(back_too).flops == _cell_by_cell(lstm, x)


def _cell_by_cell(lstm: torch.nn.LSTM, x: Tensor) -> int:
    """Count the same layers there and back, written as a loop."""
    with FlopCounterMode(display=False) as counted:
        for layer in range(lstm.num_layers):
            names = (f"{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            weights = [getattr(lstm, name) for name in names]
            h = c = torch.zeros(x.shape[1], lstm.hidden_size)
            outputs = []
            for row in x:
                h, c = torch.lstm_cell(row, (h, c), *weights)
                outputs.append(h)
            x = torch.stack(outputs)
        x.sum().backward()
    return counted.get_total_flops()


def test_fused_layers_are_back_after_counting_whatever_happens() -> None:
    backends = (torch.backends.mkldnn, torch.backends.cudnn)
    before, during = [backend.enabled for backend in backends], []

    def unit() -> int:
        during.extend(backend.enabled for backend in backends)
        return 1

    def fault() -> int:
        raise LookupError

    assert any(before)  # else there would be nothing to see
    work_of(unit)
    assert during == [False, False]
    assert [backend.enabled for backend in backends] == before
    with pytest.raises(LookupError):
        work_of(fault)
    assert [backend.enabled for backend in backends] == before


def _moved(work: Callable[[], object]) -> float:
    def unit() -> int:
        work()
        return 1

    return work_of(unit).moved


def test_an_elementwise_operation_moves_what_it_reads_and_what_it_writes() -> None:
    a, b = torch.ones(100, 7), torch.ones(100, 7)
    assert _moved(lambda: a + b) == 3 * a.nbytes
    assert _moved(lambda: a.add_(b)) == 3 * a.nbytes
    assert _moved(lambda: a.half()) == 1.5 * a.nbytes
    assert _moved(lambda: torch.stack([a, b])) == 4 * a.nbytes


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[0],
        lambda x: x[2:5, 1],
        lambda x: x.T,
        lambda x: x.mT,
        lambda x: x.reshape(-1),
        lambda x: x.flatten(),
        lambda x: x.unsqueeze(1).expand(8, 3, 4),
        lambda x: x.chunk(2),
        lambda x: x.split(3),
        lambda x: x.unbind(),
        lambda x: x.movedim(0, 1),
        lambda x: x.detach(),
        lambda x: x.contiguous(),  # it is already
    ],
)
def test_views_move_nothing(view: Callable[[Tensor], object]) -> None:
    x = torch.ones(8, 4)
    assert _moved(lambda: view(x)) == 0
    assert _moved(lambda: (view(x), x + x)) == 3 * x.nbytes


# What the machine can do


def _touch() -> int:
    """Allocate and free 64 MiB, every page written to."""
    torch.ones(64 * MEGABYTES // 4)
    return 1


def test_peak_memory_is_what_was_in_use_at_once() -> None:
    if peak_memory(lambda: None, CPU) is None:
        pytest.skip("this system does not tell")
    keep_memory()
    torch.ones(256 * MEGABYTES // 4)  # an earlier peak is none; what was kept of it counts, taken again
    assert 60 * MEGABYTES < _told(_touch) < 200 * MEGABYTES
    held = torch.ones(64 * MEGABYTES // 4)
    assert _told(held.sum) < 10 * MEGABYTES  # what was in use at the start does not count


def _told(work: Callable[[], object]) -> int:
    memory = peak_memory(work, CPU)
    assert memory is not None
    return memory


@pytest.mark.parametrize("obstacle", ["no malloc_trim", "no file", "not allowed"])
def test_where_memory_cannot_be_told_the_work_is_done_nevertheless(
    obstacle: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if obstacle == "no malloc_trim":
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    files = {"no file": {"status": tmp_path / "none"}, "not allowed": {"reset": tmp_path}}  # a folder
    calls: list[int] = []
    assert peak_memory(lambda: calls.append(1), CPU, **files.get(obstacle, {})) is None
    assert calls == [1]


def test_the_time_of_a_sleep_is_the_sleep() -> None:
    durations = itertools.cycle([0.002, 0.01, 0.03])
    assert 0.009 < median_seconds(lambda: time.sleep(next(durations)), CPU, seconds=0.12) < 0.025
    calls: list[int] = []
    median_seconds(lambda: calls.append(1), CPU, seconds=0.0)
    assert len(calls) == 4  # a median of fewer would not be one


def test_peaks_are_those_of_this_machine() -> None:
    told = peaks(CPU, size=64, copied=2**16, timed=lambda work, device: (work(), 0.5)[1])
    assert told == Peaks(product=4 * 64**3, onednn=4 * 64**3, copy=4 * 2**16)  # twice in a second
    assert Peaks(2.0, 3.0, 9.0).best == 3 and Peaks(3.0, 2.0, 9.0).best == 3
    measured = peaks(CPU, size=64, copied=2**16, timed=partial(median_seconds, seconds=0.0))
    assert min(measured) > 0 and measured.best >= measured.product


# How workloads are measured


@pytest.fixture
def happened() -> list[str]:
    """What is measured, in order."""
    return []


@pytest.fixture
def at_rest(happened: list[str]) -> Instruments:
    """A machine of two speeds in turn that costs nothing to measure."""
    speeds = itertools.cycle([Peaks(100.0, 200.0, 50.0), Peaks(400.0, 300.0, 150.0)])

    def measured(device: torch.device) -> Peaks:
        happened.append("machine")
        return next(speeds)

    return Instruments(peaks=measured, memory=lambda unit, device: None)


def _suite(happened: list[str], **workloads: Workload) -> Suite:
    def noted(name: str, each: Workload) -> Workload:
        def unit() -> int:
            happened.append(name)
            return each.unit()

        return each._replace(unit=unit)

    return Suite("a title", {}, {name: noted(name, each) for name, each in workloads.items()})


def test_workloads_take_turns_and_so_does_the_machine(at_rest: Instruments, happened: list[str]) -> None:
    asleep = Workload(lambda: (time.sleep(0.002), 10)[1], countable=False)
    measure(_suite(happened, A=asleep, B=asleep), CPU, seconds=0.0, instruments=at_rest)
    assert happened == ["machine", "A", "machine", "B"] * 5
    assert SHIPPED.turns == 5


def test_a_workload_runs_whole_units_for_its_share_of_the_time(
    at_rest: Instruments, happened: list[str]
) -> None:
    asleep = Workload(lambda: (time.sleep(0.004), 10)[1], countable=False)
    report = measure(_suite(happened, A=asleep), CPU, seconds=0.06, turns=2, instruments=at_rest)
    turns = " ".join(happened).split("machine")[1:]
    assert len(turns) == 2 and all(2 <= turn.count("A") <= 8 for turn in turns)  # 30 ms by 4 ms and a little
    for turn, speed in zip(turns, report["contestants"]["A"]["env_steps_per_second"], strict=True):
        assert (
            10 * turn.count("A") / 0.2 < speed <= 10 / 0.004
        )  # steps of all units over the time of the turn


LEFT, RIGHT = torch.ones(1, 2), torch.ones(2, 2)


class Clock:
    """Stands still until someone puts it forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def lasting(self, *seconds: float) -> Callable[[], int]:
        """Return a unit whose calls take so long, one after the other.

        Each has 8 operations in 4 steps, which read 24 bytes and write 8.
        """
        durations = iter(seconds)

        def unit() -> int:
            torch.mm(LEFT, RIGHT)
            self.now += next(durations)
            return 4

        return unit


def test_a_turn_lasts_until_its_share_of_the_time_is_over_by_the_clock(at_rest: Instruments) -> None:
    clock = Clock()
    suite = Suite("a title", {}, {"A": Workload(clock.lasting(*[0.25] * 6, *[1.0] * 2), countable=False)})
    report = measure(suite, CPU, 3.0, turns=2, instruments=replace(at_rest, clock=lambda: clock.now))
    assert report["contestants"]["A"]["env_steps_per_second"] == [16.0, 4.0]
    assert clock.now == 6 * 0.25 + 2 * 1.0  # each turn's share is 1.5 s


def test_ratios_and_fractions_are_those_of_each_turn(at_rest: Instruments) -> None:
    clock = Clock()
    counting = 100.0  # seconds of the unit whose work is counted, which belongs to no turn
    workloads = {
        "ours": Workload(clock.lasting(counting, 0.5, 0.125), {"size": 1}),  # 8 steps per second, then 32
        "theirs": Workload(clock.lasting(1.0, 0.5), rival_of="ours", countable=False),  # 4, then 8
        "more": Workload(clock.lasting(counting, 4.0, 4.0)),
    }
    instruments = replace(at_rest, clock=lambda: clock.now)
    report = measure(Suite("a title", {"tasks": 3}, workloads), CPU, 0.1, turns=2, instruments=instruments)
    assert report["contestants"]["theirs"]["env_steps_per_second"] == [4.0, 8.0]
    assert report["ratios"] == {"theirs": [2.0, 4.0]}
    assert report["setting"] == {"tasks": 3}
    assert report["machine"] == {
        "matrix_product_flops_per_second": [100.0, 400.0, 400.0, 100.0, 100.0, 400.0],
        "onednn_matrix_product_flops_per_second": [200.0, 300.0, 300.0, 200.0, 200.0, 300.0],
        "copy_bytes_per_second": [50.0, 150.0, 150.0, 50.0, 50.0, 150.0],
    }
    ours = report["contestants"]["ours"]
    assert ours["setting"] == {"size": 1}
    assert (ours["flops_per_step"], ours["bytes_per_step"]) == (2.0, 8.0)
    assert ours["fraction_of_matrix_product"] == pytest.approx([16 / 100, 64 / 400])
    assert ours["fraction_of_best_matrix_product"] == pytest.approx([16 / 200, 64 / 400])
    assert ours["fraction_of_copy"] == pytest.approx([64 / 50, 256 / 150])
    assert report["contestants"]["theirs"].keys() == ALWAYS


def test_the_table_shows_every_workload() -> None:
    def figures(*speeds: float, **more: Any) -> Report:
        return {"setting": {}, "env_steps_per_second": list(speeds), "peak_memory_bytes": None, **more}

    counted = {"flops_per_step": 2500.0, "fraction_of_best_matrix_product": [0.1, 0.3, 0.2]}
    report = {
        "machine": dict(zip(MACHINE, ([1e9, 9e9, 2e9], [4e9, 3e9, 5e9], [7.5e9, 1e9, 9e9]), strict=True)),
        "contestants": {
            "ours": figures(1500.0, 3000.0, 1000.0, **{**counted, "peak_memory_bytes": 3 * MEGABYTES}),
            "the others": figures(10.0, 30.0, 20.0),
            "an environment": figures(7.0, 7.0, 7.0, flops_per_step=0.0, fraction_of_best_matrix_product=[0]),
        },
        "ratios": {"the others": [150.0, 100.0, 50.0], "a far one": [0.0182, 0.0212, 1.0]},
    }
    machines, head, ours, others, environment, ratio, small = table(report)
    assert machines == "matrix products: 2 GFLOP/s (torch.mm), 4 (oneDNN); copies: 7.5 GB/s"
    assert ours.split() == ["ours", "1,500", "(1,000", "–", "3,000)", "2.5", "20%", "3"]
    assert others.split() == ["the", "others", "20", "(10", "–", "30)"]  # uncounted, and no memory told
    assert environment.split() == ["an", "environment", "7", "(7", "–", "7)"]  # without any product
    assert len({len(line) for line in (head, ours, others, environment)}) == 1
    assert ratio == "rl2meta / the others, turn by turn: 100.0 (min 50.0, max 150.0)"
    assert small == "rl2meta / a far one, turn by turn: 0.021 (min 0.018, max 1.0)"


def test_where_the_c_library_has_no_name_the_work_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def windows(name: None) -> None:
        raise TypeError

    monkeypatch.setattr(ctypes, "CDLL", windows)
    calls: list[int] = []
    assert peak_memory(lambda: calls.append(1), torch.device("cpu")) is None and calls == [1]


def test_making_room_moves_nothing() -> None:
    x = torch.ones(8, 4)

    def unit() -> int:
        torch.empty(8, 4), torch.empty_like(x), torch.ops.aten._unsafe_view(x, [32])
        return 1

    assert work_of(unit).moved == 0
