"""``rl2meta watch``: what a person sees of one trial."""

from rl2meta.commands.progress import say
from rl2meta.experiments.watching import watch


def watch_run(*arguments: object, **options: object) -> None:
    """Record a trial; print what the agents earned and where the files are."""
    seen = watch(*arguments, say=say, **options)  # type: ignore[arg-type]
    for name, trial in seen.trials.items():
        print(f"{name}: {trial.summary()}")
    print(f"wrote {seen.page} (open it in a browser) and {seen.animation.name}")
