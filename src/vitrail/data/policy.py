"""How strongly training images are varied, as named policies, and the draws that decide it for each image."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vitrail.data.randomness import Stream, uniforms
from vitrail.errors import ConfigError, lookup

_CROP_ATTEMPTS: Final = 10
_REFERENCE_SIDE: Final = 224
_ERASE_SCALE: Final = (0.02, 1 / 3)
_ERASE_LOG_RATIO: Final = (float(np.log(0.3)), float(np.log(1 / 0.3)))


@dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """What is done to a training image. The defaults do nothing: images are prepared as in evaluation.

    Source:
        Crop: Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842, section 6. Three-augment: Touvron et al.,
        DeiT III, arXiv 2204.07118, section 3.2. Random erasing: Zhong et al., arXiv 1708.04896. Mixup: Zhang et al.,
        arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899.
    """

    crop_scale: tuple[float, float] | None = None
    """Share of the picture's area that a random crop shows, each in (0, 1]. None: no random crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random crop, relative to that of the image size."""
    flip_rate: float = 0.0
    """Share of images that are mirrored."""
    three_augment: bool = False
    """Make each image grey, solarise it or blur it, one of the three at random."""
    colour_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, each by a factor in [1 - value, 1 + value]."""
    erase_rate: float = 0.0
    """Share of images in which a random box is replaced by the mean colour."""
    mixup_alpha: float = 0.0
    """Of the Beta(alpha, alpha) distribution of mixup's weight; 0 switches it off."""
    cutmix_alpha: float = 0.0
    """Of the Beta(alpha, alpha) distribution of CutMix's share; 0 switches it off."""
    mix_rate: float = 1.0
    """Share of batches that are mixed; one of the two at random where both are on."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"crop_scale is {self.crop_scale}; it takes two rising numbers above 0 and up to 1.")
        for name in ("flip_rate", "colour_jitter", "erase_rate", "mix_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it takes a number from 0 to 1.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it takes 0 or a number above it.")

    @property
    def mixes(self) -> bool:
        """Whether targets become mixtures of classes."""
        return self.mix_rate > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


POLICIES: Final[dict[str, AugmentPolicy]] = {
    "none": AugmentPolicy(),
    "light": AugmentPolicy(crop_scale=(0.7, 1.0), crop_ratio=(0.85, 1 / 0.85)),
    "medium": AugmentPolicy(crop_scale=(0.25, 1.0), flip_rate=0.5, colour_jitter=0.3, cutmix_alpha=1.0, mix_rate=0.5),
    "strong": AugmentPolicy(
        crop_scale=(0.08, 1.0),
        flip_rate=0.5,
        three_augment=True,
        colour_jitter=0.3,
        erase_rate=0.25,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
    ),
}


def augment_policy(
    name: str, *, flip: bool | None = None, mixup: float | None = None, cutmix: float | None = None
) -> AugmentPolicy:
    """Return the policy of that name, with what is given in place of its own.

    Raises:
        UnknownNameError: for another name.
    """
    policy = lookup(POLICIES, name, "augmentation")
    if flip is not None:
        policy = replace(policy, flip_rate=0.5 if flip else 0.0)
    if mixup is not None:
        policy = replace(policy, mixup_alpha=mixup)
    if cutmix is not None:
        policy = replace(policy, cutmix_alpha=cutmix)
    return policy


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch; every array has B rows."""

    crops: np.ndarray
    """float64 (B, 4): left, top, right, bottom as shares of the picture's width and height."""
    flips: np.ndarray
    """bool (B,)."""
    greys: np.ndarray
    """bool (B,)."""
    solarised: np.ndarray
    """bool (B,)."""
    blurs: np.ndarray
    """float64 (B,): standard deviation in pixels of the image; 0 where it stays sharp."""
    colours: np.ndarray
    """float32 (B, 3): factors of brightness, contrast and saturation."""
    erased: np.ndarray
    """int64 (B, 4): left, top, right, bottom in pixels of the image; empty where nothing is erased."""


