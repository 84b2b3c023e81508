"""Prune, quantize, teach and export a plain module, without a pipeline file."""

import torch
from torch import nn

import compress

first = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()
second = nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()
net = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))  # yours, trained
batches = [(torch.randn(16, 3, 32, 32), torch.randint(4, (16,))) for _ in range(4)]  # or a DataLoader
example = batches[0][0]

smaller = compress.prune(net, example, keep_macs=0.5)
smaller = compress.distill(smaller, net, batches, epochs=1)
rounding = compress.quantize(smaller, batches)
rounding = compress.distill(rounding, net, batches, epochs=1, lr=0.0001)  # training with rounding in place
print(compress.export(rounding, example, "small.int8.onnx", class_names=["a", "b", "c", "d"]))
