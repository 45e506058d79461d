"""Tables that a dependency ships: no network, no folder."""

from __future__ import annotations

import numpy as np

from ._dataset import Dataset


def load_digits() -> Dataset:
    """Handwritten digits, 1797 images of 8 × 8 pixels, bundled with scikit-learn.

    ``Y`` is (1797, 64): the number of ink pixels (0 to 16) in each 4 × 4 block of a 32 × 32 bitmap,
    row by row: ``Y[i].reshape(8, 8)``. ``labels`` is the digit. ``extra["image_shape"]`` is (8, 8).

    Returns
    -------
    Dataset

    Notes
    -----
    Source: ``sklearn.datasets.load_digits``, file ``datasets/data/digits.csv.gz`` (sha256
    ``09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22`` in scikit-learn 1.9.1); a
    copy of the test set of "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, made by 13 writers.

    Publication: E. Alpaydin and C. Kaynak, Cascading classifiers, Kybernetika, 1998.

    Licence: none is stated with the file; scikit-learn, which redistributes it, is BSD-3-Clause.

    Identity check: leave-one-out 1-nearest-neighbour label errors are 742 after PCA to two
    dimensions (centred, unscaled) and 21 in the full space.

    Costs under 0.1 s after the import of scikit-learn, which happens at the first call.
    """
    import sklearn
    from sklearn.datasets import load_digits as bundled

    held = bundled()
    return Dataset(
        Y=np.array(held.data, dtype=np.float64, order="C"),
        labels=np.array(held.target, dtype=np.int64),
        label_names=tuple(str(name) for name in held.target_names),
        feature_names=tuple(held.feature_names),
        name="digits",
        source=f"scikit-learn {sklearn.__version__}, sklearn.datasets.load_digits",
        extra={"image_shape": np.array([8, 8])},
    )


__all__ = ["load_digits"]
