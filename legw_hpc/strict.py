"""Strict tables: TOML text and `key=value` overrides into frozen dataclasses, or one clear line."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from legw_hpc.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


DEEPEST = 20  # tables within each other; recipes have 3 (assumed)


def named(text: str) -> Path:
    """The path that an option or a recipe names; bash leaves the tilde of --to=~/grid and out=~/run as it is."""
    return Path(os.path.expanduser(text))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a TOML file, with overrides of dotted keys on top.

    Args:
        path: the file.
        overrides: key=value; the value is TOML (`true`, `1e-3`, `[30, 60]`), anything else is text.

    Raises:
        FileNotFoundError: for the caller to say what is missing.
        InputError: not TOML, or an override that is not key=value.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    for override in overrides:
        _override(values, override)
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: expected key=value, such as batch=8192")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except (ValueError, KeyError, RecursionError):
        value = text
    if isinstance(value, datetime.date | datetime.time):  # walltime=12:00:00; no key here is a date
        value = text
    *tables, last = key.split(".")
    if len(tables) > DEEPEST:
        raise InputError(f"override {override[:60]!r}...: {len(tables)} tables within each other are more than {DEEPEST}")
    for table in tables:
        below = values.setdefault(table, {})
        if not isinstance(below, dict):
            raise InputError(f"override {override!r}: {table} is a value, not a table")
        values = below
    values[last] = value


def build(kind: type[Any], values: Any, where: str, prefix: str = "") -> Any:
    """A dataclass from a table, strictly: no unknown key, no missing key, no wrong type.

    Args:
        kind: the dataclass; its fields may be dataclasses.
        values: the table.
        where: what the message begins with.
        prefix: dotted key of this table.

    Raises:
        InputError: names the key, and the nearest known one where it is unknown.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: {prefix.rstrip('.')} must be a table, not {values!r}")
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, cutoff=0.4)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(prefix + k for k in fields)}"
            raise InputError(f"{where}: unknown key {prefix}{key}: {hint}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"{where}: {prefix}{name} is missing")
    made = {key: _convert(hints[key], value, where, prefix + key) for key, value in values.items()}
    try:
        return kind(**made)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where, key + ".")  # type: ignore[arg-type]
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:  # of a log; TOML has none
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if isinstance(value, int) and abs(value) >= 2**63:  # the range of TOML's and of every counter here
        raise InputError(f"{where}: {key} must be below 2**63, not a number of {value.bit_length()} bits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = get_origin(kind) or kind
    if plain is tuple and isinstance(value, list):
        return tuple(_convert(get_args(kind)[0], one, where, f"{key}[{i}]") for i, one in enumerate(value))
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list", list: "a list"}
        raise InputError(f"{where}: {key} must be {words.get(plain, 'a table')}, not {value!r}")
    return value


def depth(values: Any) -> int:
    """Of tables and lists within each other; not recursive, as what is too deep for that is asked."""
    level, here = 0, [values]
    while here := [inner for outer in here for inner in (outer.values() if isinstance(outer, Mapping) else outer)]:
        here = [value for value in here if isinstance(value, Mapping | list)]
        level += 1
    return level


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables in tables as one table of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def defaults(kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """What a table of this kind has where nothing is said, flat, by dotted key."""
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[f.name]):
            found |= defaults(hints[f.name], f"{prefix}{f.name}.")
        elif f.default is not dataclasses.MISSING:
            found[prefix + f.name] = f.default
    return found
