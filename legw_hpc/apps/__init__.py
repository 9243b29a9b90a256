"""Applications: data + model + loss + metric.  One file a family; this one knows them by name, and those of other packages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from legw_hpc import installed
from legw_hpc.apps import images, mnist_lstm, ptb_lstm
from legw_hpc.apps.base import Application
from legw_hpc.apps.contract import kept
from legw_hpc.errors import InputError

__all__ = ["APPLICATIONS", "Application", "application", "sources"]

APPLICATIONS: dict[str, Callable[..., Application]] = {
    "mnist-lstm": mnist_lstm.mnist_lstm,
    "ptb-lstm": ptb_lstm.ptb_lstm,
    "resnet50": images.resnet50,
    "resnet20": images.resnet20,
}


def application(name: str, **options: Any) -> Application:
    """An application by the name in a recipe, with the options of its table.

    Raises:
        InputError: there is none of that name, or it has no such option, or not that value.
    """
    make = _made(name)
    known = inspect.signature(make).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for option in options:
        if option not in known and not takes_any:
            raise InputError(f"application {name} has no option {option!r}: it takes {', '.join(known) or 'none'}")
    try:
        made = make(**options)
    except (ValueError, TypeError) as error:
        raise InputError(f"application {name}: {error}") from None
    if not isinstance(made, Application):
        raise InputError(f"application {name}: its function gives a {type(made).__name__}, not a legw_hpc.apps.Application")
    return made if name in APPLICATIONS else kept(made)


def sources(name: str) -> list[Path]:
    """The files of an application of another package, which ranks must have alike; none of ours, or of no file."""
    module = inspect.getmodule(_made(name)) if name not in APPLICATIONS else None
    top = sys.modules.get(module.__name__.partition(".")[0]) if module else None
    if top is None or not getattr(top, "__file__", None):
        return []
    file = Path(str(top.__file__))
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _made(name: str) -> Callable[..., Application]:
    """What makes the application."""
    if name in APPLICATIONS:
        return APPLICATIONS[name]
    others = installed.applications()
    if name not in others:
        raise InputError(f"unknown application {name!r}: one of {', '.join([*APPLICATIONS, *others])}")
    try:
        make: Callable[..., Application] = others[name].load()
        if not callable(make):
            raise TypeError("it is no function")
    except Exception as error:  # whatever importing another's module comes to
        raise InputError(f"application {name} ({others[name].value}) cannot be loaded: {error}") from None
    return make
