"""Builders of the PyTorch examples' models. DISTUNE_ASSETS is the folder with asset_models.py and models/."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

ASSETS = Path(os.environ.get("DISTUNE_ASSETS", "."))
MODELS = ASSETS / "models"
sys.path.append(str(ASSETS))


def resnet20() -> torch.nn.Module:
    """Without its weights: they are named in the configuration."""
    from asset_models import ResNetCifar

    return ResNetCifar(20)


def resnet32() -> torch.nn.Module:
    """Without its weights, as above."""
    from asset_models import ResNetCifar

    return ResNetCifar(32)


def mbv3() -> torch.nn.Module:
    """Without its weights, as above."""
    from asset_models import MBV3Cifar

    return MBV3Cifar(10)


def mobilenetv1() -> torch.nn.Module:
    """Without its weights, as above."""
    from asset_models import MobileNetV1Probe

    return MobileNetV1Probe(10, 96)


def minilm() -> torch.nn.Module:
    """With its weights, which are kept in the ONNX file."""
    from asset_models import load_minilm

    return load_minilm(MODELS / "minilm_stsb.onnx")


def chargpt() -> torch.nn.Module:
    """With its weights, which are kept in the ONNX file."""
    from asset_models import load_chargpt

    return load_chargpt(MODELS / "chargpt_shakespeare.onnx")
