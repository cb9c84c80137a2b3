"""How to cite what a run used."""

FASTCLIP = """\
@software{{fastclip,
  title   = {{fastclip: fused kernels around a PyTorch training step}},
  author  = {{{{The fastclip authors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""
TRANSFUSE = """\
@inproceedings{zhang2021transfuse,
  title     = {TransFuse: Fusing Transformers and CNNs for Medical Image Segmentation},
  author    = {Zhang, Yundong and Liu, Huiye and Hu, Qiang},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  pages     = {14--24},
  year      = {2021},
  doi       = {10.1007/978-3-030-87193-2_2}
}"""
F3NET = """\
@inproceedings{wei2020f3net,
  title     = {F3Net: Fusion, Feedback and Focus for Salient Object Detection},
  author    = {Wei, Jun and Wang, Shuhui and Huang, Qingming},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume    = {34},
  number    = {07},
  pages     = {12321--12328},
  year      = {2020},
  doi       = {10.1609/aaai.v34i07.6916}
}"""


def citations(version: str) -> list[tuple[str, str]]:
    """(what it is, BibTeX) of the network, the loss and this program."""
    return [
        ("The network", TRANSFUSE),
        ("The structure loss", F3NET),
        ("The trainer", FASTCLIP.format(version=version)),
    ]
