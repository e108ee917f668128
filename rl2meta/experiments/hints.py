"""For an unknown key of a config: the keys elsewhere in it that were probably meant."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

_ALIKE = 0.8  # difflib's ratio of a mistyped key to the key


def meant(path: str, known: Sequence[str], beside: Sequence[str] = ()) -> list[str]:
    """Return the dotted keys that ``path`` may stand for: they end in the same key, or in one much like it.

    Those that have all parts of ``path`` in its order, such as ``agent.core.hidden_size`` for
    ``agent.hidden_size``, exclude the others.

    Args:
        path: the unknown key.
        known: all dotted keys of the config.
        beside: the keys of the section around it; a mistyped one of them is not looked for elsewhere.
    """
    *sections, last = path.split(".")
    names = {key.split(".")[-1] for key in known}
    if last not in names and not get_close_matches(last, beside, cutoff=_ALIKE):
        last = next(iter(get_close_matches(last, names, n=1, cutoff=_ALIKE)), last)
    parts = [*sections, last]
    same = [key for key in known if key.split(".")[-1] == parts[-1] and key != path]
    within = [key for key in same if _in_order(parts, key.split("."))]
    return sorted(set(within or same))


def dotted_keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield each key of a section by its dotted path, with those of every part that it has a choice of.

    Args:
        section: a model, a dataclass of pydantic, or a union of models; anything else has no keys.
        prefix: of the section, with a dot at its end.
    """
    for kind in (section, *get_args(section)):
        fields: Mapping[str, Any] = getattr(kind, "model_fields", None) or getattr(
            kind, "__pydantic_fields__", {}
        )
        for name, field in fields.items():
            yield prefix + name
            if any(_is_section(each) for each in (field.annotation, *get_args(field.annotation))):
                yield from dotted_keys(field.annotation, f"{prefix}{name}.")


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _in_order(parts: Sequence[str], whole: Sequence[str]) -> bool:
    """Return whether ``parts`` are in ``whole`` in their order, with gaps allowed."""
    rest = iter(whole)
    return all(part in rest for part in parts)
