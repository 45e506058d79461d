"""The CUDA type of a kernel tree: what a covariance kernel hands to the fused kernels.

The types themselves (``Radial``, ``Linear``, ``Sum``, ``Active``, ...) are in ``pairs.cuh``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# 0.5, 2., 1e-3: a literal without a cast is a double and would pull a float build into double
# arithmetic.
_REAL_LITERAL = re.compile(r"(?<![\w.])(\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)(?![\w.])")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class CudaPair:
    """A covariance function of one pair of points, as a C++ type.

    Parameters
    ----------
    type : str
        A type of ``pairs.cuh``, for example ``"Sum<Radial<profile_rbf, 2>, White>"``.
    definitions : tuple of str
        Texts of the radial profiles that the type names, see `radial_profile`.
    parameters : int
        Number of hyperparameters, in the order of the type's ``theta``; checked by the compiler.
    """

    type: str
    definitions: tuple[str, ...]
    parameters: int


def radial_profile(name: str, snippet: str, parameters: int = 0) -> str:
    """Return the definition of ``profile_<name>`` from a two-line snippet.

    Parameters
    ----------
    name : str
        A C++ identifier; ``Radial<profile_<name>, L>`` is then a type.
    snippet : str
        C++ statements that set ``k`` (the value for unit variance) and ``dk`` (its derivative in
        ``u``) from the scaled squared distance ``u`` and, where there are extra parameters
        ``e[0]``, ..., also ``de[0]``, ... (derivatives of ``k`` in them).  ``dk`` must be finite at
        ``u = 0``.  Real literals are cast to the working type; write ``5.0 / 6.0``, not ``5 / 6``.
    parameters : int
        Number of extra parameters.

    Returns
    -------
    str
        A C++ ``struct``, for `CudaPair.definitions`.

    Raises
    ------
    ValueError
        If ``name`` is not an identifier.

    Examples
    --------
    >>> text = radial_profile("rbf", "k = exp(-0.5 * u); dk = -0.5 * k;")
    >>> CudaPair("Radial<profile_rbf, 1>", (text,), 2).parameters
    2
    """
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(
            f"radial profile name {name!r}: expected letters, digits and underscores, because it "
            "becomes a C++ identifier"
        )
    body = _REAL_LITERAL.sub(r"T(\1)", snippet.strip())
    return (
        f"struct profile_{name} {{\n"
        f"  static constexpr int E = {parameters};\n"
        "  static __device__ __forceinline__ void eval(T u, const T* e, T& k, T& dk, T* de) {\n"
        f"    {body}\n"
        "  }\n"
        "};\n"
    )


def pair_source(code: CudaPair) -> str:
    """Return the C++ text that defines ``gplvm::Pair`` for a kernel tree.

    The text needs ``REAL`` (``double`` or ``float``) to be defined.
    """
    template = Path(__file__).with_name("pairs.cuh").read_text(encoding="utf-8")
    profiles = "\n".join(dict.fromkeys(code.definitions))
    return (
        f"{template}\nnamespace gplvm {{\n{profiles}\ntypedef {code.type} Pair;\n"
        f'static_assert(Pair::P == {code.parameters}, "CudaPair.parameters is not the number of '
        'parameters of its type");\n}\n'
    )


__all__ = ["CudaPair", "pair_source", "radial_profile"]
