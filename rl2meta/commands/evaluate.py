"""``rl2meta evaluate``: a trained agent on held-out tasks, beside the references of its family."""

from collections.abc import Sequence
from pathlib import Path

from rl2meta.commands.components import AGENTS, COMPONENTS, chosen_references
from rl2meta.commands.judging import judge, load_subject, make_bench, names_of
from rl2meta.commands.restore import load_run_config
from rl2meta.config import RunConfig, load_config
from rl2meta.errors import UserError
from rl2meta.run_folder import RunFolder

_EPISODES = "evaluation.episodes_per_trial="
_TRAINING_EPISODES = "training.episodes_per_trial="


def evaluate_run(
    run_dir: Path,
    overrides: Sequence[str],
    *,
    tasks: int | None,
    seed: int | None,
    against: str | None,
    out: Path | None,
    device: str,
    threads: int | None = None,
    scratch: int = 0,
) -> None:
    """Evaluate the newest checkpoint of a run; write files and figures, print tables."""
    folder = RunFolder.open(run_dir)
    trained = load_run_config(folder)
    config = _judged(folder, trained, overrides)
    references = chosen_references(config, names_of(against))
    bench = make_bench(config, tasks=tasks, seed=seed, device=device, threads=threads, scratch=scratch)
    subject = load_subject(config.agent_name, folder, trained, config, bench)
    with folder.new_evaluation_folder(out) as target:
        judge(target, bench, {config.agent_name: subject}, references, subject.facts())


def _judged(folder: RunFolder, trained: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the experiment as it is judged, on tasks that the trained agent can play."""
    _refuse_others(trained, overrides)
    config = load_config(folder.config_text(), str(folder.config_path), overrides, COMPONENTS)
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(trained.distribution, name), getattr(config.distribution, name)
        if ours != theirs:
            raise UserError(
                f"{' '.join(overrides)}: expected tasks with the {name} of the agent's training, {ours}, got "
                f"{theirs}; overrides may change the law of the tasks, not their shape"
            )
    return config


def _refuse_others(trained: RunConfig, overrides: Sequence[str]) -> None:
    """Of an agent that is trained, only what it is judged on may change, and what its kind allows."""
    settings = [f"agent.{key}=" for key in AGENTS[trained.agent_name].at_test]
    for override in overrides:
        if override.startswith(_TRAINING_EPISODES):
            raise UserError(
                f"{override!r}: expected the length of the trials that the agent is judged in, got that of "
                f"its training; use {_EPISODES}{override.removeprefix(_TRAINING_EPISODES)}"
            )
        if not override.startswith(("distribution.", _EPISODES, *settings)):
            known = ", ".join(f"{key}VALUE" for key in ("distribution.KEY=", *settings))
            raise UserError(
                f"{override!r}: expected an override of what the agent is judged on, such as {known} or "
                f"{_EPISODES}N; what it is cannot change after training"
            )
