"""Residual networks (He et al. 2015, arXiv:1512.03385): ResNet-50 for ImageNet, ResNet-20 for 32x32.

    images [B, 3, H, W] -> stem -> stages of blocks -> mean over the image -> linear -> logits [B, classes]

ResNet-50 is "v1.5": a block that halves the image does so in its 3x3 convolution, not in its first
1x1, as the network of Goyal et al. 2017 (arXiv:1706.02677, § 5.1) and torchvision's.  The state dict
has torchvision's names, so public checkpoints load.

Initialisation is part of large-batch training (Goyal et al., § 5.1): the last batch-norm weight of
each block starts at 0, so that the block starts as the identity; convolutions as He et al. 2015
(arXiv:1502.01852), the last layer normal with deviation 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legw_hpc.models.batch_norm import BatchNorm


class Shrink(nn.Module):
    """The shortcut without parameters ("A" in He et al., § 3.3): every stride-th pixel, new channels are 0."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.extra, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class Block(nn.Module):
    """Convolutions with batch norm, around which a shortcut leads.

    Args:
        inputs: channels.
        layers: (kernel size, output channels) of each convolution; (1, 3, 1) is a bottleneck.
        stride: of the first 3x3.
        shortcut: what the input passes on its way around; None is nothing.
        batch_norm: mode.
    """

    def __init__(self, inputs: int, layers: Sequence[tuple[int, int]], stride: int, shortcut: nn.Module | None, batch_norm: str):
        super().__init__()
        self.names = [(f"conv{i}", f"bn{i}") for i in range(1, len(layers) + 1)]
        first = [kernel for kernel, _ in layers].index(3)
        for i, ((conv, norm), (kernel, outputs)) in enumerate(zip(self.names, layers, strict=True)):
            self.add_module(conv, _convolution(inputs, outputs, kernel, stride if i == first else 1))
            self.add_module(norm, BatchNorm(outputs, batch_norm))
            inputs = outputs
        self.last_norm = norm
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv, norm in self.names:
            y = getattr(self, norm)(getattr(self, conv)(y))
            if norm != self.last_norm:
                y = F.relu(y, inplace=True)
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """See the module's text; channels_last.

    Args:
        classes: logits.
        batch_norm: mode of all batch-norm layers.
        depths: blocks of each stage; the image halves from stage to stage, the width doubles.
        width: of the first stage.
        bottleneck: blocks of 1x1, 3x3 and 1x1 with four times the width, and projections where the
            shape changes; else two of 3x3, and `Shrink`.
        small: the stem is one 3x3 convolution; else 7x7 and a maximum, both with stride 2.
    """

    def __init__(self, classes: int, batch_norm: str, *, depths: Sequence[int], width: int, bottleneck: bool, small: bool):
        super().__init__()
        self.small = small
        self.conv1 = _convolution(3, width, 3, 1) if small else _convolution(3, width, 7, 2)
        self.bn1 = BatchNorm(width, batch_norm)
        self.stages = [f"layer{i}" for i in range(1, len(depths) + 1)]
        inputs = width
        for i, (stage, depth) in enumerate(zip(self.stages, depths, strict=True)):
            inner = width << i
            layers = [(1, inner), (3, inner), (1, 4 * inner)] if bottleneck else [(3, inner), (3, inner)]
            blocks = []
            for j in range(depth):
                stride, outputs = 2 if i and not j else 1, layers[-1][1]
                shortcut: nn.Module | None = None
                if inputs != outputs and bottleneck:
                    shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), BatchNorm(outputs, batch_norm))
                elif inputs != outputs:
                    shortcut = Shrink(inputs, outputs, stride)
                blocks.append(Block(inputs, layers, stride, shortcut, batch_norm))
                inputs = outputs
            self.add_module(stage, nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)
        self.reset()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub has no such keyword

    def reset(self) -> None:
        """See the module's text."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BatchNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(getattr(module, module.last_norm).weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, H, W], float, of mean about 0 and deviation about 1."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if not self.small:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(x.mean((2, 3)))


def resnet50(classes: int = 1000, batch_norm: str = "micro-batch", momentum: float = 0.1) -> ResNet:
    """ResNet-50 v1.5 for 224x224; 25,557,032 parameters with 1000 classes.

    Raises:
        InputError: unknown mode of batch norm.
    """
    return _with_momentum(ResNet(classes, batch_norm, depths=(3, 4, 6, 3), width=64, bottleneck=True, small=False), momentum)


def resnet20(classes: int = 10, batch_norm: str = "micro-batch", momentum: float = 0.1) -> ResNet:
    """ResNet-20 for 32x32 (He et al., § 4.2, n = 3); 269,722 parameters with 10 classes.

    Raises:
        InputError: unknown mode of batch norm.
    """
    return _with_momentum(ResNet(classes, batch_norm, depths=(3, 3, 3), width=16, bottleneck=False, small=True), momentum)


def _with_momentum(model: ResNet, momentum: float) -> ResNet:
    """Of the running statistics; see batch_norm.py."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.momentum = momentum
    return model


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    """Padded to keep the size; without bias, which the batch norm after it has."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