def draw(
    policy: AugmentPolicy,
    keys: np.ndarray,
    sizes: np.ndarray,
    image_size: tuple[int, int],
    *,
    seed: int,
    epoch: int,
) -> Draws:
    """Decide what happens to the images ``keys`` (B,), whose pictures have ``sizes`` (B, 2), height and width.

    A key is the index of an image, or a number of its own for each time that it comes again in an epoch.
    """
    crop, flip, three, colour, erase = (
        uniforms(seed, epoch, stream, keys, num)
        for stream, num in (
            (Stream.CROP, 2 * _CROP_ATTEMPTS + 2),
            (Stream.FLIP, 1),
            (Stream.THREE_AUGMENT, 2),
            (Stream.COLOUR, 3),
            (Stream.ERASE, 5),
        )
    )
    # 1, 2 and 3: grey, solarised, blurred; 0 without three-augment.
    choice = 1 + np.floor(3 * three[:, 0]) if policy.three_augment else np.zeros(len(keys))
    # DeiT III blurs with a standard deviation of 0.1 to 2 pixels at a side of 224.
    sigma = (0.1 + 1.9 * three[:, 1]) * min(image_size) / _REFERENCE_SIDE
    return Draws(
        crops=_crops(policy, crop, sizes, image_size),
        flips=flip[:, 0] < policy.flip_rate,
        greys=choice == 1,
        solarised=choice == 2,
        blurs=np.where(choice == 3, sigma, 0.0),
        colours=(1 + policy.colour_jitter * (2 * colour - 1)).astype(np.float32),
        erased=_erased(policy, erase, image_size),
    )


def _crops(policy: AugmentPolicy, numbers: np.ndarray, sizes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Draw boxes until one fits into the picture, at most ten times; then take the largest in the centre."""
    if policy.crop_scale is None:
        return np.tile([0.0, 0.0, 1.0, 1.0], (len(sizes), 1))
    heights, widths = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    target_ratio = image_size[1] / image_size[0]
    scales, ratios = numbers[:, :_CROP_ATTEMPTS], numbers[:, _CROP_ATTEMPTS:-2]
    areas = heights * widths * (policy.crop_scale[0] + scales * (policy.crop_scale[1] - policy.crop_scale[0]))
    low, high = np.log(policy.crop_ratio)
    proportions = np.exp(low + ratios * (high - low)) * target_ratio
    box_widths, box_heights = np.sqrt(areas * proportions), np.sqrt(areas / proportions)
    fits = (box_widths <= widths) & (box_heights <= heights)
    first = (np.arange(len(sizes)), np.argmax(fits, axis=1))
    found = fits.any(axis=1)
    largest = np.minimum(widths[:, 0], heights[:, 0] * target_ratio)
    shares = np.stack(
        [
            np.where(found, box_widths[first], largest) / widths[:, 0],
            np.where(found, box_heights[first], largest / target_ratio) / heights[:, 0],
        ],
        axis=1,
    )
    corners = (1 - shares) * np.where(found[:, None], numbers[:, -2:], 0.5)
    return np.concatenate([corners, corners + shares], axis=1)


def _erased(policy: AugmentPolicy, numbers: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    area = height * width * (_ERASE_SCALE[0] + numbers[:, 0] * (_ERASE_SCALE[1] - _ERASE_SCALE[0]))
    ratio = np.exp(_ERASE_LOG_RATIO[0] + numbers[:, 1] * (_ERASE_LOG_RATIO[1] - _ERASE_LOG_RATIO[0]))
    chosen = numbers[:, 4] < policy.erase_rate
    box_widths = np.where(chosen, np.minimum(np.rint(np.sqrt(area / ratio)), width), 0)
    box_heights = np.where(chosen, np.minimum(np.rint(np.sqrt(area * ratio)), height), 0)
    left = np.floor(numbers[:, 2] * (width - box_widths + 1))
    top = np.floor(numbers[:, 3] * (height - box_heights + 1))
    return np.stack([left, top, left + box_widths, top + box_heights], axis=1).astype(np.int64)
