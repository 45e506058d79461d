"""Addresses and checksums of the public files."""

from __future__ import annotations

from . import _parse
from ._fetch import Bundled, Remote, Source

_GITHUB = "https://raw.githubusercontent.com"
_GPMAT = f"{_GITHUB}/SheffieldML/GPmat/4b5914a38ecbad9fb7a13a3392970bfc28c9d911/datasets/data"
_SCANPY_2018 = "e71d41e737c941559b7c57c9243bdb3d2c889c2adfdf00e3422ac6b46783676f"
_SCANPY_2025 = "863e19914ab2d4ba97edc9623ac3a343c0461f1e40b121bfb5fa92638b22e9bd"

OIL_FLOW = Source(
    folder="oil_flow",
    archive="oil_flow.npz",
    archive_sha256="6fbdec3949eb18da57ea567b465613156427528d107215b5c70019092c12d12f",
    remote=Remote(
        url=(
            f"{_GITHUB}/cornellius-gp/gpytorch/7c4ec80f0f05cf530348a8a8972d67a11dd26ed2"
            "/examples/045_GPLVM/3PhData.tar.gz"
        ),
        filename="3PhData.tar.gz",
        sha256="f30941a9307ca9c8e7fcc99d27d9d3db6234dc089149478688cff2c0cda3ccf8",
    ),
    parse=_parse.parse_oil_flow,
)

FREY_FACES = Source(
    folder="frey_faces",
    archive="frey_faces.npz",
    archive_sha256="cf4ea5d51a680ee7c1da19a9965f96b171c29dd4e9c1af8e2d841fc59d834f65",
    remote=Remote(
        url=f"{_GPMAT}/frey_rawface.mat",
        filename="frey_rawface.mat",
        sha256="265a83a23adb081755cd3de375509828e690324d1d60f076b8ecebc840d59c64",
    ),
    parse=_parse.parse_frey_faces,
)

VOWELS = Source(
    folder="vowels",
    archive="vowels.npz",
    archive_sha256="082497fb8fbd0830bab32135d74c707293b5d4b10b504333f4f6db59dc64f349",
    remote=Remote(
        url=f"{_GPMAT}/jon_vowel_data.mat",
        filename="jon_vowel_data.mat",
        sha256="ac5ea8f50614b2b8c74f3ab809dc9ce6dc9f11040a6a0094c9740c6d59f23572",
    ),
    parse=_parse.parse_vowels,
)

SWISS_ROLL = Source(
    folder="swiss_roll",
    archive="swiss_roll.npz",
    archive_sha256="7f24481882881ce1f30ac4e17c58e1a84715302d75855ab5750efce849ad7981",
    remote=Remote(
        url=f"{_GPMAT}/swiss_roll_data.mat",
        filename="swiss_roll_data.mat",
        sha256="cba9de7548f8d7c23cfdeacd23587a8825c06366da8817e030abe3666063a849",
    ),
    parse=_parse.parse_swiss_roll,
    otherwise=" sklearn.datasets.make_swiss_roll makes a similar table without any file.",
)

PBMC = Source(
    folder="single_cell",
    archive="pbmc68k_reduced.npz",
    archive_sha256="23bab3fa33955b803c923078d180b199da1ecfe37843a9000ff6118fa9922ca2",
    remote=Remote(
        url=(
            f"{_GITHUB}/scverse/scanpy/cf8b46dea735c35a629abfaa2e1bab9047281e34"
            "/src/scanpy/datasets/10x_pbmc68k_reduced.h5ad"
        ),
        filename="10x_pbmc68k_reduced.h5ad",
        sha256=_SCANPY_2018,
    ),
    parse=_parse.parse_pbmc,
    # 1.12 rewrote the file in a later layout of the format, with the same numbers.
    bundled=Bundled("scanpy", "datasets/10x_pbmc68k_reduced.h5ad", (_SCANPY_2018, _SCANPY_2025)),
    otherwise=" `pip install 'scanpy<1.13'` brings the file as well.",
)

# Rows of the training set, in the order of GPflow's file (sha256
# 15a0e02f861bc1e03ca32ef75144befa3060ea299788bac2facf9125064bf8c3).
OIL100_ROWS = (
    807, 871, 646, 178, 643, 593, 553, 537, 495, 958, 367, 432, 631, 700, 857, 955, 744, 221,
    885, 269, 19, 378, 899, 340, 364, 139, 357, 351, 949, 417, 254, 110, 960, 849, 332, 642,
    621, 344, 189, 482, 662, 620, 966, 483, 244, 809, 701, 421, 339, 788, 24, 113, 4, 851, 973,
    691, 721, 514, 325, 852, 908, 127, 868, 769, 602, 326, 526, 704, 20, 433, 914, 979, 400,
    664, 152, 361, 533, 722, 734, 414, 391, 735, 515, 640, 627, 779, 637, 595, 663, 929, 376,
    133, 266, 903, 377, 598, 980, 70, 265, 406,
)  # fmt: skip

__all__ = ["FREY_FACES", "OIL100_ROWS", "OIL_FLOW", "PBMC", "SWISS_ROLL", "VOWELS"]
