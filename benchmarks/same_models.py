"""The same architectures built by vitrail, timm and transformers, and how far their answers are apart.

timm's names are ours. transformers has no names but configurations, which are made here from the tables of vitrail;
dropout, which it switches on where the others do not, is off. Nothing here measures time. Needs the extra `peers`.
"""

from typing import Any

import torch
from peers import make_torchvision_importable
from torch import nn

CLASSES = 100
TIMM: tuple[str, ...] = (
    *("resnet18", "resnet34", "resnet50"),
    *("mobilenetv3_small_050", "mobilenetv3_small_075", "mobilenetv3_small_100"),
    *("mobilenetv3_large_075", "mobilenetv3_large_100"),
    *("ghostnet_050", "ghostnet_100", "ghostnet_130"),
    *("repvit_m0_9", "repvit_m1_0", "repvit_m1_1"),
    *("mobilevit_xxs", "mobilevit_xs", "mobilevit_s"),
    *("mobilevitv2_050", "mobilevitv2_075", "mobilevitv2_100", "mobilevitv2_125"),
    *("mobilevitv2_150", "mobilevitv2_175", "mobilevitv2_200"),
    *("vit_tiny_patch16", "vit_small_patch16", "vit_small_patch32", "vit_base_patch16", "vit_base_patch32"),
)
"""Every model of both libraries below a hundred million parameters."""
_FAMILIES_OF_TRANSFORMERS = ("resnet", "mobilevit", "vit")


def libraries(name: str) -> tuple[str, ...]:
    """Return the peers that have the model."""
    return ("timm", "transformers") if name.startswith(_FAMILIES_OF_TRANSFORMERS) else ("timm",)


def create(library: str, name: str, image_size: int) -> nn.Module:
    """Return a model with fresh weights for `CLASSES` classes."""
    if library == "vitrail":
        import vitrail

        return vitrail.create_model(name, num_classes=CLASSES, image_size=image_size)
    make_torchvision_importable()  # transformers imports torchvision too, where it is installed
    if library == "transformers":
        return _transformers(name, image_size)
    import timm

    options: dict[str, Any] = {}
    if name.startswith("vit"):
        name, options = f"{name}_224", {"img_size": image_size}
    elif name.startswith("repvit"):
        options = {"distillation": False}  # one head instead of two
    return timm.create_model(name, num_classes=CLASSES, **options)


def _transformers(name: str, image_size: int) -> nn.Module:
    import transformers

    from vitrail.models import mobilevit, resnet, vit

    family, _, size = name.partition("_")
    common = {"num_labels": CLASSES, "image_size": image_size}
    if family == "vit":
        size, _, patch = size.partition("_patch")
        shape = vit.SHAPES[size]
        config = transformers.ViTConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=int(shape.dim * shape.mlp_ratio),
            patch_size=int(patch),
            layer_norm_eps=1e-6,  # of all published weights; transformers' default is another
            **common,
        )
        return transformers.ViTForImageClassification(config)
    if family == "mobilevitv2":
        width = {"width_multiplier": int(size) / 100}
        config = transformers.MobileViTV2Config(classifier_dropout_prob=0.0, **width, **common)
        return transformers.MobileViTV2ForImageClassification(config)
    if family == "mobilevit":
        tall = mobilevit.SHAPES[size]
        config = transformers.MobileViTConfig(
            hidden_sizes=list(tall.dims),
            neck_hidden_sizes=[tall.stem, *tall.widths, tall.features],
            expand_ratio=float(tall.expansion),
            hidden_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
            **common,
        )
        return transformers.MobileViTForImageClassification(config)
    deep = resnet.SHAPES[name.removeprefix("resnet")]
    config = transformers.ResNetConfig(
        depths=list(deep.blocks),
        hidden_sizes=[width * (4 if deep.bottleneck else 1) for width in resnet.WIDTHS],
        layer_type="bottleneck" if deep.bottleneck else "basic",
        num_labels=CLASSES,
    )
    return transformers.ResNetForImageClassification(config)


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits, which transformers wraps."""
    logits: torch.Tensor = getattr(outputs, "logits", outputs)
    return logits


def pictures(image_size: int, count: int = 4) -> torch.Tensor:
    """Return images with patches of light and shade, (count, 3, S, S): means over noise alone are all the same."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (torch.randn(count, 3, side, side, generator=generator) for side in (4, image_size))
    return nn.functional.interpolate(coarse, (image_size, image_size), mode="bilinear") + 0.5 * fine


@torch.no_grad()
def scramble(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give norms and biases values that a mistake would show, and batch norms the statistics of these images.

    Fresh weights hide much: norms that start at zero switch their branch off, and statistics that do not belong to the
    weights let the image fade behind the biases.
    """
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches since, here one
            module.weight.fill_(1.0)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.train()(images)
    return model.eval()


def largest_differences(name: str, image_size: int) -> dict[str, float]:
    """Return each peer's largest difference to our logits for the same weights.

    As a share of the largest difference between our logits of two images, which a head's bias does not enlarge.
    """
    from vitrail.models import layouts

    torch.manual_seed(0)
    images = pictures(image_size)
    ours = create("vitrail", name, image_size).eval()
    peers: dict[str, nn.Module] = {}
    if "transformers" in libraries(name):
        peers["transformers"] = scramble(create("transformers", name, image_size), images)
        ours.load_state_dict(layouts.to_native(peers["transformers"].state_dict())[1])
    else:
        scramble(ours, images)
    peers["timm"] = create("timm", name, image_size).eval()
    peers["timm"].load_state_dict(ours.state_dict())
    with torch.inference_mode():
        logits = ours(images)
        largest = (logits[0] - logits[1]).abs().max()
        return {
            library: float((logits - logits_of(peers[library](images))).abs().max() / largest)
            for library in libraries(name)
        }
