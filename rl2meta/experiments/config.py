"""Read an experiment from YAML and overrides into one frozen, validated config.

All faults are reported at once, each with its key, the expected value and the given value. This module knows
no names of agents and task families: it gets them as ``Components``.
"""

import difflib
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial, reduce
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import PydanticSerializationError

from rl2meta.errors import UserError
from rl2meta.experiments.hints import dotted_keys, meant
from rl2meta.experiments.sections import RunSettings
from rl2meta.experiments.trust import modules_in
from rl2meta.experiments.yaml_text import apply_override, parse, read, text_of
from rl2meta.revealed import Revealed
from rl2meta.training import AgentKind
from rl2meta.workers.family import unfit
from rl2meta.workers.faults import named
from rl2meta.workers.plugged_in import PluggedIn

WORKERS = "workers."
WHERE = ("device", "threads", "kernels", "cuda_graphs", WORKERS)
"""Settings about where a run computes; they may change when it is resumed."""
JUDGED = ("training.evaluate_every", "training.evaluation_tasks")
"""Settings about how the agent is judged while it trains; they change nothing that is learnt, and may change
when the run is resumed."""
RECORDED = ("versions", "started_from")
"""Keys of a run folder's config.yaml that are not settings; they are ignored when the file is read."""
Keys = Callable[[], list[str]]
"""Gives all keys of the config; only a fault asks for them."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Components:
    """The agents and families that a config may name.

    Attributes:
        distributions: name -> function that builds a task distribution, or a family of single environments,
            from the keys of the section. A lookup raises ``UserError`` if a plug-in cannot be imported.
        agents: name -> the agent. A lookup raises ``UserError`` if a plug-in cannot be imported.
    """

    distributions: Mapping[str, Callable[..., Any]]
    agents: Mapping[str, AgentKind]


@dataclass(frozen=True)
class RunConfig:
    """A validated experiment.

    Attributes:
        settings: seed, device, training, evaluation and all other settings outside agent and family.
        distribution_name, law: the task distribution, without revealed tasks.
        arguments: the settings of the task distribution.
        agent_name, agent: the agent and its hyper-parameters.
    """

    settings: RunSettings
    distribution_name: str
    law: Any
    arguments: Mapping[str, Any]
    agent_name: str
    agent: BaseModel

    @property
    def distribution(self) -> Any:
        """The task distribution for the agent; with revealed tasks if the settings say so."""
        return Revealed(self.law) if self.settings.reveal_task else self.law

    def to_yaml(self, **more: Any) -> str:
        """Return the config with all defaults as YAML; ``more`` replaces or adds top-level keys."""
        data = {
            **self.settings.model_dump(exclude={"training", "evaluation", "workers"}),
            "distribution": {"name": self.distribution_name, **self.arguments},
            "agent": {"name": self.agent_name, **self.agent.model_dump()},
            "training": self.settings.training.model_dump(),
            "evaluation": self.settings.evaluation.model_dump(),
        }
        if isinstance(self.law, PluggedIn):
            data["workers"] = self.settings.workers.model_dump()
        return text_of({**data, **more})

    def flat(self) -> dict[str, Any]:
        """Return every setting by its dotted key, with its value as in YAML."""
        return _flat(read(self.to_yaml(), "config"))

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect what is learnt: all but ``WHERE``, saving and judging."""
        free = (*WHERE, *JUDGED, "evaluation.", "training.checkpoint_every", "training.keep_checkpoints")
        return {key: value for key, value in self.flat().items() if not key.startswith(free)}


