"""Addresses and checksums of the public files."""

from __future__ import annotations

from . import _parse, _parse_events
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

_SHUTTLE = "1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59"
SHUTTLE = Source(
    folder="large",
    archive="shuttle_49k.npz",
    archive_sha256="be3641dfb5abb1bb79111271cd247fbb1ed6be8519c3888f413f7990f06e63d0",
    remote=Remote(
        url=f"{_GITHUB}/online-ml/river/0.26.1/river/datasets/shuttle.csv.gz",
        filename="shuttle.csv.gz",
        sha256=_SHUTTLE,
    ),
    parse=_parse.parse_shuttle,
    bundled=Bundled("river", "datasets/shuttle.csv.gz", (_SHUTTLE,)),
    otherwise=" `pip install river` brings the file as well.",
)

_POINTS = ("point_processes", "point_processes.npz")
_POINTS_SHA = "1d389c5654b84867bf337461cc0fbe95ba256d307f6332c930932bf305b80fde"
_GPFLOW = f"{_GITHUB}/GPflow/GPflow"

COAL = Source(
    *_POINTS,
    _POINTS_SHA,
    remote=Remote(
        url=(
            f"{_GPFLOW}/39e0fc3c3d8f19deeafc60c4c7461a5ed5f1e168/doc/source/notebooks/data/coal.csv"
        ),
        filename="coal.csv",
        sha256="49d365137313f6f3edcb72f38ec0db0cf2761b9df95901faa872dd433a52684f",
    ),
    parse=_parse_events.parse_coal,
)

PINES = Source(
    *_POINTS,
    _POINTS_SHA,
    remote=Remote(
        url=(
            f"{_GPFLOW}/8ecf64fa1a193be1eacd6bc022267e663aa9e797"
            "/doc/source/notebooks/data/pines.csv"
        ),
        filename="pines.csv",
        sha256="5ad41bb1bf4313f72e2d1c44c5b3fd909382902bf5088fc35d39526de73e95dd",
    ),
    parse=_parse_events.parse_pines,
)

_LGCP = (
    f"{_GITHUB}/michaelerule/lgcpspatial/23d362ec300fae7e1b944d765183d3327528a053/example%20data"
)
_RECORDING_SHA = "c48d4c0d18649cb833d704992092cc6af8d9272b9b0d4d0fccca167d68ded29b"

GRID_RECORDING = Source(
    "grid_cells",
    "grid_cell_r2405_051216b_1816.npz",
    _RECORDING_SHA,
    remote=Remote(
        url=f"{_LGCP}/r2405_051216b_cell1816.mat",
        filename="r2405_051216b_cell1816.mat",
        sha256="d2e9c90bb28be29fb8ca0e8067cc83a6beeff65a8d7a611247e25653fe1f2734",
    ),
    parse=_parse_events.parse_recording,
)

GRID_BINNED = Source(
    "grid_cells",
    "grid_cell_r2405_051216b_1816.npz",
    _RECORDING_SHA,
    remote=Remote(
        url=f"{_LGCP}/binned_data_krupic_bauza_2018_r2405_051216b_cell1816.mat",
        filename="binned_data_krupic_bauza_2018_r2405_051216b_cell1816.mat",
        sha256="275c22996065fea71195adabd2149364f0e966897f645a05bc885ebdbe33b373",
    ),
    parse=_parse_events.parse_binned,
)

GRID_SIMULATED = Source(
    "grid_cells",
    "grid_simulated.npz",
    "e9446cc25fad08639ecc935b3e1d7a4cfffa97ccc4358fe326bdce598971f8ac",
    remote=Remote(
        # Kept under a name without the Greek letters of the original.
        url=f"{_LGCP}/simulated_data_L128_P12_%CE%B10p50_%CE%BC0p18.mat",
        filename="simulated_data_L128_P12.mat",
        sha256="e1a94b1a1b9deaf30c2ae5562b8ba152101e564fd8bf276b95e0db097573e469",
    ),
    parse=_parse_events.parse_simulated,
)

GRID_REFERENCE = Source(
    "grid_cells",
    "grid_lgcp_reference.npz",
    "861621c164172cecc612c561432b106fa99ce8ca0f380a7cbf25994e792f824c",
    remote=None,
    otherwise=(
        " It has no public address, because it is made from a recording whose licence is not "
        "stated; load_grid_simulated and make_grid_cells need no recording."
    ),
)

_BINARY = ("binary_classification", "binary_classification.npz")
_BINARY_SHA = "351e554de0af340fd74465ec682cd706b3f14eaf14eff9a93ffeb55172afe498"
_MASS = f"{_GITHUB}/vincentarelbundock/Rdatasets/cc03c29690889dbe83089f5206e2422db8c3f71f/csv/MASS"
_BANANA = (
    f"{_GITHUB}/GPflow/docs/a988ce072199081b0ceb30512a07cae33eb46c61"
    "/doc/source/notebooks/basics/data"
)


