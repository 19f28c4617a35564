"""The README.md inside a bundle: how its model is called, for somebody who has never heard of vitrail."""

from collections.abc import Mapping
from typing import Any, Final

from vitrail.config import Preprocess

# How each way of resizing is written with Pillow. The tests run these lines against `vitrail.data.images.prepare`.
_RESIZING: Final = {
    "crop": "picture = ImageOps.fit(picture, (width, height), {filter}, bleed={bleed:.6g})",
    "squash": "picture = picture.resize((width, height), {filter})",
    "pad": (
        "scale = min(width / picture.width, height / picture.height)\n"
        "fitted = picture.resize([max(1, round(side * scale)) for side in picture.size], {filter})\n"
        "picture = Image.new(fitted.mode, (width, height))\n"
        "picture.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))"
    ),
}

_RGB: Final = """\
picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
{resizing}
images = np.asarray(picture)[None]"""

_CHANNELS: Final = """\
planes = []
for plane in np.moveaxis(np.load("picture.npy"), -1, 0):  # (any height, any width, {channels}) of {dtype}, upright
    picture = Image.fromarray({plane})
    {resizing}
    planes.append(np.asarray(picture))
images = {stacked}[None]"""

_MEANING: Final = {
    "rgb": """\
uint8, `(batch, {height}, {width}, 3)`, red, green, blue from 0 to 255; any number of images at once.
  Normalisation (mean {mean}, std {std} of values divided by 255) is inside the model: do not do it again.
  Pictures with transparency were laid on white for training.""",
    "channels": """\
{dtype}, `(batch, {height}, {width}, {channels})`, the channels of a picture as they are; any number of
  images at once. Normalisation (mean {mean}, std {std} of values divided by {peak:g}) is inside the model: do not do
  it again.""",
}

# What is printed of the probabilities.
_READING: Final = {
    "classification": "print(labels[probabilities[0].argmax()], probabilities[0].max())",
    "multilabel": (
        "thresholds = [{thresholds}]\n"
        "print([each for each in zip(labels, probabilities[0], thresholds) if each[1] >= each[2]])"
    ),
}

_TEMPLATE: Final = """\
# {title}

{what} as one ONNX file, exported by vitrail {version} and proven to give the answers of the model it was made from:
{proof}.

## Is it whole, and does it answer alike on this machine?

    pip install numpy onnxruntime
    python check.py

## How to call it

With numpy, onnxruntime and pillow installed:

```python
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

height, width = {height}, {width}
{loading}
session = onnxruntime.InferenceSession("model.onnx")
_, probabilities = session.run(None, {{"images": images}})
labels = open("labels.txt", encoding="utf-8").read().split("\\n")
{reading}
```

* Input `images`: {meaning}
* Output `logits`: float32, `(batch, {num_classes})`, in the order of labels.txt.
* Output `probabilities`: {function} of logits / {temperature:.4g}, the temperature of the calibration.{decision}
{on_phones}
## What is in it

| file | what |
|---|---|
| model.onnx | the model; labels and preprocessing are in its metadata too |
{program_files}| labels.txt | one class per line, in the order of the outputs |
| bundle.json | classes, preprocessing, calibration, where it comes from, how it was verified |
| golden.npz | {num_golden} real images of the validation set and the trained model's logits for them |
| check.py | repeats the proof; needs numpy and onnxruntime alone |
| SHA256SUMS | checksums, for `sha256sum -c SHA256SUMS` |
"""

_ON_PHONES: Final = """
## On a phone

model.pte is the same model for ExecuTorch, written by {runtime} for its XNNPACK backend. Its method `{method}` takes
one image a call, {dtype} `(1, {height}, {width}, {channels})` as above, and gives logits and probabilities. It answered
like the model it was made from too: {proof}. {left}.

    pip install executorch
    python check_program.py

```python
import torch
from executorch.runtime import Runtime

method = Runtime.get().load_program("model.pte").load_method("{method}")
logits, probabilities = method.execute([torch.from_numpy(images)])
```
"""

_PROGRAM_FILES: Final = """\
| model.pte | the model for ExecuTorch |
| check_program.py | repeats the proof of it; needs executorch |
"""


