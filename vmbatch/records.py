"""Dataclasses of vmbatch.model as JSON, and back: guest.json and the record of a job."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def to_json(thing: Any) -> str:
    """Spell a dataclass of vmbatch.model as JSON with sorted keys; paths become strings."""
    return json.dumps(asdict(thing), default=str, indent=1, sort_keys=True) + "\n"


def from_json(kind: type[Any], text: str) -> Any:
    """Build a dataclass of vmbatch.model from what to_json wrote. Raises ValueError on anything else."""
    try:
        return _build(kind, json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def _build(kind: Any, value: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        some = [arm for arm in get_args(kind) if arm is not NoneType]
        fitting = [arm for arm in some if is_dataclass(arm) == isinstance(value, Mapping)]
        return _build((fitting or some)[0], value)
    if get_origin(kind) is tuple:
        arms = get_args(kind)
        if len(arms) == 2 and arms[1] is Ellipsis:
            return tuple(_build(arms[0], item) for item in value)
        return tuple(_build(arm, item) for arm, item in zip(arms, value, strict=True))
    if kind is Path:
        return Path(value)
    if isinstance(value, Mapping):
        hints = get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind)})
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
