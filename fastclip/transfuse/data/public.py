"""Public data sets that `fastclip download` knows: addresses, digests, terms, papers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A file of a data set; `sha256` is None where its publisher and others give none."""

    url: str
    file: str
    sha256: str | None = None


@dataclass(frozen=True)
class PublicSet:
    """A data set: its files, the page that describes it, its terms and its paper."""

    archives: tuple[Archive, ...]
    page: str
    licence: str
    citation: str


_ISIC = "https://isic-challenge-data.s3.amazonaws.com/"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


def _isic_2018() -> tuple[Archive, ...]:
    # Digests: torch-em, torch_em/data/datasets/medical/isic.py.
    digests = {
        "ISIC2018_Task1-2_Training_Input": (
            "80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f"
        ),
        "ISIC2018_Task1-2_Validation_Input": (
            "0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797"
        ),
        "ISIC2018_Task1-2_Test_Input": (
            "e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d"
        ),
        "ISIC2018_Task1_Training_GroundTruth": (
            "99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c"
        ),
        "ISIC2018_Task1_Validation_GroundTruth": (
            "f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285"
        ),
        "ISIC2018_Task1_Test_GroundTruth": (
            "2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82"
        ),
    }
    return tuple(
        Archive(f"{_ISIC}2018/{name}.zip", f"{name}.zip", digest)
        for name, digest in digests.items()
    )


def _isic_2017() -> tuple[Archive, ...]:
    parts = ("Training", "Validation", "Test_v2")
    names = [f"ISIC-2017_{part}_{end}" for part in parts for end in ("Data", "Part1_GroundTruth")]
    return tuple(Archive(f"{_ISIC}2017/{name}.zip", f"{name}.zip") for name in names)


PUBLIC_SETS = {
    "kvasir-seg": PublicSet(
        (
            Archive(
                "https://datasets.simula.no/downloads/kvasir-seg.zip",
                "kvasir-seg.zip",
                # Digest: torch-em, torch_em/data/datasets/medical/kvasir.py.
                "03b30e21d584e04facf49397a2576738fd626815771afbbf788f74a7153478f7",
            ),
        ),
        "https://datasets.simula.no/kvasir-seg/",
        "research and education only; see the page",
        "Jha et al., Kvasir-SEG: A Segmented Polyp Dataset, MMM 2020",
    ),
    "cvc-clinicdb": PublicSet(
        (
            Archive(
                "https://www.dropbox.com/s/p5qe9eotetjnbmq/CVC-ClinicDB.rar?dl=1",
                "CVC-ClinicDB.rar",
            ),
        ),
        "https://polyp.grand-challenge.org/CVCClinicDB/",
        "research and education only, not for commercial use; see the page",
        "Bernal et al., WM-DOVA maps for accurate polyp highlighting in colonoscopy, CMIG 2015",
    ),
    "isic2017": PublicSet(
        _isic_2017(),
        "https://challenge.isic-archive.com/data/",
        "CC0 1.0; see the page",
        "Codella et al., Skin Lesion Analysis Toward Melanoma Detection, arXiv 1710.05006",
    ),
    "isic2018": PublicSet(
        _isic_2018(),
        "https://challenge.isic-archive.com/data/",
        "CC BY-NC 4.0; see the page",
        "Codella et al., arXiv 1902.03368; Tschandl et al., The HAM10000 dataset, Sci. Data 2018",
    ),
    "pranet": PublicSet(
        (
            Archive(f"{_DRIVE}1YiGHLw4iTvKdvbT6MgwO9zcCv8zJ_Bnb", "TrainDataset.zip"),
            Archive(f"{_DRIVE}1Y2z7FD5p5y31vkZwQQomXFRB0HutHyao", "TestDataset.zip"),
        ),
        "https://github.com/DengPingFan/PraNet",
        "those of Kvasir-SEG, CVC-ClinicDB, CVC-ColonDB, ETIS and CVC-300, which it puts together",
        "Fan et al., PraNet: Parallel Reverse Attention Network, MICCAI 2020",
    ),
}
