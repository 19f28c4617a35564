"""Policies, their draws, and what they do to pixels."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter

from vitrail.config import Preprocess
from vitrail.data.augment import cut_out, finish
from vitrail.data.mix import mix
from vitrail.data.policy import POLICIES, AugmentPolicy, Draws, augment_policy, draw
from vitrail.errors import ConfigError, UnknownNameError

WHOLE = np.array([0.0, 0.0, 1.0, 1.0])
PLAIN = Preprocess(image_size=(32, 32), mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))


def smooth_picture(height: int = 90, width: int = 120) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def draws(num: int, **changes: np.ndarray) -> Draws:
    nothing = draw(AugmentPolicy(), np.arange(num), np.full((num, 2), 32), (32, 32), seed=0, epoch=0)
    return dataclasses.replace(nothing, **changes)


def test_crops_stay_inside_and_have_the_area_and_proportions_asked_for() -> None:
    sizes = np.stack([np.random.default_rng(i).integers(20, 400, 4000) for i in (0, 1)], axis=1)
    policy = AugmentPolicy(crop_scale=(0.25, 0.55))
    crops = draw(policy, np.arange(4000), sizes, (64, 64), seed=0, epoch=0).crops
    assert crops.min() >= 0
    assert crops.max() <= 1 + 1e-12
    width, height = (crops[:, 2] - crops[:, 0]), (crops[:, 3] - crops[:, 1])
    ratio = width * sizes[:, 1] / (height * sizes[:, 0])
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9
    squarish = np.abs(np.log(sizes[:, 0] / sizes[:, 1])) < 0.3
    area = (width * height)[squarish]
    assert area.min() >= 0.25 - 1e-12
    assert area.max() <= 0.55 + 1e-12
    assert abs(area.mean() - 0.4) < 0.013  # five standard errors of 1100 uniform numbers


def test_where_no_crop_fits_the_largest_in_the_centre_is_taken() -> None:
    crops = draw(
        AugmentPolicy(crop_scale=(0.9, 1.0)), np.arange(5), np.tile([10, 1000], (5, 1)), (8, 8), seed=0, epoch=0
    )
    assert np.allclose(crops.crops, [0.495, 0, 0.505, 1])


def test_cutting_out_agrees_with_pillow() -> None:
    picture = smooth_picture()
    for crop, size in (
        ((0.0, 0.0, 1.0, 1.0), (32, 48)),
        ((0.25, 0.1, 0.75, 0.9), (64, 64)),
        ((0, 0, 0.001, 1), (8, 8)),
    ):
        ours = cut_out(np.asarray(picture), np.array(crop), size, 0.0).numpy()
        assert np.array_equal(ours, cut_out(picture, np.array(crop), size, 0.0))
        box = [round(share * side) for share, side in zip(crop, picture.size * 2, strict=True)]
        part = picture.crop((box[0], box[1], max(box[2], box[0] + 1), box[3]))
        theirs = np.asarray(part.resize(size[::-1], Image.Resampling.BILINEAR))
        # Worst measured difference: 1 of 255, of rounding.
        assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_the_blur_is_close_to_a_gaussian_of_its_standard_deviation(sigma: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    ours = cut_out(noise, WHOLE, (96, 96), sigma).numpy().astype(float)
    errors = {
        other: np.abs(ours - np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(other)))).mean()
        for other in (sigma / 2, sigma, sigma * 2)
    }
    assert min(errors, key=errors.__getitem__) == sigma
    assert cut_out(noise, WHOLE, (96, 96), 0.5).numpy().tobytes() == noise.tobytes()


def test_finishing_without_draws_only_normalises() -> None:
    pixels = torch.randint(0, 256, (3, 8, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess(image_size=(8, 6), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = finish(pixels, None, preprocess)
    expected = (pixels.double() / 255 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    assert images.is_contiguous()
    # Worst measured difference 2e-7.
    torch.testing.assert_close(images, expected.permute(0, 3, 1, 2).float(), rtol=0, atol=2e-6)


def test_colours_change_as_pillow_changes_them() -> None:
    # Moderate colours, so that Pillow's clipping after each step does not matter.
    picture = Image.fromarray((np.asarray(smooth_picture(32, 32)) // 3 + 60).astype(np.uint8))
    factors = np.array([[1.2, 0.8, 1.3], [0.9, 1.2, 0.7]], np.float32)
    pixels = torch.from_numpy(np.stack([np.asarray(picture)] * 2))
    images = finish(pixels, draws(2, colours=factors), PLAIN).permute(0, 2, 3, 1).numpy()
    for image, (brightness, contrast, saturation) in zip(images, factors, strict=True):
        expected = ImageEnhance.Brightness(picture).enhance(brightness)
        expected = ImageEnhance.Color(ImageEnhance.Contrast(expected).enhance(contrast)).enhance(saturation)
        # Pillow rounds after each of the three steps; worst measured difference 2.8.
        assert np.abs(image - np.asarray(expected)).max() < 4


def test_grey_images_are_grey_and_the_others_keep_their_colour() -> None:
    picture = np.asarray(smooth_picture(32, 32))
    pixels = torch.from_numpy(np.stack([picture, picture]))
    images = finish(pixels, draws(2, greys=np.array([True, False])), PLAIN).permute(0, 2, 3, 1).numpy()
    expected = np.asarray(Image.fromarray(picture).convert("L"))[..., None]
    assert np.abs(images[0] - expected).max() < 1
    assert np.abs(images[1] - picture).max() < 1e-3


def test_erased_boxes_have_the_mean_colour() -> None:
    policy = AugmentPolicy(erase_rate=1.0)
    decided = draw(policy, np.arange(200), np.full((200, 2), 32), (32, 32), seed=0, epoch=0)
    pixels = torch.full((200, 32, 32, 3), 255, dtype=torch.uint8)
    shares = (finish(pixels, decided, Preprocess(image_size=(32, 32)))[:, 0] == 0).float().mean(dim=(1, 2))
    assert shares.min() > 0.01
    assert shares.max() < 0.4
    assert abs(shares.mean() - (0.02 + 1 / 3) / 2) < 0.03


def test_draws_of_an_image_do_not_depend_on_its_batch() -> None:
    sizes = np.tile([100, 150], (64, 1))
    together = draw(POLICIES["strong"], np.arange(64), sizes, (32, 32), seed=3, epoch=5)
    alone = draw(POLICIES["strong"], np.array([41]), sizes[:1], (32, 32), seed=3, epoch=5)
    for field in dataclasses.fields(Draws):
        assert np.array_equal(getattr(together, field.name)[41], getattr(alone, field.name)[0]), field.name


def test_mixup_and_cutmix_mix_images_and_targets_alike() -> None:
    # Image i has the value i everywhere, so its mean tells what it is made of.
    labels = torch.arange(6)
    seen = set()
    for batch in range(40):
        images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 20, 20).clone()
        policy = AugmentPolicy(mixup_alpha=0.8, cutmix_alpha=1.0)
        targets = mix(images, F.one_hot(labels, 6), policy, seed=0, epoch=0, batch=batch)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), targets @ torch.arange(6.0), rtol=0, atol=1e-5)
        seen.add(len(images[0].unique()))
    assert seen >= {1, 2}  # mixup leaves one value in an image, CutMix two


def test_several_labels_of_an_image_are_mixed_as_its_pixels_are() -> None:
    labels = torch.tensor([[True, False, True], [False, False, False], [False, True, True], [True, True, True]])
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).clone()
    targets = mix(images, labels, AugmentPolicy(mixup_alpha=0.8), seed=0, epoch=0, batch=1)
    weight = 1 - images[0].mean() / 3  # of the first image, which was 0 and was mixed with 3
    assert 0.01 < weight < 0.99
    torch.testing.assert_close(targets, weight * labels.float() + (1 - weight) * labels.flip(0).float())


def test_mixing_follows_its_rate_and_beta_distribution() -> None:
    labels, weights = torch.tensor([0, 1]), []
    policy = AugmentPolicy(mixup_alpha=0.8, mix_rate=0.5)
    for batch in range(1000):
        targets = mix(torch.zeros(2, 3, 1, 1), F.one_hot(labels, 2), policy, seed=0, epoch=0, batch=batch)
        weights.append(float(targets[0, 0]))
    mixed = np.array([weight for weight in weights if weight != 1])
    # Five standard errors of a share of 1000, of a mean and of a variance of 500.
    assert abs(len(mixed) / 1000 - 0.5) < 0.08
    assert abs(mixed.mean() - 0.5) < 0.07
    assert abs(mixed.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.02


def test_policies_have_names_and_can_be_changed() -> None:
    assert not augment_policy("none").mixes
    assert augment_policy("none", mixup=0.4).mixes
    assert augment_policy("medium", flip=False).flip_rate == 0
    assert not augment_policy("strong", mixup=0, cutmix=0).mixes
    with pytest.raises(UnknownNameError, match="Did you mean 'strong'"):
        augment_policy("stong")
    with pytest.raises(ConfigError, match="erase_rate is 2"):
        AugmentPolicy(erase_rate=2)
