"""The fuzzer's targets on the inputs that it starts from, and on some that hypothesis changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import targets

changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def _leave_no_folder() -> Iterator[None]:
    yield
    targets.clear()
    targets._place.cache_clear()
    targets._shards.cache_clear()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_readers_refuse_or_read(name: str) -> None:
    found = list(targets.seeds(name))

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(found), changes, st.integers(0, 5000))
    def changed(seed: bytes, places: list[tuple[int, int]], length: int) -> None:
        data = bytearray(seed)
        for place, value in places:
            data[place % len(data)] = value
        targets.TARGETS[name](bytes(data[:length]))

    changed()
