"""The random numbers of a sample's augmentation: pinned, and independent of everything but seed, epoch and sample."""

from __future__ import annotations

import numpy as np
import pytest

from legw_hpc.data.augment import TRAIN_UNIFORMS, uniforms

SAMPLES = np.arange(20_000)


def test_uniforms_are_pinned() -> None:
    """A run resumed with another version of this package must see the same images."""
    expected = [
        [0.344247331903363, 0.7950713830662981, 0.5867455754428985],
        [0.69393155882405, 0.029151256058513653, 0.8381134616651622],
        [0.651438149646891, 0.1696217989093638, 0.9159755012478356],
    ]
    assert uniforms(7, 3, np.array([0, 1, 1_281_166]), 3).tolist() == expected


def test_uniforms_are_splitmix64() -> None:
    """The same with Python's integers; the finalizer and increment are those of java.util.SplittableRandom."""
    word, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & word
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & word
        return z ^ (z >> 31)

    assert mix(golden) == 0xE220A8397B1DCDAF  # the first number of SplitMix64 from state 0, as published
    for seed, epoch, sample in ((0, 0, 0), (-5, 89, 50_000), (2**63, 1, 2**40)):
        state = 0
        for number in (seed, epoch, sample):
            state = mix((state + golden & word) ^ (number & word))
        stream = [(mix(state + i * golden & word) >> 11) / 2**53 for i in range(1, 6)]
        assert uniforms(seed, epoch, np.array([sample]), 5).tolist() == [stream]


def test_uniforms_do_not_depend_on_the_batch() -> None:
    whole = uniforms(1, 2, SAMPLES[:100], TRAIN_UNIFORMS)
    assert whole.dtype == np.float64
    mixed = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(uniforms(1, 2, mixed, TRAIN_UNIFORMS), whole[mixed])
    np.testing.assert_array_equal(uniforms(1, 2, SAMPLES[50:51], 3), whole[50:51, :3])
    assert uniforms(1, 2, SAMPLES[:0], 4).shape == (0, 4)


def test_uniforms_are_uniform_and_independent() -> None:
    """Between neighbouring samples, epochs, seeds and numbers; each bound is 5 standard deviations."""
    u = uniforms(0, 0, SAMPLES, 8)
    assert ((u >= 0) & (u < 1)).all()
    counts = np.histogram(u, 256, (0, 1))[0]
    chi = ((counts - u.size / 256) ** 2 / (u.size / 256)).sum()
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
    rows = [
        *u.T,
        u[1:, 0],
        uniforms(0, 1, SAMPLES, 1)[:, 0],
        uniforms(1, 0, SAMPLES, 1)[:, 0],
        uniforms(0, 0, SAMPLES + 2**32, 1)[:, 0],
    ]
    length = len(SAMPLES) - 1
    correlation = np.corrcoef([row[:length] for row in rows]) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / length**0.5
    assert len(np.unique(u)) == u.size
    # The joint distribution of two neighbours, 16 x 16.
    table = np.histogram2d(u[:-1, 0], u[1:, 0], 16, ((0, 1), (0, 1)))[0]
    assert abs(((table - length / 256) ** 2 / (length / 256)).sum() - 255) < 5 * (2 * 255) ** 0.5


def test_one_bit_of_a_sample_number_changes_half_of_the_bits() -> None:
    bits = [(uniforms(0, 0, SAMPLES ^ (1 << i), 2) * 2**53).astype(np.uint64) for i in (0, 13, 40)]
    base = (uniforms(0, 0, SAMPLES, 2) * 2**53).astype(np.uint64)
    for flipped in bits:
        share = np.unpackbits((base ^ flipped).view(np.uint8)).mean() * 64 / 53
        assert share == pytest.approx(0.5, abs=0.002)
