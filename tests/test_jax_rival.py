"""The comparator in JAX does the same work as ours and learns as well; skipped where JAX is not installed."""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rl2meta.agents.maml_trpo import MAMLTRPOConfig
from rl2meta.commands import benchmark as command
from rl2meta.dynamic_programming import solve
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.errors import UserError
from rl2meta.rollout import RolloutWorker
from rl2meta.speed import maml
from rl2meta.speed.jax_process import JaxProcess
from rl2meta.speed.jax_rivals import ROWS, maml_beside_jax, train_beside_jax
from rl2meta.speed.recurrent import Shape, learner_of
from rl2meta.speed.report import SHIPPED, Measurement
from rl2meta.training import Budget, meta_train

CPU = torch.device("cpu")
needs_jax = pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed (extra benchmark)")


@needs_jax
def test_it_learns_as_well_as_ours_from_as_many_steps() -> None:
    from rl2meta.speed.jax_rl2 import bandits, make_program

    updates, shape = 40, Shape(trials=256, pulls=10, hidden_size=16)
    program = make_program(bandits(5), hidden_size=16, trials=256, episodes=10, epochs=3, minibatches=4)
    state, theirs = program.begin(0), []
    for _ in range(updates):
        state, mean = program.update(state)
        theirs.append(float(mean))
    rows: list[dict[str, Any]] = []
    law = BernoulliBandits(num_arms=5)
    # A learning rate that does not fall, as the program's: the budget is far from used up.
    budget = Budget(updates=10**9, trials_per_update=shape.trials, episodes_per_trial=shape.pulls)

    def record(row: dict[str, Any]) -> bool:
        rows.append(row)
        return len(rows) == updates  # whether to stop

    meta_train(learner_of(shape, CPU), law, RolloutWorker(law, CPU), budget, 0, record)
    ours = [row["mean_return"] for row in rows]
    assert theirs[0] == pytest.approx(5.0, abs=0.3) and ours[0] == pytest.approx(5.0, abs=0.3)
    last = sum(theirs[-10:]) / 10, sum(ours[-10:]) / 10
    assert min(last) > 5.9 and last[0] == pytest.approx(last[1], abs=0.35)


@needs_jax
def test_its_mdps_have_the_regrets_of_ours() -> None:
    import jax
    import numpy as np

    from rl2meta.speed.jax_rl2 import mdps, regrets_of

    law = mdps(4, 3, 5)
    means, cumulative, regrets = law.sample(jax.random.PRNGKey(0), 6)
    transitions = np.diff(np.asarray(cumulative), axis=-1, prepend=0.0)
    optimum = solve(torch.tensor(np.asarray(means)), torch.tensor(transitions).float(), 5)
    ours = optimum.value.unsqueeze(-1) - optimum.action_value
    assert torch.allclose(torch.tensor(np.asarray(regrets)), ours, atol=1e-5)
    assert np.allclose(regrets_of(means, transitions, 5), regrets, atol=1e-5)
    assert np.allclose(cumulative[..., -1], 1.0, atol=1e-5)


@needs_jax
def test_its_maml_improves_what_it_earns_after_adaptation() -> None:
    from rl2meta.speed.jax_maml import make_program

    program = make_program(tasks=20, lanes=10, horizon=20, hidden_sizes=(16,))
    state, returns = program.begin(0), []
    for _ in range(25):
        state, mean = program.update(state)
        returns.append(float(mean))
    assert sum(returns[-5:]) / 5 > sum(returns[:5]) / 5 + 2


@needs_jax
def test_it_is_measured_row_by_row_through_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    little = Shape(trials=8, pulls=3, hidden_size=4)
    small = maml.BASE._replace(tasks=2, horizon=3)
    rivals = {
        "train": partial(train_beside_jax, rows={"a": little}, on_mdps=little),
        "maml": partial(maml_beside_jax, episodes=2, base=small, config=MAMLTRPOConfig(line_searches=2)),
    }
    measurement = Measurement(rivals={"jax": rivals}, turns=1, instruments=SHIPPED.instruments)
    out = tmp_path / "jax.json"
    command.run_benchmark(
        suite="train,maml",
        seconds=0.001,
        against="jax",
        device="cpu",
        threads=1,
        out=out,
        measurement=measurement,
    )
    suites = json.loads(out.read_text())["suites"]
    assert list(suites["train"]["ratios"]) == ["JAX, a", "JAX, MDPs, LSTM 128, n=10"]
    for name, suite in suites.items():
        for rival, (ratio,) in suite["ratios"].items():
            ours = rival.removeprefix("JAX, ") if name == "train" else "rl2meta"
            speeds = [suite["contestants"][each]["env_steps_per_second"][0] for each in (ours, rival)]
            assert ratio == pytest.approx(speeds[0] / speeds[1])
            assert suite["contestants"][rival]["peak_memory_bytes"] is None
    assert "rl2meta / JAX, a, turn by turn: " in capsys.readouterr().out


def test_without_jax_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError(\"No module named 'jax'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = JaxProcess(
        "rl2", CPU, law="bandits", epochs=1, minibatches=1, **ROWS["LSTM 48, n=10"]._asdict()
    )
    with pytest.raises(
        UserError, match=r"No module named 'jax'; install it with: pip install .*\[benchmark\]"
    ):
        process.unit()


def test_a_rival_that_no_suite_has_is_refused() -> None:
    options = {"suite": "env", "seconds": 1.0, "device": "cpu", "threads": 1, "out": None}
    with pytest.raises(UserError, match="expected --suite train or --suite maml beside it, got 'env'"):
        command.run_benchmark(against="jax", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected 'sb3' or 'jax', got 'tf'"):
        command.run_benchmark(against="tf", **options)  # type: ignore[arg-type]
