from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.errors import UserError
from rl2meta.experiments.components import COMPONENTS, read_config, references_of
from rl2meta.experiments.config import RunConfig, completed, load_config
from rl2meta.revealed import Revealed

GOOD = """
seed: 1
distribution: {name: bernoulli_bandits, num_arms: 5}
agent: {name: rl2, learning_rate: 1e-3}
training: {updates: 10, trials_per_update: 4, episodes_per_trial: 10}
"""


def load(text: str = GOOD, *overrides: str) -> RunConfig:
    return load_config(text, "x.yaml", overrides, COMPONENTS)


def faults(text: str = GOOD, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_a_good_config() -> None:
    config = load(GOOD, "training.updates=20", "agent.core.hidden_size=7", "training.updates=30")
    assert config.settings.training.updates == 30  # the last override wins
    assert config.distribution.num_arms == 5
    assert config.agent.model_dump()["core"]["hidden_size"] == 7
    assert config.agent.model_dump()["learning_rate"] == 1e-3  # YAML 1.1 alone would read a string


def test_what_is_written_out_reads_back_the_same() -> None:
    config = load()
    text = config.to_yaml(versions={"torch": "2.13.0"})
    assert load(text) == config
    written = yaml.safe_load(text)
    assert written["agent"]["epochs"] == 3 and written["training"]["checkpoint_every"] == 100  # defaults too


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 1", "sede: 1", "sede: unknown key; did you mean 'seed'?"),
        ("updates: 10", "updaets: 10", "training.updaets: unknown key; did you mean 'updates'?"),
        ("updates: 10, ", "", "training.updates: expected a value, got none"),
        ("num_arms: 5", "arms: 5", "distribution.arms: unknown key; did you mean 'num_arms'?"),
        ("num_arms: 5", "num_arms: 1", "distribution.num_arms: expected greater than or equal to 2, got 1"),
        ("num_arms: 5", "num_arms: five", "distribution.num_arms: expected a valid integer, got 'five'"),
        ("num_arms: 5", "num_arms: true", "distribution.num_arms: expected a valid integer, got True"),
        ("num_arms: 5", "num_arms: 5.0", "distribution.num_arms: expected a valid integer, got 5.0"),
        ("1e-3", ".nan", "agent.learning_rate: expected a finite number, got nan"),
        ("1e-3", ".inf", "agent.learning_rate: expected a finite number, got inf"),
        ("1e-3", "-1.0", "agent.learning_rate: expected greater than 0, got -1.0"),
        ("name: rl2", "name: rl3", "agent.name: unknown agent 'rl3'; did you mean 'rl2'?"),
        (
            "bernoulli_b",
            "bernouli_b",
            "unknown distribution 'bernouli_bandits'; did you mean 'bernoulli_bandits'?",
        ),
        (
            "name: rl2, ",
            "",
            "agent: expected a section with a name, one of learned_optimiser, maml_classification, "
            "maml_regression, maml_trpo, mlsh, pretrained_classification, reptile, rl2, "
            "sequence_classification, "
            "got {'learning_rate': 0.001}",
        ),
        ("seed: 1", "seed: 2020-99-99", "seed: expected a valid integer, got '2020-99-99'"),
        ("seed: 1", "seed: 1:30", "seed: expected a valid integer, got '1:30'"),
        ("seed: 1", "seed: 0x_", "seed: expected a valid integer, got '0x_'"),
        ("seed: 1", "seed: -1", "seed: expected greater than or equal to 0, got -1"),
        ("seed: 1", "device: gpu", "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("seed: 1", "threads: 0", "threads: expected greater than or equal to 1, got 0"),
        ("seed: 1", "seed: 1\nseed: 2", "the key 'seed' is there twice; remove one"),
        ("updates: 10", "updates: 10, updates: 11", "the key 'updates' is there twice; remove one"),
        ("seed: 1", "? [1]\n: 2", "[1] cannot be a key"),
        ("updates: 10", "3: 10", "training.3: expected Keys should be strings, got 3"),
        ("{updates", "{updates: {a: 1}, x", "training.updates: expected a valid integer, got {'a': 1}"),
    ],
)
def test_one_fault(old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in faults(GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: expected a config, got an empty file"),
        ("# nothing\n", "got an empty file"),
        ("3", "x.yaml: expected 'key: value' lines, got int"),
        ("- a\n- b", "expected 'key: value' lines, got list"),
        ("a: [1", "x.yaml: expected YAML, got"),
        ("a: !!python/object/apply:os.system ['true']", "x.yaml: expected YAML, got"),
        ("\x00", "x.yaml: expected YAML, got"),
        ("a: !!timestamp 2020-99-99", "x.yaml: expected YAML, got"),
        ("a: !!int foo", "x.yaml: expected YAML, got"),
        ("a: !!bool foo", "x.yaml: expected YAML, got"),
        ("a: !!timestamp foo", "x.yaml: expected YAML, got"),
        (f"a: {'9' * 5000}", "x.yaml: expected YAML, got"),
        ("[" * 5000, "x.yaml: expected YAML, got"),
    ],
)
def test_what_is_no_config(text: str, message: str) -> None:
    assert message in faults(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "'seed': expected an override of the form key.subkey=value"),
        ("=3", "'=3': expected an override of the form key.subkey=value"),
        ("a..b=3", "'a..b=3': expected an override of the form key.subkey=value"),
        ("seed.x=3", "'seed.x=3': seed is a value, not a section"),
        ("training.foo=3", "training.foo: unknown key"),
        ("seed=[", "'seed=[': expected a YAML value after '='"),
        ("seed=2020-99-99", "seed: expected a valid integer, got '2020-99-99'"),
        ("seed=", "seed: expected a valid integer, got None"),
        (
            "agent=rl2",
            "agent: expected a section with a name, one of learned_optimiser, maml_classification, "
            "maml_regression, maml_trpo, mlsh, pretrained_classification, reptile, rl2, "
            "sequence_classification, got 'rl2'",
        ),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    assert message in faults(GOOD, override)


