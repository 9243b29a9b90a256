"""Applications of other packages: whoever installs one beside this package can name it in a recipe.

A package tells of its applications in its metadata, under the entry point group `legw_hpc.applications`.  A recipe
holds no code and no path to any; it can name what has been installed, and nothing else is loaded.  docs: docs/your-own-model.md.

No torch here: the names are known without loading what they stand for.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

GROUP = "legw_hpc.applications"


def applications() -> dict[str, EntryPoint]:
    """Where each is, by name; the built-in ones are not among them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def package(application: str) -> str | None:
    """Whose it is, with the version, such as "spirals 0.1"; None for a built-in one."""
    point = applications().get(application)
    return f"{point.dist.name} {point.dist.version}" if point is not None and point.dist is not None else None
