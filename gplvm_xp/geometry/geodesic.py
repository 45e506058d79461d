"""Shortest curves between latents under the expected metric.

A geodesic x(t), t in [0, 1], minimises the energy ½ ∫ ẋᵀG(x)ẋ dt. In Hamilton's form it is a
boundary value problem of first order, with the momentum p = Gẋ and H = ½ pᵀG⁻¹p = ½ ẋᵀGẋ constant
along it (Tosi, Hauberg, Vellido & Lawrence, UAI 2014, section 3, have the Euler-Lagrange form):

  ẋ = G(x)⁻¹p,  ṗ = −∂H/∂x = ½ ∂_x (ẋᵀG(x)ẋ) with ẋ held,  x(0), x(1) given,

which SciPy's collocation solves (Kierzenka & Shampine, ACM TOMS 27, 2001). It begins from curves
whose energy has been minimised over broken lines: the straight line, and the shortest path through
neighbouring training latents, which goes round places where nothing is known.

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
# Segments of the broken lines, and points at which a solution is measured.
_SEGMENTS, _FINE = 40, 201
# Of the mean metric, added to it: a dimension that the outputs do not feel has a metric of zero.
_RIDGE = 1e-8
# A solution longer than a broken line by more than this share is not the shortest curve.
_SLACK = 1e-2
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
        that was met. Otherwise ``path`` is the best broken line.
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
    max_nodes: int = 1000,
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
    lines = [_resampled(surface, line) for line in _lines(surface, start, end, anchors)]
    frame = _Frame.along(surface, lines)
    broken = [_Broken.near(frame, frame.inside(line)) for line in lines]
    relaxed = sorted((line.relaxed() for line in broken), key=frame.length)
    best = frame.length(relaxed[0])
    failed = ""
    for line in relaxed:
        solution = _solved(frame, line, tol, max_nodes)
        if solution.success:
            fine = solution.sol(np.linspace(0.0, 1.0, _FINE))[: start.size].T
            if frame.length(fine) <= (1.0 + _SLACK) * best:
                path = solution.sol(np.linspace(0.0, 1.0, n_points))[: start.size].T
                path, fine = frame.outside(path), frame.outside(fine)
                path[0], path[-1] = start, end
                return Geodesic(path, *_measured(surface, fine), True, "converged")
            failed = failed or "solve_bvp found a longer curve, not the shortest"
        failed = failed or f"solve_bvp: {solution.message}"
    fine = _resampled(surface, frame.outside(relaxed[0]))
    path = _resampled(surface, fine, n_points)
    path[0], path[-1] = start, end
    message = (
        f"{failed}; this is the broken line of {_SEGMENTS} segments of least energy: try a larger "
        "tol or max_nodes, or nearer ends"
    )
    return Geodesic(path, *_measured(surface, fine), False, message)


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
    yield np.stack([start, end])
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
        yield points[chain[::-1]]


@dataclass(frozen=True)
class _Broken:
    """Broken lines near one with S segments, in the frame, and their energy.

    E = ½ S Σ_s Σ_g ω_g Δ_sᵀG(w_s + c_g Δ_s)Δ_s with Δ_s = w_{s+1} − w_s, by the rule of three
    points that lengths are measured with: by one point a segment, the line would hop over what is
    steep. In the flat metric of the frame its Hessian is S times the matrix (−1, 2, −1), R⁻ᵀR⁻¹;
    in u, w = line + R u, it is the identity, and L-BFGS needs few steps.
    """

    frame: _Frame
    line: np.ndarray
    root: np.ndarray

    @classmethod
    def near(cls, frame: _Frame, line: np.ndarray) -> _Broken:
        S = line.shape[0] - 1
        laplacian = S * (2.0 * np.eye(S - 1) - np.eye(S - 1, k=1) - np.eye(S - 1, k=-1))
        return cls(frame, line, np.linalg.inv(np.linalg.cholesky(laplacian)).T)

    def at(self, u: np.ndarray) -> np.ndarray:
        w = self.line.copy()
        w[1:-1] += self.root @ u.reshape(w.shape[0] - 2, w.shape[1])
        return w

    def energy(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w = self.at(u)
        S, q = w.shape[0] - 1, w.shape[1]
        steps = np.broadcast_to(np.diff(w, axis=0)[:, None, :], (S, _NODES.size, q))
        places = w[:-1, None, :] + _NODES[:, None] * steps
        f, gw, gv = self.frame.speed(places.reshape(-1, q), steps.reshape(-1, q))
        share = 0.5 * S * _WEIGHTS[:, None]
        gw, gv = share * gw.reshape(steps.shape), share * gv.reshape(steps.shape)
        # Node g moves with (1 − c_g) of the segment's first end and with c_g of its last.
        last = np.sum(_NODES[:, None] * gw + gv, axis=1)
        first = np.sum(gw, axis=1) - last
        value = 0.5 * S * np.sum(f.reshape(S, -1) @ _WEIGHTS)
        return np.asarray(value), (self.root.T @ (last[:-1] + first[1:])).ravel()

    def relaxed(self) -> np.ndarray:
        """The one of least energy, (S + 1, q)."""
        size = (self.line.shape[0] - 2) * self.line.shape[1]
        end = minimise(self.energy, np.zeros(size), max_steps=200, gtol=1e-4, ftol=1e-7)
        return self.at(end.x)


def _solved(frame: _Frame, line: np.ndarray, tol: float, max_nodes: int):  # type: ignore[no-untyped-def]
    """SciPy's solution of Hamilton's equations that begins from ``line``."""
    q = line.shape[1]

    def slopes(t: np.ndarray, y: np.ndarray) -> np.ndarray:
        w, p = y[:q].T, y[q:].T
        v = np.linalg.solve(frame.metric(w), p[:, :, None])[:, :, 0]
        return np.concatenate([v, 0.5 * frame.speed(w, v)[1]], axis=1).T

    def ends(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.concatenate([first[:q] - line[0], last[:q] - line[-1]])

    t = np.linspace(0.0, 1.0, line.shape[0])
    v = np.gradient(line, t, axis=0)
    p = (frame.metric(line) @ v[:, :, None])[:, :, 0]
    # A step of Newton's may lead anywhere, and one that fails is a value.
    with np.errstate(all="ignore"):
        return solve_bvp(
            slopes, ends, t, np.concatenate([line, p], axis=1).T, tol=tol, max_nodes=max_nodes
        )


# -- measures ------------------------------------------------------------------------------------


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


def _resampled(surface: Surface, path: np.ndarray, points: int = _SEGMENTS + 1) -> np.ndarray:
    """A broken line through the same points, at equal lengths."""
    # A long segment may cross steep and flat places: equal parts of it need not be equally long.
    fine = np.concatenate([np.linspace(a, c, 9)[:-1] for a, c in itertools.pairwise(path)])
    fine = np.concatenate([fine, path[-1:]])
    along = np.concatenate([[0.0], np.cumsum(_segments(surface, fine))])
    if along[-1] == 0.0:
        along = np.arange(along.size) * 1.0
    at = np.linspace(0.0, along[-1], points)
    return np.stack([np.interp(at, along, column) for column in fine.T], axis=1)


__all__ = ["Geodesic", "curve_length", "geodesic"]
