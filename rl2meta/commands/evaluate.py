"""``rl2meta evaluate``: a trained agent on held-out tasks, beside the references of its family."""

from collections.abc import Sequence
from pathlib import Path

from rl2meta.commands.judging import judge, load_subject, make_contest, names_of
from rl2meta.experiments.components import chosen_references
from rl2meta.experiments.overrides import judged
from rl2meta.experiments.restore import load_run_config
from rl2meta.experiments.run_folder import RunFolder


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
    config = judged(folder, trained, overrides)
    references = chosen_references(config, names_of(against))
    contest = make_contest(config, tasks=tasks, seed=seed, device=device, threads=threads, scratch=scratch)
    subject = load_subject(config.agent_name, folder, trained, config, contest)
    with folder.new_evaluation_folder(out) as target:
        judge(target, contest, {config.agent_name: subject}, references, subject.facts())
