"""Applications: data + model + loss + metric.  One file a family; this one knows them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from legw_hpc.apps import images, mnist_lstm, ptb_lstm
from legw_hpc.apps.base import Application
from legw_hpc.errors import InputError

__all__ = ["APPLICATIONS", "Application", "application"]

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
    if name not in APPLICATIONS:
        raise InputError(f"unknown application {name!r}: one of {', '.join(APPLICATIONS)}")
    known = inspect.signature(APPLICATIONS[name]).parameters
    for option in options:
        if option not in known:
            raise InputError(f"application {name} has no option {option!r}: it takes {', '.join(known) or 'none'}")
    try:
        return APPLICATIONS[name](**options)
    except (ValueError, TypeError) as error:
        raise InputError(f"application {name}: {error}") from None