def load_config(text: str, source: str, overrides: Sequence[str], components: Components) -> RunConfig:
    """Return the experiment that ``text`` describes.

    Args:
        text: YAML.
        source: name of the text in messages.
        overrides: ``key.subkey=value`` with YAML values; the last one wins.
        components: the agents and families that the text may name.

    Raises:
        UserError: if there are faults; the message lists all of them.
    """
    raw = parse(text, source)
    faults = [fault for override in overrides if (fault := apply_override(raw, override))]
    for recorded in RECORDED:
        raw.pop(recorded, None)
    known = partial(known_keys, dict(raw), components)
    distribution, distribution_faults = _component(raw, "distribution", components.distributions, known)
    agent, agent_faults = _component(raw, "agent", components.agents, known)
    settings, settings_faults = _validated(RunSettings, raw, (), known)
    law, law_faults = _law(distribution, settings)
    distribution_faults += law_faults
    faults += settings_faults + distribution_faults + agent_faults
    if faults:
        source = " ".join([source, *(["with", *overrides] if overrides else [])])
        raise UserError(f"{source}: {_count(faults)}\n" + "\n".join(f"  {fault}" for fault in faults))
    assert settings is not None and distribution is not None and agent is not None  # there are no faults
    name, family, given = distribution
    return RunConfig(settings, name, law, _arguments(family, given), *agent[:2])


def known_keys(raw: Mapping[str, Any], components: Components) -> list[str]:
    """Return the dotted keys of a config with the agent and the family that ``raw`` names."""
    keys = list(dotted_keys(RunSettings))
    for section, parts in (("distribution", components.distributions), ("agent", components.agents)):
        try:
            part = parts[raw[section]["name"]]
        except (LookupError, TypeError, UserError):  # another fault tells of it
            continue
        keys += dotted_keys(getattr(part, "config", part), f"{section}.")
    return keys


def completed(
    identity: Mapping[str, Any], other: Mapping[str, Any], components: Components
) -> dict[str, Any]:
    """Return the identity of an earlier version with defaults for new keys, or unchanged if it has faults.

    This imports nothing: it stays unchanged, too, if it names other parts or modules than ``other``, the
    identity of a config that is loaded already.
    """
    if not modules_in(identity) <= modules_in(other) or any(
        identity.get(name) != other[name] for name in ("distribution.name", "agent.name")
    ):
        return dict(identity)
    raw: dict[str, Any] = {}
    for key, value in identity.items():
        *sections, last = key.split(".")
        try:
            reduce(lambda section, name: section.setdefault(name, {}), sections, raw)[last] = value
        except (AttributeError, TypeError):  # a key is both a value and a section
            return dict(identity)
    try:
        text = with_former(text_of(raw), components)
        return load_config(text, "checkpoint", (), components).identity()
    except UserError:
        return dict(identity)


def with_former(text: str, components: Components) -> str:
    """Return the config of a run folder, with the meaning that it had when the agent lacked some of its keys.

    A run folder holds every key of its time. A key that is not there is a new one, and its default may differ
    from what the agent did before.
    """
    raw = parse(text, "config.yaml")
    agent = raw.get("agent")
    if not isinstance(agent, dict):
        return text
    name = agent.get("name")
    if not isinstance(name, str) or name not in components.agents:
        return text
    try:
        former = getattr(components.agents[name], "former", {})
    except UserError:  # load_config tells of it
        return text
    raw["agent"] = {**former, **agent}
    return text_of(raw)


