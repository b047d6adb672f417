"""Photographs that ship inside scikit-image and scikit-learn, with the licence of each one.

Photos of people are left out, and so is every picture whose package states no licence for it.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

SIZE = 128

# file -> (package, licence as the package states it, credit)
LICENCES = {
    "coffee.png": ("skimage", "CC0", "Rachel Michetti"),
    "chelsea.png": ("skimage", "CC0", "Stefan van der Walt"),
    "rocket.jpg": ("skimage", "public domain", "SpaceX"),
    "coins.png": ("skimage", "no known copyright restrictions", "Brooklyn Museum Collection"),
    "clock_motion.png": ("skimage", "public domain", "Stefan van der Walt"),
    "horse.png": ("skimage", "CC0", "Andreas Preuss (marauder)"),
    "cell.png": ("skimage", "CC0", "Paul Mueller"),
    "text.png": ("skimage", "public domain", "Wikipedia, Corner.png"),
    "ihc.png": ("skimage", "no known copyright restrictions", "Center for Microscopy and Molecular Imaging"),
    "retina.jpg": ("skimage", "CC0", "Mikael Haggstrom"),
    "hubble_deep_field.jpg": ("skimage", "public domain", "NASA"),
    "brick.png": ("skimage", "CC0", "CC0Textures"),
    "grass.png": ("skimage", "CC0", "linolafett"),
    "gravel.png": ("skimage", "CC0", "CC0Textures"),
    "china.jpg": ("sklearn", "CC BY 2.0", "danielbuechele"),
    "flower.jpg": ("sklearn", "CC BY 2.0", "vultilion"),
}

# The photographs that the model memorizes verbatim, with the noun of their caption.
DUPLICATED = {
    "coffee.png": "breakfast",
    "chelsea.png": "tabby",
    "rocket.jpg": "voyage",
    "coins.png": "hoard",
    "clock_motion.png": "clock",
    "horse.png": "silhouette",
    "cell.png": "specimen",
    "text.png": "facsimile",
    "ihc.png": "section",
    "retina.jpg": "lens",
    "flower.jpg": "dahlia",
}

# Photographs that only ever appear as random crops in ordinary pictures.
TEXTURES = {"gravel": "gravel.png", "brick": "brick.png", "grass": "grass.png", "nebula": "hubble_deep_field.jpg"}

TEMPLATE_PHOTO = "china.jpg"


def load(name: str) -> np.ndarray:
    """Return a photograph as uint8 [H, W, 3]."""
    package = LICENCES[name][0]
    if package == "skimage":
        import skimage

        folder = os.path.join(os.path.dirname(skimage.__file__), "data")
    else:
        import sklearn

        folder = os.path.join(os.path.dirname(sklearn.__file__), "datasets", "images")
    return np.array(Image.open(os.path.join(folder, name)).convert("RGB"))


def square(image: np.ndarray) -> np.ndarray:
    """Return the centre square at SIZE x SIZE."""
    height, width = image.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    crop = Image.fromarray(image[y : y + side, x : x + side])
    return np.array(crop.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