def _binary(url: str, checksum: str, parse: _parse_events.Parser) -> Source:
    remote = Remote(url=url, filename=url.rpartition("/")[2], sha256=checksum)
    return Source(*_BINARY, _BINARY_SHA, remote=remote, parse=parse)


# The files of each set of two classes.
BINARY = {
    "ripley": (
        _binary(
            f"{_MASS}/synth.tr.csv",
            "a0360161d301dbffab7bfb5d19b4904b1d6dd501c2d1937b0fec3a0bfe1b7c1e",
            _parse_events.csv_table("ripley_X_train", "ripley_y_train", "xs ys", "yc", "1"),
        ),
        _binary(
            f"{_MASS}/synth.te.csv",
            "23341cd6a168ae07f3bb7de0ee5dbd085a022b7482f53f2a4dde2691d083b4ed",
            _parse_events.csv_table("ripley_X_test", "ripley_y_test", "xs ys", "yc", "1"),
        ),
    ),
    "pima": (
        _binary(
            f"{_MASS}/Pima.tr.csv",
            "78e6284c75bf81eaae97815f7d0dd2992a119629ec6622de7918258311c32a7a",
            _parse_events.csv_table(
                "pima_X_train", "pima_y_train", _parse_events.PIMA, "type", "Yes"
            ),
        ),
        _binary(
            f"{_MASS}/Pima.te.csv",
            "b00bf6540cce6b6bc44ea65a149da3142b2039b37980dbcdf18d3750fc9db032",
            _parse_events.csv_table(
                "pima_X_test", "pima_y_test", _parse_events.PIMA, "type", "Yes"
            ),
        ),
    ),
    "crabs_sex": (
        _binary(
            f"{_MASS}/crabs.csv",
            "d643a70456ee5bd8a10b434416f0941615ea5a0adf208263ca25a49407c24b60",
            _parse_events.parse_crabs,
        ),
    ),
    "wisconsin": (
        _binary(
            f"{_MASS}/biopsy.csv",
            "e18081a83c04162001acba628c4be58e7cd9c55052c535d44ac5c7cd5d73ec22",
            _parse_events.csv_table(
                "wisconsin_X", "wisconsin_y", _parse_events.BIOPSY, "class", "malignant"
            ),
        ),
    ),
    "ionosphere": (
        _binary(
            f"{_GPMAT}/ionosphere.data",
            "46d52186b84e20be52918adb93e8fb9926b34795ff7504c24350ae0616a04bbd",
            _parse_events.parse_ionosphere,
        ),
    ),
    "banana400": (
        _binary(
            f"{_BANANA}/banana_X_train",
            "f7bde8d325727ead3eff5860d316f635d95cd2d67f160b6dd20d900292d6da4c",
            _parse_events.parse_banana_inputs,
        ),
        _binary(
            f"{_BANANA}/banana_Y_train",
            "5bbdc9358b6d8fae2e5957a1ace5636e51f3a86ece043567373486d5a8b78c6b",
            _parse_events.parse_banana_labels,
        ),
    ),
}

_CONGRESS = ("counts", "congress109.npz")
_CONGRESS_SHA = "75a7a8a741f5e8d1f87ddb345b2a4ca02c4954cf24744624a4ff934ad78bd47a"
_RFLVM = f"{_GITHUB}/gwgundersen/rflvm/5ac15101f2ab89dcb27eca3357f2454b0bd0146f/datasets"

CONGRESS = (
    Source(
        *_CONGRESS,
        _CONGRESS_SHA,
        remote=Remote(
            url=f"{_RFLVM}/congress109.csv",
            filename="congress109.csv",
            sha256="0f82e1f56cf9a5330079e26ee785e7d03def92d79c00069237333a24d09d52a1",
        ),
        parse=_parse_events.parse_congress_counts,
    ),
    Source(
        *_CONGRESS,
        _CONGRESS_SHA,
        remote=Remote(
            url=f"{_RFLVM}/congress109members.csv",
            filename="congress109members.csv",
            sha256="b685cc8a417310783825dbb1b41727dda32981e5229d344877e444f307b3b070",
        ),
        parse=_parse_events.parse_congress_members,
    ),
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

__all__ = [
    "BINARY",
    "COAL",
    "CONGRESS",
    "FREY_FACES",
    "GRID_BINNED",
    "GRID_RECORDING",
    "GRID_REFERENCE",
    "GRID_SIMULATED",
    "OIL100_ROWS",
    "OIL_FLOW",
    "PBMC",
    "PINES",
    "SHUTTLE",
    "SWISS_ROLL",
    "VOWELS",
]
