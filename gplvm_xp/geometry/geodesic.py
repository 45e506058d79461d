"""Shortest curves between latents under the expected metric.

A geodesic x(t), t in [0, 1], minimises the energy ½ ∫ ẋᵀG(x)ẋ dt. In Hamilton's form it is a
boundary value problem of first order, with the momentum p = Gẋ and H = ½ pᵀG⁻¹p = ½ ẋᵀGẋ constant
along it (Tosi, Hauberg, Vellido & Lawrence, UAI 2014, section 3, have the Euler-Lagrange form):

  ẋ = G(x)⁻¹p,  ṗ = −∂H/∂x = ½ ∂_x (ẋᵀG(x)ẋ) with ẋ held,  x(0), x(1) given,

which SciPy's collocation solves (Kierzenka & Shampine, ACM TOMS 27, 2001). It begins from a curve
of sine waves whose energy has been minimised, from the straight line and from the shortest path
through neighbouring training latents, which goes round places where nothing is known.

All of it happens in latents w, x = x(0) + ℓ A⁻ᵀw, where A Aᵀ is the mean metric along those curves
and ℓ a length: there the metric is about the identity and every number about 1, whatever the units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_bvp
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from gplvm_xp.geometry.surface import Surface
from gplvm_xp.neighbours import maxmin, nearest
from gplvm_xp.optim import minimise

# The graph has at most so many training latents, joined to so many neighbours; the former are
# chosen from at most so many.
_ANCHORS, _NEIGHBOURS, _CANDIDATES = 500, 8, 5000
# Waves of the curves from which the solver begins, and begins again; points at which curves are
# measured.
_WAVES, _FINE = (40, 80), 201
# Of the mean metric, added to it: a dimension that the outputs do not feel has a metric of zero.
_RIDGE = 1e-8
# A solution longer than where it began by more than this share is another curve.
_SLACK = 1e-3
# Gauss and Legendre's rule of three points on [0, 1].
_NODES = 0.5 + np.array([-0.5, 0.0, 0.5]) * np.sqrt(0.6)
_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 18.0


@dataclass(frozen=True)
class Geodesic:
    """A shortest curve between two latents.

    Attributes
    ----------
    path : ndarray (T, q)
        Points at equal times, which are equal lengths apart.
    length : float
        ∫ √(ẋᵀGẋ) dt, units of the outputs: how far they move, root mean square.
    energy : float
        ½ ∫ ẋᵀGẋ dt, ½ length² at constant speed.
    converged : bool
        Whether the boundary value problem was solved to its tolerance, and by the shortest curve
        that was met. Otherwise ``path`` is a curve of sine waves, the one of least energy.
    message : str
        How it ended.
    """

    path: np.ndarray
    length: float
    energy: float
    converged: bool
    message: str


def geodesic(
    surface: Surface,
    start: np.ndarray,
    end: np.ndarray,
    anchors: np.ndarray,
    *,
    n_points: int = 50,
    tol: float = 1e-3,
    max_nodes: int = 500,
) -> Geodesic:
    """The shortest curve from ``start`` to ``end`` that is found.

    Parameters
    ----------
    surface : Surface
        In float64: SciPy differentiates the equations by small steps.
    start, end : ndarray (q,)
    anchors : ndarray (n, q)
        Where data are: the training latents.
    n_points : int
        Points of the path, 2 or more.
    tol : float
        Of SciPy's ``solve_bvp``, relative to the length of the curve.
    max_nodes : int
        Of its mesh.

    Raises
    ------
    ValueError
        If the surface is in single precision, or ``n_points`` is below 2.

    Notes
    -----
    Some thousand evaluations of ``squared_speed`` for the graph, and some ten thousand for the
    rest. Geodesics are local minima: another may be shorter.
    """
    if surface.backend.itemsize < 8:
        raise ValueError("the surface is in float32; expected float64, which geodesics need")
    if n_points < 2:
        raise ValueError(f"n_points={n_points} was given; expected 2 or more")
    if np.array_equal(start, end):
        path = np.repeat(start[None, :], n_points, axis=0)
        return Geodesic(path, 0.0, 0.0, True, "start and end are one point")
    lines = [_resampled(surface, line, _FINE) for line in _lines(surface, start, end, anchors)]
    frame = _Frame.along(surface, lines)
    ends, fine = frame.inside(lines[0][[0, -1]]), np.linspace(0.0, 1.0, _FINE)
    first = _Waves(frame, ends, _WAVES[0])
    curves = [first.relaxed(first.of(frame.inside(line))) for line in lines]
    best = min(curves, key=lambda c: frame.length(first.at(c, fine)[0]))
    failed = ""
    for count in _WAVES:
        waves = _Waves(frame, ends, count)
        best = best if count == first.count else waves.relaxed(best)
        length = frame.length(waves.at(best, fine)[0])
        mesh = np.linspace(0.0, 1.0, 2 * count + 1)
        solution = _solved(frame, *waves.at(best, mesh), tol, max_nodes)
        if solution.success:
            path, fine_path = (
                _pinned(frame.outside(solution.sol(t)[: start.size].T), start, end)
                for t in (np.linspace(0.0, 1.0, n_points), fine)
            )
            if curve_length(surface, fine_path) <= (1.0 + _SLACK) * length:
                return Geodesic(path, *_measured(surface, fine_path), True, "converged")
        failed = "it found a longer curve" if solution.success else solution.message.rstrip(".")
    fine_path = _resampled(surface, frame.outside(waves.at(best, fine)[0]), _FINE)
    message = (
        f"solve_bvp failed: {failed}; this is the curve of {_WAVES[-1]} waves of least energy: try "
        "a larger tol or max_nodes, or nearer ends"
    )
    path = _pinned(_resampled(surface, fine_path, n_points), start, end)
    return Geodesic(path, *_measured(surface, fine_path), False, message)


def curve_length(surface: Surface, path: np.ndarray) -> float:
    """Length of the broken line through ``path`` (T, q), units of the outputs.

    Each segment by Gauss and Legendre's rule of three points.
    """
    return math.fsum(_segments(surface, path))


# -- coordinates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """Latents w in which the metric is about the identity: x = origin + map w."""

    surface: Surface
    origin: np.ndarray
    map: np.ndarray
    back: np.ndarray
    unit: float

    @classmethod
    def along(cls, surface: Surface, lines: list[np.ndarray]) -> _Frame:
        b = surface.backend
        G = b.to_host(surface.metric(b.asarray(np.concatenate(lines)))).mean(axis=0)
        q = G.shape[0]
        A = np.linalg.cholesky(G + (_RIDGE * np.trace(G) / q) * np.eye(q))
        unit = math.hypot(*(A.T @ (lines[0][-1] - lines[0][0])))
        return cls(surface, lines[0][0], unit * np.linalg.inv(A).T, A.T / unit, unit)

    def inside(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((x - self.origin) @ self.back.T)

    def outside(self, w: np.ndarray) -> np.ndarray:
        return np.asarray(self.origin + w @ self.map.T)

    def metric(self, w: np.ndarray) -> np.ndarray:
        b = self.surface.backend
        G = b.to_host(self.surface.metric(b.asarray(self.outside(w))))
        return np.asarray(self.map.T @ G @ self.map / self.unit**2 + _RIDGE * np.eye(w.shape[1]))

    def speed(self, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """vᵀGv and its gradients in w and v, without the ridge."""
        b = self.surface.backend
        x, along = b.asarray(self.outside(w)), b.asarray(v @ self.map.T)
        f, gx, gv = (b.to_host(a) / self.unit**2 for a in self.surface.squared_speed(x, along))
        return f, gx @ self.map, gv @ self.map

    def length(self, w: np.ndarray) -> float:
        return curve_length(self.surface, self.outside(w))


# -- where to begin ------------------------------------------------------------------------------


def _lines(
    surface: Surface, start: np.ndarray, end: np.ndarray, anchors: np.ndarray
) -> Iterator[np.ndarray]:
    """The straight line, and the shortest path through the anchors where there is one."""
    yield np.linspace(start, end, _FINE)
    some = anchors[:: max(1, anchors.shape[0] // _CANDIDATES)]
    some = some[maxmin(some)[:_ANCHORS]]
    points, places = np.unique(np.vstack([start, end, some]), axis=0, return_inverse=True)
    begin, target = np.ravel(places)[:2]
    near = nearest(points, min(_NEIGHBOURS + 1, points.shape[0]))
    pairs = np.stack([np.repeat(near[:, 0], near.shape[1] - 1), near[:, 1:].ravel()], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    ends = points[pairs]
    cost = _speeds(surface, ends.mean(axis=1), ends[:, 1] - ends[:, 0])
    # Nothing stored would be no edge, and an edge may cost nothing.
    cost = np.maximum(cost, 1e-12 * cost.max())
    graph = coo_array((cost, tuple(pairs.T)), shape=(points.shape[0],) * 2).tocsr()
    _, before = dijkstra(graph, directed=False, indices=begin, return_predecessors=True)
    chain = [target]
    while before[chain[-1]] >= 0:
        chain.append(before[chain[-1]])
    if chain[-1] == begin and len(chain) > 2:
        # A long edge may cross steep and flat places: equal parts of it need not be equally long.
        parts = [np.linspace(a, c, 9)[1:] for a, c in itertools.pairwise(points[chain[::-1]])]
        yield np.concatenate([start[None, :], *parts])


@dataclass(frozen=True)
class _Waves:
    """Curves of K sine waves about the straight line from w₀ to w₁, in the frame.

    w(t) = w₀ + t (w₁ − w₀) + Σ_k c_k √2 sin(kπt)/(kπ). In the flat metric of the frame the Hessian
    of the energy ½ ∫ ẇᵀGẇ dt in c is the identity, so that L-BFGS needs few steps; and where the
    metric is smooth the curve of least energy is soon the geodesic.

    Attributes
    ----------
    frame : _Frame
    ends : ndarray (2, q)
    count : int
        K.
    """

    frame: _Frame
    ends: np.ndarray
    count: int

    def at(self, c: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points and velocities (N, q) at times t (N,), of coefficients c (K, q)."""
        sines, cosines = self._waves(t)
        across = self.ends[1] - self.ends[0]
        return self.ends[0] + t[:, None] * across + sines @ c, across + cosines @ c

    def of(self, line: np.ndarray) -> np.ndarray:
        """The coefficients of the curve next to a line (T, q) at equal times, (K, q)."""
        times = np.linspace(0.0, 1.0, line.shape[0])
        off = line - self.at(np.zeros((self.count, line.shape[1])), times)[0]
        t, share = self._rule()
        off = np.stack([np.interp(t, times, column) for column in off.T], axis=1)
        k = np.pi * np.arange(1, self.count + 1)
        return np.asarray((k**2)[:, None] * (self._waves(t)[0].T @ (share[:, None] * off)))

    def energy(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """½ ∫ ẇᵀGẇ dt and its gradient, of flat coefficients (K q,)."""
        t, share = self._rule()
        f, gw, gv = self.frame.speed(*self.at(u.reshape(self.count, -1), t))
        sines, cosines = self._waves(t)
        slope = 0.5 * (sines.T @ (share[:, None] * gw) + cosines.T @ (share[:, None] * gv))
        return np.asarray(0.5 * np.sum(share * f)), slope.ravel()

    def relaxed(self, c: np.ndarray) -> np.ndarray:
        """The coefficients of least energy near c (k, q), k up to K, (K, q)."""
        start = np.concatenate([c, np.zeros((self.count - c.shape[0], c.shape[1]))])
        end = minimise(self.energy, start.ravel(), max_steps=500, gtol=1e-5, ftol=1e-9)
        return np.asarray(end.x.reshape(start.shape))

    def _waves(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k = np.pi * np.arange(1, self.count + 1)
        phase = t[:, None] * k
        return np.sqrt(2.0) * np.sin(phase) / k, np.sqrt(2.0) * np.cos(phase)

    def _rule(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and weights of an integral, four a half wave of the shortest."""
        cells = -(-4 * self.count // 3)
        t = (np.arange(cells)[:, None] + _NODES) / cells
        return t.ravel(), np.tile(_WEIGHTS / cells, cells)


def _solved(  # type: ignore[no-untyped-def]
    frame: _Frame, line: np.ndarray, velocity: np.ndarray, tol: float, max_nodes: int
):
    """SciPy's solution of Hamilton's equations that begins from a curve at equal times."""
    q = line.shape[1]

    def slopes(t: np.ndarray, y: np.ndarray) -> np.ndarray:
        w, p = y[:q].T, y[q:].T
        v = np.linalg.solve(frame.metric(w), p[:, :, None])[:, :, 0]
        return np.concatenate([v, 0.5 * frame.speed(w, v)[1]], axis=1).T

    def ends(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.concatenate([first[:q] - line[0], last[:q] - line[-1]])

    t = np.linspace(0.0, 1.0, line.shape[0])
    p = (frame.metric(line) @ velocity[:, :, None])[:, :, 0]
    # A step of Newton's may lead anywhere, and one that fails is a value.
    with np.errstate(all="ignore"):
        return solve_bvp(
            slopes, ends, t, np.concatenate([line, p], axis=1).T, tol=tol, max_nodes=max_nodes
        )


# -- measures ------------------------------------------------------------------------------------


def _pinned(path: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The path with its ends exact."""
    return np.concatenate([start[None, :], path[1:-1], end[None, :]])


def _speeds(surface: Surface, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    b = surface.backend
    f = b.to_host(surface.squared_speed(b.asarray(x), b.asarray(v))[0])
    return np.asarray(np.sqrt(np.maximum(f, 0.0)), dtype=np.float64)


def _segments(surface: Surface, path: np.ndarray) -> np.ndarray:
    """Lengths of the segments of a broken line (T, q), (T − 1,)."""
    steps = np.diff(path, axis=0)
    x = path[:-1, None, :] + _NODES[:, None] * steps[:, None, :]
    v = np.broadcast_to(steps[:, None, :], x.shape)
    q = path.shape[1]
    speeds = _speeds(surface, x.reshape(-1, q), v.reshape(-1, q))
    return np.asarray(speeds.reshape(-1, _NODES.size) @ _WEIGHTS)


def _measured(surface: Surface, path: np.ndarray) -> tuple[float, float]:
    """Length, and energy at equal times."""
    parts = _segments(surface, path)
    return math.fsum(parts), 0.5 * parts.size * math.fsum(parts**2)


def _resampled(surface: Surface, path: np.ndarray, points: int) -> np.ndarray:
    """A broken line through the same points, at equal lengths."""
    along = np.concatenate([[0.0], np.cumsum(_segments(surface, path))])
    if along[-1] == 0.0:
        # No output feels the way.
        along = np.arange(along.size) * 1.0
    at = np.linspace(0.0, along[-1], points)
    return np.stack([np.interp(at, along, column) for column in path.T], axis=1)


__all__ = ["Geodesic", "curve_length", "geodesic"]
