#!/usr/bin/env python3
"""The likeliest classes of pictures, by a file that `compress run` made and nothing else.

Needs numpy, pillow and onnxruntime. The file itself says how pictures are brought to it: its metadata hold mean, std,
class names, how to resize.

    python examples/predict.py reports/mobilenet/models/quantize.int8.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def fitted(picture: Image.Image, size: int, resize: str, kernel: Image.Resampling) -> Image.Image:
    """The picture at size x size: squashed, its centre cut out, or padded with black."""
    width, height = picture.size
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return picture.resize((size, size), kernel, box=(left, top, left + side, top + side))
    if resize == "letterbox":
        scale = size / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        page = Image.new(picture.mode, (size, size))
        page.paste(picture.resize(inner, kernel), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return page
    return picture.resize((size, size), kernel)


def main(model: str, pictures: list[str]) -> None:
    """Print the three likeliest classes of each picture."""
    net = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    about, wanted = net.get_modelmeta().custom_metadata_map, net.get_inputs()[0]
    names = json.loads(about["class_names"])
    raw = wanted.type == "tensor(uint8)"  # made with `export: {input: uint8_nhwc}`: normalised in the file
    size, channels = wanted.shape[2], wanted.shape[3 if raw else 1]
    for path in pictures:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("L" if channels == 1 else "RGB")
        picture = fitted(picture, size, about.get("resize", "squash"), FILTERS[about.get("interpolation", "bilinear")])
        fed = np.asarray(picture).reshape(1, size, size, channels)
        if not raw:
            scaled = (fed.astype(np.float32) / 255 - json.loads(about["mean"])) / json.loads(about["std"])
            fed = scaled.transpose(0, 3, 1, 2).astype(np.float32)
        logits = net.run(None, {wanted.name: fed})[0][0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-logits, kind="stable")[:3]
        print(f"{path}: " + ", ".join(f"{names[i]} {100 * shares[i]:.1f} %" for i in best))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: predict.py MODEL.onnx IMAGE...")
    main(sys.argv[1], sys.argv[2:])
