"""Second derivatives of kernels, for exact Hessian-vector products."""

from __future__ import annotations

from gplvm_xp.kernels.base import Kernel
from gplvm_xp.kernels.compose import ActiveDims, Product, Scale, Sum
from gplvm_xp.kernels.curvature.base import Curvature, Tangent, fill_jvp
from gplvm_xp.kernels.curvature.inner import (
    LinearCurvature,
    PolynomialCurvature,
    StaticCurvature,
)
from gplvm_xp.kernels.curvature.radial import RadialCurvature
from gplvm_xp.kernels.curvature.trees import (
    ActiveDimsCurvature,
    ProductCurvature,
    ScaleCurvature,
    SumCurvature,
)
from gplvm_xp.kernels.curvature.waves import HexagonalCurvature, PeriodicCurvature
from gplvm_xp.kernels.hexagonal import Hexagonal
from gplvm_xp.kernels.linear import Linear
from gplvm_xp.kernels.periodic import Periodic
from gplvm_xp.kernels.polynomial import Polynomial
from gplvm_xp.kernels.radial import Radial
from gplvm_xp.kernels.static import Constant, White


def curvature_of(kernel: Kernel) -> Curvature:
    """The curvature of a kernel of the library, or of a radial kernel that gives its bend.

    Parts of a tree are asked for theirs, so that a kernel of your own may stand anywhere.

    Raises
    ------
    NotImplementedError
        If the kernel, or a part of it, has none.
    """
    match kernel:
        case Radial() if type(kernel).profile_bend is not Radial.profile_bend:
            return RadialCurvature(kernel)
        case Linear():
            return LinearCurvature(kernel)
        case Polynomial():
            return PolynomialCurvature(kernel)
        case Constant() | White():
            return StaticCurvature(kernel)
        case Periodic():
            return PeriodicCurvature(kernel)
        case Hexagonal():
            return HexagonalCurvature(kernel)
        case Sum():
            return SumCurvature(kernel, tuple(part.curvature() for part in kernel.parts))
        case Product():
            return ProductCurvature(kernel, tuple(part.curvature() for part in kernel.parts))
        case Scale():
            return ScaleCurvature(kernel, kernel.kernel.curvature())
        case ActiveDims():
            return ActiveDimsCurvature(kernel, kernel.kernel.curvature())
    how = "profile_bend()" if isinstance(kernel, Radial) else "curvature()"
    raise NotImplementedError(
        f"{type(kernel).__name__} has no second derivatives: give it {how} (see "
        "gplvm_xp.kernels.curvature), or fit with an optimizer that needs none, such as 'lbfgs'"
    )


__all__ = ["Curvature", "Tangent", "curvature_of", "fill_jvp"]