def differing(some: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ, including keys that only one side has."""
    return [key for key in {**some, **others} if some.get(key) != others.get(key)]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _component(
    raw: dict[str, Any], section: str, known: Mapping[str, Any], keys: Keys
) -> tuple[tuple[str, Any, dict[str, Any]] | None, list[str]]:
    """Remove ``section`` from ``raw`` and build its part: ((name, object, keys) or None, faults)."""
    options = raw.pop(section, None)
    if not isinstance(options, dict) or "name" not in options:
        return None, [
            f"{section}: expected a section with a name, one of {_listed(known)}, got {_short(options)}"
        ]
    name = options["name"]
    if not isinstance(name, str) or name not in known:
        return None, [f"{section}.name: unknown {section} {_short(name)}{suggestion(str(name), known)}"]
    rest = {key: value for key, value in options.items() if key != "name"}
    try:
        part = known[name]
        built, faults = _validated(getattr(part, "config", part), rest, (section,), keys)
    except UserError as error:
        return None, [f"{section}: {error}"]
    return (None if built is None else (name, built, rest)), faults


def _validated(
    kind: Any, data: Mapping[Any, Any], where: tuple[str, ...], keys: Keys
) -> tuple[Any, list[str]]:
    try:
        return kind(**{str(key): value for key, value in data.items()}), []
    except ValidationError as error:
        return None, [_fault(where, details, kind, keys) for details in error.errors()]
    except (Exception, SystemExit) as error:  # of a plug-in
        return None, [f"{'.'.join(where)}: {kind.__name__}: {named(error)}"]


def _law(distribution: tuple[str, Any, Any] | None, settings: Any) -> tuple[Any, list[str]]:
    """Return the task distribution of a family; a family of single environments is run by workers."""
    if distribution is None or settings is None:
        return None, []
    name, family, given = distribution
    if callable(getattr(family, "make_envs", None)):
        return family, []
    try:
        missing = unfit(family)
    except Exception as error:  # of a property
        missing = [named(error)]
    faults = [f"distribution: {name}: {fault}" for fault in missing]
    keys = ", ".join(f"{key}={value!r}" for key, value in given.items())
    called = f"{name}({keys})" if keys else name
    return (None if faults else PluggedIn(family, settings.workers, called)), faults


def _arguments(family: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a family, including defaults if the family is a dataclass."""
    if not is_dataclass(family) or isinstance(family, type):
        return given
    try:
        dumped: dict[str, Any] = TypeAdapter(type(family)).dump_python(family)
        kept = read(text_of(dumped), "family") == dumped and json.loads(json.dumps(dumped)) == dumped
    except (PydanticSchemaGenerationError, PydanticSerializationError, UserError, TypeError, ValueError):
        kept = False  # a field that no config can hold
    return dumped if kept else given


def _fault(where: tuple[str, ...], details: Any, kind: type[Any], all_keys: Keys) -> str:
    loc = [str(part) for part in details["loc"]]
    sections = [kind, *(_section(kind, loc[: i + 1]) for i in range(len(loc)))]
    # pydantic's location of a fault includes the name of a part, such as a core, which is not a key.
    keys = [part for i, part in enumerate(loc) if not _is_choice(sections[i])]
    path = ".".join((*where, *keys))
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        inner = list(_flat(details["input"]))[:1] if isinstance(details["input"], dict) else []
        if elsewhere := meant(".".join((path, *inner)), all_keys(), _fields(sections[-2])):
            return f"{path}: unknown key; did you mean {' or '.join(elsewhere)}?"
        return f"{path}: unknown key{suggestion(loc[-1], _fields(sections[-2]))}"
    if details["type"] == "union_tag_invalid":
        tag, known = details["ctx"]["tag"], details["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{path}.name: unknown {keys[-1]} {_short(tag)}{suggestion(str(tag), known)}"
    if details["type"] in ("missing", "missing_argument"):
        return f"{path}: expected a value, got none"
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if details["loc"]:
        message += f", got {_short(details['input'])}"
    return f"{path}: expected {message}"


def _section(kind: Any, loc: Sequence[str]) -> Any:
    """Return the type at a place in a config of ``kind``: a model, a choice of models, or another type."""
    for part in loc:
        if _is_choice(kind):
            kind = next((each for each in get_args(kind) if each.model_fields["name"].default == part), None)
        else:
            field = getattr(kind, "model_fields", {}).get(part)
            kind = None if field is None else field.annotation
    return kind


def _is_choice(kind: Any) -> bool:
    """Return whether a section is a choice between several models, each with a name."""
    models = get_args(kind)
    return len(models) > 1 and all("name" in getattr(each, "model_fields", {}) for each in models)


def _fields(kind: Any) -> list[str]:
    """Return the keys of a section."""
    fields = getattr(kind, "model_fields", None) or kind.__pydantic_fields__
    top = ["distribution", "agent"] if kind is RunSettings else []
    return [*fields, *top]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X? Known: ...`` for an unknown name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    did_you_mean = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{did_you_mean} Known: {_listed(known)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _short(value: Any) -> str:
    """Describe a value in one line, shortened if it is long."""
    return _REPR.repr(value)


def _count(faults: Sequence[str]) -> str:
    return "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
