"""The six OFA-ResNet50 subnets of the SUSHI line of work (MLSys'23; FEATHER, ISCA'24).

Shapes were printed by the authors of FEATHER and identified by their multiply-accumulates as OFA's
published subnets (mit-han-lab/once-for-all). Accuracy is OFA's ImageNet top-1, a fraction.
"""

from __future__ import annotations

from supernet.arch import Arch

ACCURACY = {"06": 0.750, "09": 0.763, "18": 0.783, "24": 0.790, "37": 0.797, "41": 0.798}

# (depth, expand, width, resolution); "2" is a ratio of 0.2, "5" of 0.25, "3" of 0.35.
_TABLE = {
    "06": ((0, 0, 0, 1, 0), "22 22 22252 25", (1, 0, 0, 0, 0, 1), 160),
    "09": ((0, 0, 1, 1, 1), "25 252 22522 555", (1, 2, 0, 0, 1, 1), 160),
    "18": ((0, 2, 2, 1, 1), "5522 5552 25555 555", (1, 2, 0, 0, 1, 2), 192),
    "24": ((2, 2, 2, 1, 2), "5555 3552 22552 5352", (1, 2, 0, 0, 2, 2), 192),
    "37": ((2, 2, 2, 2, 2), "5352 5555 523552 3355", (1, 2, 0, 1, 2, 1), 224),
    "41": ((2, 2, 2, 2, 2), "5553 2523 555222 5532", (1, 2, 0, 2, 2, 2), 224),
}
_RATIOS = {"2": 0.2, "5": 0.25, "3": 0.35}

SIX_SUBNETS: dict[str, Arch] = {
    name: Arch(
        resolution=resolution,
        depth=depth,
        width=width,
        expand=tuple(_RATIOS[c] for c in ratios if c != " "),
    )
    for name, (depth, ratios, width, resolution) in _TABLE.items()
}