def test_all_faults_are_told_at_once() -> None:
    text = (
        GOOD.replace("num_arms: 5", "num_arms: 0").replace("1e-3", "no").replace("updates: 10", "updates: 0")
    )
    told = faults(text, "blah=1", "seed")
    assert told.startswith("x.yaml with blah=1 seed: 5 faults\n")
    for key in ("distribution.num_arms", "agent.learning_rate", "training.updates", "blah", "'seed'"):
        assert f"\n  {key}: " in told


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_text_gives_a_traceback(text: str) -> None:
    try:
        load(text)
    except UserError as error:
        assert str(error)
    else:
        raise AssertionError(f"expected a fault in {text!r}")


def test_another_component_starts_from_its_own_defaults() -> None:
    config = load(
        GOOD, "distribution.num_arms=7", "distribution.name=dependent_bandits", "distribution.law=easy"
    )
    assert config.distribution == DependentBandits("easy")
    again = load(GOOD, "distribution.num_arms=7", f"distribution.name={load().distribution_name}")
    assert again.distribution.num_arms == 7  # the same name changes nothing


def test_an_identity_of_an_earlier_version_is_completed() -> None:
    identity = load().identity()
    earlier = {
        key: value for key, value in identity.items() if key not in ("distribution.low", "agent.epochs")
    }
    assert len(earlier) == len(identity) - 2
    assert completed(earlier, identity, COMPONENTS) == identity
    assert completed(earlier | {"agent.epochs": 9}, identity, COMPONENTS) == identity | {"agent.epochs": 9}
    unreadable = {"distribution.name": "gone"}
    assert completed(unreadable, identity, COMPONENTS) == unreadable


def test_a_config_means_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a run wrote has the defaults of its time: it names the versions that it ran with."""
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    from_elsewhere = read_config(path)
    monkeypatch.chdir(tmp_path)
    assert from_elsewhere.identity() == read_config("config.yaml").identity() == load().identity()
    path.write_text(f"{GOOD}\nversions: {{rl2meta: 0.1.0}}")
    assert read_config("config.yaml").identity()["agent.observation_units"] == "raw"
    assert load().identity()["agent.observation_units"] == "normalised"


def test_a_task_is_revealed_on_demand() -> None:
    plain, told = load(), load(GOOD, "reveal_task=true")
    assert plain.distribution == plain.law == told.law
    assert told.distribution == Revealed(plain.law)
    assert load(told.to_yaml()) == told != plain
    changed = {key for key, value in told.flat().items() if plain.flat()[key] != value}
    assert changed == {"reveal_task"} and told.flat()["distribution.num_arms"] == 5
    assert told.identity() == plain.identity() | {"reveal_task": True}
    assert plain.identity()["reveal_task"] is False
    assert "reveal_task: expected a valid boolean, got 1" in faults(GOOD, "reveal_task=1")


def test_a_run_of_before_tasks_could_be_revealed_is_read() -> None:
    identity = load().identity()
    earlier = {key: value for key, value in identity.items() if key != "reveal_task"}
    assert completed(earlier, identity, COMPONENTS) == identity


def test_no_reference_reads_revealed_tasks() -> None:
    assert "thompson" in references_of(load(), 10)
    assert references_of(load(GOOD, "reveal_task=true"), 10) == {}
