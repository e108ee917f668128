"""What learning promises, as ``rl2meta.training.Learner`` has it."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from rl2meta.experiments.agent_case import AgentCase, difference, relive
from rl2meta.training import Learner

_ALL = "put all that an update changes into state_dict(): weights, the optimiser's moments, counters"
_OF_THE_LOOP = {"update", "env_steps", "seconds", "env_steps_per_second", "mean_return"}


def check_randomness(case: AgentCase) -> Iterator[str]:
    """Build, act and update, and look at the global generators."""
    learner, trial = case.learner(), case.trial
    acts: dict[str, tuple[Callable[[], object], str]] = {
        "building the learner": (
            case.learner,
            "rl2meta.learner_state.seeded(make, seed) builds a network from a seed",
        ),
        "begin, act and adapt": (
            lambda: list(relive(learner.agent, trial, case.source())),
            "draw from the generator that begin() is given",
        ),
        "update": (lambda: case.update(learner, trial), "draw from the generator that update() is given"),
    }
    for name, (act, do) in acts.items():
        before = _global_states()
        act()
        for library in (key for key, state in _global_states().items() if state != before[key]):
            yield f"{name}: expected {library}'s global generator left alone, got it used; {do}"


def _global_states() -> dict[str, str]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "numpy": repr(np.random.get_state()),
        "random": repr(random.getstate()),
    }


def check_weights(case: AgentCase) -> Iterator[str]:
    """Build a learner of one seed twice, the global generator being elsewhere."""
    states = []
    for elsewhere in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(elsewhere)
            states.append(kept(case.learner()))
    for name in differing(*states):
        yield (
            f"learner: expected initial weights of the seed alone, got others for {name} from the same seed; "
            "rl2meta.learner_state.seeded(make, seed) builds a network from a seed"
        )
        return


def check_metrics(case: AgentCase) -> Iterator[str]:
    """Update twice, and look at what is told of it."""
    learner = case.learner()
    first: Any = case.update(learner, case.trial)
    second: Any = case.update(learner, case.live(learner, 1), 1)
    for metrics in (first, second):
        if not isinstance(metrics, Mapping):
            yield f"update: expected a mapping from names to floats, got {metrics!r:.80}; return one"
            return
    yield from dict.fromkeys([*_odd(first), *_odd(second)])  # each once
    if first.keys() != second.keys():
        yield f"update: expected metrics of the same names each time, got {list(first)}, then {list(second)}"


def _odd(metrics: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in metrics.items():
        if name in _OF_THE_LOOP or not isinstance(name, str):
            yield f"update: expected metrics of names that are not {sorted(_OF_THE_LOOP)}, got {name!r}"
        if not isinstance(value, float):
            yield f"update: {name}: expected a float, got {value!r:.100}; float(x) makes one"
        elif not math.isfinite(value):
            yield f"update: {name}: expected a finite number, got {value}"


def check_same_update(case: AgentCase) -> Iterator[str]:
    """Let two learners of one seed learn the same from the same."""
    learners = [case.learner() for _ in range(2)]
    one, other = (dict(case.update(learner, case.trial)) for learner in learners)
    for name in (name for name in one if not _same(one[name], other.get(name))):
        yield (
            f"update: expected the same from the same trial and a generator of the same seed, got {name} "
            f"{one[name]}, and {other.get(name)}; draw from the generator that update() is given"
        )
        return
    for name in differing(*map(kept, learners)):
        yield f"update: expected the same weights from the same trial and generator, got others for {name}"
        return


def check_resume(case: AgentCase) -> Iterator[str]:
    """Save a learner after an update, as a checkpoint does, and go on with another one of another seed."""
    ours, theirs = case.learner(), case.learner("second")
    case.update(ours, case.trial)
    theirs.load_state_dict(load(save(kept(ours))))
    for name in differing(kept(ours), kept(theirs)):
        yield f"load_state_dict: expected the state that was saved, got another {name}; take on every name"
        return
    trial = case.live(ours, 1)
    acted, again = (list(relive(learner.agent, trial, case.source())) for learner in (ours, theirs))
    if words := difference(acted, again):
        yield f"state_dict: expected a learner that loads it to act as the saved one, got {words}; {_ALL}"
        return
    one, other = (dict(case.update(learner, trial, 1)) for learner in (ours, theirs))
    changed = [name for name in one if not _same(one[name], other.get(name))]
    for name in [*changed, *differing(kept(ours), kept(theirs))][:1]:
        yield (
            f"state_dict: expected a learner that loads it to go on as the saved one, to the bit, got "
            f"another {name} after the next update; {_ALL}"
        )


def kept(learner: Learner) -> dict[str, Tensor]:
    """Return a copy of a learner's state."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in learner.state_dict().items()}


def differing(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[str]:
    """Return the names whose tensors differ, or that one side lacks."""
    return [
        name
        for name in {**some, **others}
        if name not in some or name not in others or not torch.equal(some[name], others[name])
    ]


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))  # NaN is told of elsewhere
