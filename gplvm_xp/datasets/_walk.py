"""Walking figures that are made here: joint angles over time, as motion capture records them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ._dataset import Dataset

Floats = NDArray[np.float64]

_HARMONICS = 4
# What the figure is built with, the same for every seed.
_FIGURE = 20250
# Joints on the midline and on each side: the swing of each of their angles, degrees (the pelvis
# moves too, in centimetres). Angles marked * are alike on both sides of the body, half a stride
# apart; the others change their sign with the side.
_MIDLINE = {
    "pelvis": {"height*": 2.0, "surge*": 1.5, "sway": 2.0, "tilt*": 2.0, "list": 3.0, "turn": 4.0},
    "lower_spine": {"bend*": 2.0, "lean": 2.5, "twist": 3.0},
    "upper_spine": {"bend*": 1.5, "lean": 2.0, "twist": 3.0},
    "neck": {"bend*": 1.5, "lean": 1.0, "twist": 2.0},
    "head": {"bend*": 1.5, "lean": 1.0, "twist": 1.5},
}
_SIDE = {
    "hip": {"flexion*": 21.0, "abduction": 5.0, "rotation": 4.0},
    "knee": {"flexion*": 20.0},
    "ankle": {"flexion*": 7.0, "inversion": 3.0},
    "toes": {"flexion*": 9.0},
    "clavicle": {"lift*": 1.5, "turn": 2.0},
    "shoulder": {"flexion*": 17.0, "abduction": 3.0, "rotation": 5.0},
    "elbow": {"flexion*": 11.0},
    "forearm": {"turn*": 4.0},
    "wrist": {"flexion*": 4.0, "deviation": 2.0},
    "fingers": {"flexion*": 3.0},
}
# Of the legs in the sagittal plane: mean, and amplitude and phase of each harmonic from heel strike
# of the right foot, near the curves that gait laboratories print for healthy adults.
_LEGS = {
    "hip_flexion": (12.0, (21.0, 4.0, 1.5, 0.5), (0.1, 2.4, 0.4, 0.0)),
    "knee_flexion": (25.0, (20.0, 15.0, 4.0, 1.0), (-4.6, -2.6, -0.9, 0.6)),
    "ankle_flexion": (2.0, (6.0, 8.0, 3.5, 1.0), (-2.4, -5.0, -1.2, 0.3)),
}


def make_walk(
    n_sequences: int = 4,
    n_frames: int | Sequence[int] = 100,
    seed: int = 0,
    *,
    n_subjects: int = 2,
    rate: float = 30.0,
    noise: float = 0.5,
    wander: float = 1.0,
    missing: int = 0,
) -> Dataset:
    """Walking figures, synthetic: 52 joint angles a frame, sequence after sequence.

    No person was recorded. Every angle is a sum of four harmonics of the phase of the stride; the
    legs follow the curves of a healthy adult, arms swing against them, the left side is the right
    one half a stride later. Subjects differ in offset, amplitude and timing of every angle,
    sequences in speed, which changes cadence and amplitude, and in their first phase; the speed of
    the phase and the amplitude wander within a sequence.

    Parameters
    ----------
    n_sequences : int
        Sequence k is of subject k modulo ``n_subjects``. The first sequences are the same whatever
        their number is.
    n_frames : int or sequence of int
        Frames of all sequences, or of each.
    seed : int
        The same seed gives the same figures, up to the last bits of a machine's cosine.
    n_subjects : int
        Different people.
    rate : float
        Frames a second; a stride takes about one second.
    noise : float
        Standard deviation of each entry's normal noise, in degrees (centimetres).
    wander : float
        Size of the changes within a sequence: at 1 the phase runs 8 % faster or slower, with a
        memory of half a second, and amplitudes change by 5 %. At 0 the angles are periodic.
    missing : int
        Frames in a row in the middle of each sequence of which nothing is observed: NaN.

    Returns
    -------
    Dataset
        ``Y`` (n, 52), degrees (``pelvis_height``, ``pelvis_surge``, ``pelvis_sway``: cm); n is the
        number of all frames. ``labels``: the subject of each frame. ``extra``: ``lengths``
        (n_sequences,), ``times`` (n,), seconds since the beginning of the sequence; ``phase`` (n,),
        radians; ``angles`` (n, 52), without noise and gaps.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    O(n · 52).

    Examples
    --------
    >>> walk = make_walk(2, 30)
    >>> walk.Y.shape, walk.extra["lengths"]
    ((60, 52), array([30, 30]))
    """
    lengths = np.asarray(n_frames)
    if lengths.ndim == 0:
        lengths = np.repeat(lengths, max(n_sequences, 1))
    _check(n_sequences, lengths, n_subjects, rate, noise, wander, missing)
    names, figure = _figure()
    people = [_person(np.random.default_rng((seed, 0, k)), figure) for k in range(n_subjects)]
    parts = [
        _sequence(np.random.default_rng((seed, 1, k)), people[k % n_subjects], length, rate, wander)
        for k, length in enumerate(lengths)
    ]
    angles = np.concatenate([part for part, _ in parts])
    draws = [np.random.default_rng((seed, 2, k)) for k in range(n_sequences)]
    errors = [g.standard_normal(part.shape) for g, (part, _) in zip(draws, parts, strict=True)]
    Y = angles + noise * np.concatenate(errors)
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        begin = end - length + (length - missing) // 2
        Y[begin : begin + missing] = np.nan
    return Dataset(
        Y=Y,
        labels=np.repeat(np.arange(n_sequences) % n_subjects, lengths),
        label_names=tuple(f"subject_{k + 1}" for k in range(n_subjects)),
        feature_names=names,
        name="walk",
        source=f"made by make_walk({n_sequences}, {lengths.tolist()}, {seed}, ...)",
        extra={
            "lengths": lengths.astype(np.int64),
            "times": np.concatenate([np.arange(length) / rate for length in lengths]),
            "phase": np.concatenate([phase for _, phase in parts]),
            "angles": angles,
        },
    )


# -- the figure ------------------------------------------------------------------------------------


def _figure() -> tuple[tuple[str, ...], tuple[Floats, Floats, Floats]]:
    """Names (D,), means (D,), amplitudes (D, H) and phases (D, H) of an average person."""
    rng = np.random.default_rng(_FIGURE)
    names: list[str] = []
    rows: list[tuple[Floats, Floats, Floats]] = []
    order = np.arange(1, _HARMONICS + 1)

    def drawn(joint: str, angle: str, swing: float, sided: bool) -> tuple[Floats, Floats, Floats]:
        name = f"{joint}_{angle.rstrip('*')}"
        mean = np.asarray(3.0 * rng.standard_normal())
        phase = rng.uniform(0.0, 2.0 * np.pi, _HARMONICS)
        decay = 0.45 ** np.arange(_HARMONICS, dtype=np.float64)
        size = swing * decay * np.exp(0.2 * rng.standard_normal(_HARMONICS))
        if not sided:
            # The body is the same after half a stride, or its mirror image.
            size = size * (order % 2 == (0 if angle.endswith("*") else 1)) * 1.5
        if name in _LEGS and sided:
            mean, size, phase = (np.asarray(v, dtype=np.float64) for v in _LEGS[name])
        elif sided and joint in ("shoulder", "elbow"):
            # Arms swing against the leg of their side.
            phase[0] = np.pi
        return mean, size, phase

    for joint, angles in _MIDLINE.items():
        for angle, swing in angles.items():
            names.append(f"{joint}_{angle.rstrip('*')}")
            rows.append(drawn(joint, angle, swing, False))
    for joint, angles in _SIDE.items():
        for angle, swing in angles.items():
            mean, size, phase = drawn(joint, angle, swing, True)
            sign = 1.0 if angle.endswith("*") else -1.0
            names += [f"right_{joint}_{angle.rstrip('*')}", f"left_{joint}_{angle.rstrip('*')}"]
            rows += [(mean, size, phase), (sign * mean, sign * size, phase + np.pi * order)]
    means, sizes, phases = zip(*rows, strict=True)
    return tuple(names), (np.stack(means), np.stack(sizes), np.stack(phases))


def _person(
    rng: np.random.Generator, figure: tuple[Floats, Floats, Floats]
) -> tuple[Floats, Floats, Floats]:
    """The figure with a manner of its own."""
    mean, size, phase = figure
    D = mean.size
    offset, stretch, shift = rng.standard_normal((3, D))
    later = 0.15 * shift[:, None] * np.arange(1, _HARMONICS + 1)
    return mean + 4.0 * offset, size * np.exp(0.15 * stretch)[:, None], phase + later


def _sequence(
    rng: np.random.Generator,
    person: tuple[Floats, Floats, Floats],
    length: int,
    rate: float,
    wander: float,
) -> tuple[Floats, Floats]:
    """Angles (length, D) and phases (length,) of one walk."""
    mean, size, phase = person
    speed = np.exp(0.12 * rng.standard_normal())
    pace = 2.0 * np.pi * np.sqrt(speed) / rate
    begin = rng.uniform(0.0, 2.0 * np.pi)
    steps = pace * np.exp(0.08 * wander * _drift(rng, length, 0.5 * rate))
    at = begin + np.concatenate([[0.0], np.cumsum(steps[:-1])])
    swing = speed**0.7 * np.exp(0.05 * wander * _drift(rng, length, rate))
    waves = np.zeros((length, mean.size))
    for k in range(_HARMONICS):
        waves += size[:, k] * np.cos((k + 1) * at[:, None] + phase[:, k])
    return mean + swing[:, None] * waves, at


def _drift(rng: np.random.Generator, length: int, memory: float) -> Floats:
    """A stationary process of unit variance that forgets itself in ``memory`` frames."""
    from scipy.signal import lfilter

    keep = np.exp(-1.0 / memory)
    e = rng.standard_normal(length)
    e[1:] *= np.sqrt(1.0 - keep**2)
    return np.asarray(lfilter([1.0], [1.0, -keep], e))


def _check(
    n_sequences: int,
    lengths: NDArray[np.int64],
    n_subjects: int,
    rate: float,
    noise: float,
    wander: float,
    missing: int,
) -> None:
    if min(n_sequences, n_subjects) < 1 or lengths.shape != (n_sequences,):
        raise ValueError(
            f"n_sequences={n_sequences}, n_subjects={n_subjects} and n_frames={lengths.tolist()} "
            "were given; expected 1 or more sequences and subjects, and one number of frames for "
            "all sequences or one for each"
        )
    if lengths.dtype.kind not in "iu" or lengths.min() < 1 or not 0 <= missing < lengths.min():
        raise ValueError(
            f"n_frames={lengths.tolist()} and missing={missing} were given; expected 1 or more "
            "frames in each sequence, and fewer missing than there are"
        )
    if not (0.0 < rate < np.inf and 0.0 <= noise < np.inf and 0.0 <= wander < np.inf):
        raise ValueError(
            f"rate={rate}, noise={noise}, wander={wander} were given; expected finite numbers, the "
            "rate above 0 and the others 0 or more"
        )


__all__ = ["make_walk"]