def bundle_readme(description: Mapping[str, Any]) -> str:
    """Return the text of README.md for the bundle that ``description`` (its bundle.json) describes."""
    preprocess, calibration = description["preprocess"], description["calibration"]
    parity = description["verification"]["parity"]
    height, width = preprocess["image_size"]
    resizing = _RESIZING[preprocess["resize"]].format(
        filter=f"Image.Resampling.{preprocess['interpolation'].upper()}", bleed=(1 - preprocess["crop_fraction"]) / 2
    )
    several = description["task"] == "multilabel"
    thresholds = ", ".join(f"{each:.6g}" for each in calibration["thresholds"]) if several else ""
    return _TEMPLATE.format(
        title=description["source"] or "Image classifier",
        what="An image classifier for any number of labels per image" if several else "An image classifier",
        version=description["versions"]["vitrail"],
        proof=_proof(parity, description["task"]),
        height=height,
        width=width,
        loading=_loading(description["input"], preprocess, resizing),
        meaning=_meaning(description["input"], preprocess),
        reading=_READING[description["task"]].format(thresholds=thresholds),
        num_classes=len(description["classes"]),
        function="sigmoid" if several else "softmax",
        temperature=calibration["temperature"],
        decision=_decision(description),
        on_phones=_on_phones(description),
        program_files=_PROGRAM_FILES if "executorch" in description else "",
        num_golden=description["golden"]["num_images"],
    )


def _proof(parity: Mapping[str, Any], task: str) -> str:
    return (
        f"the same label{'s' if task == 'multilabel' else ''} on {parity['num_images'] - len(parity['differences'])} "
        f"of {parity['num_images']} validation images, logits apart by at most {parity['max_logit_difference']:.1g}"
    )


def _on_phones(description: Mapping[str, Any]) -> str:
    """Return what is told of the program for phones, where there is one."""
    if "executorch" not in description:
        return ""
    program, (_, height, width, channels) = description["executorch"], description["input"]["shape"]
    left = program["operators_left_by_xnnpack"]
    return _ON_PHONES.format(
        runtime=program["runtime"],
        method=program["method"],
        dtype=description["input"]["dtype"],
        height=height,
        width=width,
        channels=channels,
        proof=_proof(program["parity"], description["task"]),
        left="XNNPACK runs all of it" if not left else f"XNNPACK runs all but {sum(left.values())} of its operators",
    )


def _loading(given: Mapping[str, Any], preprocess: Mapping[str, Any], resizing: str) -> str:
    """Return the lines that make ``images`` of a picture; ``given`` is the input in bundle.json."""
    if "channels" not in preprocess:
        return _RGB.format(resizing=resizing)
    dtype, stacked = given["dtype"], "np.stack(planes, axis=-1)"
    if dtype == "uint16":
        stacked = f"np.clip(np.rint({stacked}), 0, 65535).astype(np.uint16)"
    return _CHANNELS.format(
        channels=preprocess["channels"],
        dtype=dtype,
        plane="np.ascontiguousarray(plane)" if dtype == "uint8" else "plane.astype(np.float32)",
        resizing=resizing.replace("\n", "\n    "),
        stacked=stacked,
    )


def _meaning(given: Mapping[str, Any], preprocess: Mapping[str, Any]) -> str:
    """Return what is told of the input."""
    _, height, width, channels = given["shape"]
    return _MEANING["channels" if "channels" in preprocess else "rgb"].format(
        dtype=given["dtype"],
        height=height,
        width=width,
        channels=channels,
        mean=list(preprocess["mean"]),
        std=list(preprocess["std"]),
        peak=Preprocess.from_dict(dict(preprocess)).peak,
    )


def _decision(description: Mapping[str, Any]) -> str:
    if description["task"] == "multilabel":
        return (
            "\n  Each label is by itself: it is given where its probability reaches its threshold. To give none is an"
            "\n  answer too. The thresholds are in bundle.json and in the model's metadata as well."
        )
    threshold = description["calibration"].get("reject_threshold")
    return "" if threshold is None else f"\n  Where the largest is below {threshold:.4g}, answer 'unknown'."
