"""The source of the toy task: about 450 classes of characters, rendered in matplotlib's fonts.

Each character is rendered in up to 21 fonts (DejaVu, STIX and, for ASCII, Computer Modern), scaled
to fill its box, and distorted: rotation, shear, scale, shift, an elastic field (Simard et al. 2003)
and a blur. The same seed gives the same pixels.

    uotft prepare --dataset glyphs        # writes data/glyphs.npz: 450 classes x 48 images, 28 x 28
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydantic import Field

from uotft.core.errors import UserError
from uotft.core.records import ImageSet, Settings as BaseSettings

#: (first, last) code points, in the order in which classes are numbered.
BLOCKS = (
    (0x0030, 0x0039),  # digits
    (0x0041, 0x005A),  # Latin capitals
    (0x0061, 0x007A),  # Latin small letters
    (0x0391, 0x03A9),  # Greek capitals
    (0x03B1, 0x03C9),  # Greek small letters
    (0x0410, 0x044F),  # Cyrillic
    (0x0531, 0x0556),  # Armenian capitals
    (0x0561, 0x0586),  # Armenian small letters
    (0x10D0, 0x10F0),  # Georgian
    (0x05D0, 0x05EA),  # Hebrew
    (0x2190, 0x21BF),  # arrows
    (0x2200, 0x223F),  # mathematical operators
    (0x25A0, 0x25CF),  # geometric shapes
    (0x2600, 0x266F),  # chess, cards, weather and other symbols
)
FONTS = (
    *(f"DejaVu{f}.ttf" for f in ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique")),
    *(f"DejaVu{f}.ttf" for f in ("SansMono", "SansMono-Bold", "SansMono-Oblique")),
    "DejaVuSansMono-BoldOblique.ttf",
    *(f"DejaVu{f}.ttf" for f in ("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")),
    *(f"STIX{f}.ttf" for f in ("General", "GeneralBol", "GeneralItalic", "GeneralBolIta")),
)
ASCII_FONTS = ("cmr10.ttf", "cmss10.ttf", "cmtt10.ttf", "cmb10.ttf", "cmti10.ttf")
CANVAS = 56  # characters are rendered at this size and scaled down
TWIN = 0.96  # a character this similar to an earlier one (cosine) is skipped


class Settings(BaseSettings):
    """Settings of the source data set ``glyphs``."""

    classes: int = Field(450, ge=2, description="number of character classes")
    per_class: int = Field(48, ge=4, description="images of each class")
    held_out: float = Field(0.125, gt=0, lt=1, description="share of each class for validation")
    size: int = Field(28, ge=8, description="side of the images in pixels")
    seed: int = Field(0, ge=0, description="seed of the distortions")
    path: str = Field("", description="a file that DVC watches; not read")


def load(settings: Settings, progress: Callable[..., Iterator[int]], root: Path) -> ImageSet:
    """Render the set: classes * per_class grey images, uint8, white on black."""
    characters = _characters(settings.classes)
    rng = np.random.default_rng(settings.seed)
    n = settings.per_class
    images = np.empty((len(characters) * n, settings.size, settings.size), np.uint8)
    for row in progress(range(len(characters)), "rendering glyphs"):
        fonts = rng.permutation(len(characters[row][1]))
        for i in range(n):
            mask = characters[row][1][fonts[i % len(fonts)]]
            images[row * n + i] = _distort(mask, settings.size, rng)
    held_out = np.arange(n) >= round(n * (1 - settings.held_out))
    return ImageSet(
        images=images,
        labels=np.repeat(np.arange(len(characters)), n),
        splits=np.tile(np.where(held_out, "val", "train"), len(characters)),
        names=tuple(name for name, _ in characters),
    )


def _characters(count: int) -> list[tuple[str, list[np.ndarray]]]:
    """The first ``count`` distinct characters: (name, one mask per font that has it)."""
    import unicodedata

    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    folder = Path(get_data_path()) / "fonts" / "ttf"
    charmaps = {f: set(FT2Font(str(folder / f)).get_charmap()) for f in FONTS + ASCII_FONTS}
    found: list[tuple[str, list[np.ndarray]]] = []
    seen = np.empty((0, CANVAS * CANVAS))
    for code in (c for first, last in BLOCKS for c in range(first, last + 1)):
        fonts = [f for f in FONTS + ASCII_FONTS * (code < 0x80) if code in charmaps[f]]
        if FONTS[0] not in fonts:
            continue
        masks = [_render(chr(code), folder / f) for f in fonts]
        shape = masks[0].ravel() / np.linalg.norm(masks[0])
        if seen.size and (seen @ shape).max() > TWIN:
            continue
        seen = np.vstack([seen, shape])
        found.append((unicodedata.name(chr(code)).lower(), masks))
        if len(found) == count:
            return found
    raise UserError(
        f"datasets.glyphs.classes: got {count}, but the fonts have only {len(found)} characters; "
        f"choose 2 to {len(found)}"
    )


def _render(character: str, font: Path) -> np.ndarray:
    """A character, scaled to fill three quarters of a (CANVAS, CANVAS) box; values in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), 2 * CANVAS)
    left, top, right, bottom = face.getbbox(character)
    ink = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=face)
    scale = 0.75 * CANVAS / max(ink.size)
    ink = ink.resize((max(2, round(ink.width * scale)), max(2, round(ink.height * scale))))
    box = Image.new("L", (CANVAS, CANVAS))
    box.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(box, np.float32) / 255


def _distort(mask: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random affine and elastic distortion of ``mask``, blurred and sampled to (size, size)."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    angle, shear = rng.normal(0, 0.15), rng.normal(0, 0.2)
    zoom = rng.uniform(0.85, 1.2, 2)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine = rotate @ np.array([[1, shear], [0, 1]]) @ np.diag(zoom)
    grid = (np.mgrid[0:size, 0:size].reshape(2, -1) - (size - 1) / 2) * (CANVAS / size)
    # a displacement (x, y) per pixel, smoothed over the image but not between x and y (sigma 0)
    field = gaussian_filter(rng.uniform(-1, 1, (2, size, size)), (0, 4, 4)).reshape(2, -1)
    # where each pixel of the result lies in the mask, from its centre: affine + elastic + shift
    where = affine @ grid + field * rng.uniform(0, 90) + rng.normal(0, 1.5, (2, 1))
    blurred = gaussian_filter(mask, rng.uniform(0.5, 4.0))
    pixels = map_coordinates(blurred, where + (CANVAS - 1) / 2, order=1)
    pixels *= 255 / max(pixels.max(), 1e-6)
    return np.asarray(pixels.reshape(size, size), np.uint8)
