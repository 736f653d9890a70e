"""Transforms: values, the fast path, and chance that depends on the sample alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from distune.config.job import ComponentSpec
from distune.data.registry import TRANSFORMS
from distune.data.transform import BatchTransform, Pipeline, RandomTransform
from distune.errors import DataError

IMAGES = np.random.default_rng(3).integers(0, 256, (5, 12, 10, 3)).astype(np.uint8)
BOX = {"offset_height": 1, "offset_width": 2, "target_height": 3, "target_width": 4}


def apply(name: str, sample: Any, **args: Any) -> Any:
    return Pipeline([ComponentSpec(name, args)], seed=7).sample(0, (sample, 0))[0]


@pytest.mark.parametrize(
    "steps",
    [
        [("Rescale", {}), ("Normalize", {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})],
        [("Rescale", {"divisor": 127.5, "offset": -1}), ("Transpose", {"perm": [2, 0, 1]})],
        [("Transpose", {"perm": [2, 0, 1]}), ("Normalize", {"mean": [1, 2, 3], "std": [4, 5, 6]})],
        [("CenterCrop", {"size": 7}), ("Pad", {"padding": [1, 2, 3, 4], "fill": 9}), ("Cast", {"dtype": "float64"})],
        [("ToArray", {}), ("ToTensor", {}), ("Reshape", {"shape": [-1]})],
    ],
)
def test_a_batch_at_once_is_bit_equal_to_one_by_one(steps: list[tuple[str, dict[str, Any]]]) -> None:
    pipeline = Pipeline([ComponentSpec(name, args) for name, args in steps], seed=0)
    assert pipeline.vectorised
    at_once = pipeline.batch(IMAGES)
    one_by_one = np.stack([pipeline.sample(i, (image, 0))[0] for i, image in enumerate(IMAGES)])
    assert at_once.dtype == one_by_one.dtype  # type: ignore[union-attr]
    assert np.array_equal(at_once, one_by_one)  # type: ignore[arg-type]


def test_every_batch_transform_is_covered_above() -> None:
    covered = {"Rescale", "Normalize", "Transpose", "CenterCrop", "Pad", "Cast", "ToArray", "ToNDArray", "ToTensor"}
    TRANSFORMS.known()
    batchable = {name for name, cls in TRANSFORMS._classes.items() if issubclass(cls, BatchTransform)}
    assert batchable == covered | {"Reshape"}


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [
        ("Resize", {"size": 8}, (8, 8, 3)),
        ("Resize", {"size": [6, 9], "interpolation": "bicubic"}, (6, 9, 3)),
        ("ResizeWithRatio", {"min_dim": 20, "max_dim": 100}, (24, 20, 3)),
        ("ResizeWithRatio", {"min_dim": 6, "max_dim": 6, "padding": True}, (6, 6, 3)),
        ("CenterCrop", {"size": [4, 6]}, (4, 6, 3)),
        (
            "CropToBoundingBox",
            {"offset_height": 1, "offset_width": 2, "target_height": 3, "target_width": 4},
            (3, 4, 3),
        ),
        ("Pad", {"padding": 2}, (16, 14, 3)),
        ("RandomCrop", {"size": 5}, (5, 5, 3)),
        ("RandomResizedCrop", {"size": 5}, (5, 5, 3)),
        ("RandomHorizontalFlip", {"p": 1}, (12, 10, 3)),
        ("RandomVerticalFlip", {"p": 1}, (12, 10, 3)),
    ],
)
def test_images_and_arrays_give_the_same(name: str, args: dict[str, Any], shape: tuple[int, ...]) -> None:
    of_array = apply(name, IMAGES[0], **args)
    of_image = apply(name, Image.fromarray(IMAGES[0]), **args)
    assert isinstance(of_image, Image.Image)
    assert of_array.shape == shape
    assert np.array_equal(of_array, np.asarray(of_image))


def test_float_images_resize_channel_by_channel() -> None:
    resized = apply("Resize", IMAGES[0].astype(np.float32), size=[6, 5], interpolation="box")
    assert np.allclose(resized, IMAGES[0].astype(np.float32).reshape(6, 2, 5, 2, 3).mean((1, 3)))
    assert apply("Resize", IMAGES[0, :, :, 0], size=[6, 5]).shape == (6, 5)


def test_chance_depends_on_seed_and_sample_only() -> None:
    specs = [ComponentSpec("RandomCrop", {"size": 4}), ComponentSpec("RandomHorizontalFlip")]
    forward = [Pipeline(specs, 5).sample(i, (IMAGES[i], 0))[0] for i in range(5)]
    backward = [Pipeline(specs, 5).sample(i, (IMAGES[i], 0))[0] for i in reversed(range(5))]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    other = [Pipeline(specs, 6).sample(i, (IMAGES[i], 0))[0] for i in range(5)]
    assert not all(np.array_equal(a, b) for a, b in zip(forward, other, strict=True))


def test_random_resized_crop_stays_inside_extreme_images() -> None:
    step = TRANSFORMS.create(ComponentSpec("RandomResizedCrop", {"size": 3}))
    assert isinstance(step, RandomTransform)
    for shape in ((1, 40, 3), (40, 1, 3), (2, 2, 3)):
        for seed in range(20):
            drawn = step.draw(np.zeros(shape, np.uint8), np.random.default_rng(seed))
            assert drawn.shape == (3, 3, 3)


def test_errors_name_the_transform_and_the_shape() -> None:
    with pytest.raises(DataError, match=r"crop of 20x20 .* 12x10"):
        apply("CenterCrop", IMAGES[0], size=20)
    with pytest.raises(DataError, match="both the first and the last axis fit"):
        apply("Normalize", np.zeros((3, 5, 3)), mean=[1, 2, 3])
    with pytest.raises(DataError, match="no channel axis"):
        apply("Normalize", np.zeros((4, 5)), mean=[1, 2, 3])
    with pytest.raises(DataError, match=r"perm \[1, 0\] for a sample of shape"):
        apply("Transpose", IMAGES[0], perm=[1, 0])
    with pytest.raises(DataError, match="do not fit into int8"):
        apply("Cast", np.array([300]), dtype="int8")
    with pytest.raises(DataError, match="interpolation 'cubic' is unknown"):
        apply("Resize", IMAGES[0], size=4, interpolation="cubic")
    with pytest.raises(DataError, match="several"):
        apply("Rescale", {"a": IMAGES[0], "b": IMAGES[0]})


def test_label_shift_moves_the_labels() -> None:
    pair = Pipeline([ComponentSpec("LabelShift", {"label_shift": 1})], 0).sample(0, ("x", np.array([1, 5])))
    assert pair[1].tolist() == [0, 4]
