"""Built-in datasets: what they read, and what they say where they cannot."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distune.config.job import ComponentSpec
from distune.data import dataset_registry, datasets
from distune.data.dataset import ArrayDataset, Dataset
from distune.data.registry import DATASETS
from distune.errors import DataError


def make(name: str, **args: Any) -> Dataset:
    return DATASETS.create(ComponentSpec(name, args), seed=1978)


def arrays(dataset: Dataset) -> ArrayDataset:
    assert isinstance(dataset, ArrayDataset)
    return dataset


@pytest.fixture
def npz(tmp_path: Path) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, ids=np.arange(20).reshape(5, 4), mask=np.ones((5, 4), np.int64), y=np.arange(5))
    return str(path)


def test_npz_inputs_by_name_list_or_mapping(npz: str) -> None:
    one = arrays(make("Npz", path=npz, inputs="ids", label="y"))
    assert one.inputs.shape == (5, 4)  # type: ignore[union-attr]
    two = arrays(make("Npz", path=npz, inputs=["ids", "mask"], label="y"))
    assert isinstance(two.inputs, tuple)
    named = arrays(make("Npz", path=npz, inputs={"input_ids": "ids", "attention_mask": "mask"}))
    assert set(named.inputs) == {"input_ids", "attention_mask"}  # type: ignore[arg-type]
    assert named.labels is None
    sample, label = named[2]
    assert sample["input_ids"].tolist() == [8, 9, 10, 11]
    assert label is None


def test_npz_language_model_takes_inputs_and_labels_from_one_array(npz: str) -> None:
    dataset = arrays(make("Npz", path=npz, inputs="ids[:, :-1]", label="ids[:, 1:]"))
    assert np.array_equal(dataset.inputs[:, 1:], dataset.labels[:, :-1])  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("args", "rows"),
    [
        ({"slice": "1:4"}, [1, 2, 3]),
        ({"slice": "::2"}, [0, 2, 4]),
        ({"limit": 2}, [0, 1]),
        ({"slice": "2:", "limit": 2}, [2, 3]),
        ({"slice": "::2", "limit": 2}, [0, 2]),
    ],
)
def test_npz_rows(npz: str, args: dict[str, Any], rows: list[int]) -> None:
    assert arrays(make("Npz", path=npz, inputs="ids", label="y", **args)).labels.tolist() == rows  # type: ignore[union-attr]


def test_npz_errors_say_what_is_there(npz: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no array 'idz'.*ids, mask, y"):
        make("Npz", path=npz, inputs="idz")
    with pytest.raises(DataError, match="does not exist"):
        make("Npz", path=str(tmp_path / "none.npz"), inputs="ids")
    with pytest.raises(DataError, match="must be a slice"):
        make("Npz", path=npz, inputs="ids[0]")
    text = tmp_path / "text.npz"
    text.write_text("no zip")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        make("Npz", path=str(text), inputs="ids")


def test_npz_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickle"):
        make("Npz", path=str(path), inputs="x")


def test_content_decides_the_digest(npz: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.npz"
    copy.write_bytes(Path(npz).read_bytes())
    same = make("Npz", path=str(copy), inputs="ids", label="y").digest()
    assert make("Npz", path=npz, inputs="ids", label="y").digest() == same
    assert make("Npz", path=npz, inputs="ids", label="y", limit=4).digest() != same


def test_cifar_reads_the_binary_version(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072)).astype(np.uint8)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    records = np.concatenate([np.array([[7], [1], [2]], np.uint8), pixels], axis=1)
    records.tofile(tmp_path / "cifar-10-batches-bin" / "test_batch.bin")
    dataset = make("CIFAR10", root=str(tmp_path))
    image, label = dataset[0]
    assert image.shape == (32, 32, 3)
    assert label == 7
    assert np.array_equal(image[:, :, 1].reshape(-1), pixels[0, 1024:2048])  # the green plane

    fine = np.concatenate([np.array([[1, 90], [2, 91], [3, 92]], np.uint8), pixels], axis=1)
    fine.tofile(tmp_path / "test.bin")
    assert arrays(make("CIFAR100", root=str(tmp_path))).labels.tolist() == [90, 91, 92]  # type: ignore[union-attr]


def test_cifar_python_version_is_refused_as_pickle(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(b"")
    with pytest.raises(DataError, match="pickle"):
        make("CIFAR10", root=str(tmp_path))
    with pytest.raises(DataError, match="nothing is downloaded"):
        make("CIFAR10", root=str(tmp_path), download=True)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_reads_idx_files(tmp_path: Path, name: str, zipped: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8)
    files = {
        "t10k-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">3I", 4, 28, 28) + images.tobytes(),
        "t10k-labels-idx1-ubyte": b"\0\0\x08\x01" + struct.pack(">I", 4) + bytes([3, 1, 4, 1]),
    }
    for file, content in files.items():
        (tmp_path / (f"{file}.gz" if zipped else file)).write_bytes(gzip.compress(content) if zipped else content)
    dataset = arrays(make(name, root=str(tmp_path)))
    assert np.array_equal(dataset.inputs[..., 0], images)  # type: ignore[index,call-overload]
    assert dataset.labels.tolist() == [3, 1, 4, 1]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no train-images-idx3-ubyte"):
        make(name, root=str(tmp_path), train=True)


def test_mnist_cut_off_file(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 4, 28, 28) + b"\0" * 99)
    with pytest.raises(DataError, match="cut off"):
        make("MNIST", root=str(tmp_path))


def test_image_folder_counts_sorted_class_folders(tmp_path: Path) -> None:
    from PIL import Image

    for name, colour in (("zebra", 200), ("ant", 10)):
        (tmp_path / name).mkdir()
        Image.new("L", (6, 4), colour).save(tmp_path / name / "1.png")
    dataset = make("ImageFolder", root=str(tmp_path))
    assert dataset.classes == ["ant", "zebra"]  # type: ignore[attr-defined]
    image, label = dataset[1]
    assert (label, np.asarray(image).shape, int(np.asarray(image)[0, 0, 0])) == (1, (4, 6, 3), 200)
    before = dataset.digest()
    Image.new("L", (6, 4), 11).save(tmp_path / "ant" / "1.png")
    assert make("ImageFolder", root=str(tmp_path)).digest() != before


def test_imagenet_raw_reads_the_list_file(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a b.png")
    (tmp_path / "val_map.txt").write_text("a b.png 65\n\n")
    assert make("ImagenetRaw", data_path=str(tmp_path))[0][1] == 65
    (tmp_path / "val_map.txt").write_text("a b.png sixty\n")
    with pytest.raises(DataError, match=r"val_map\.txt:1"):
        make("ImagenetRaw", data_path=str(tmp_path))


def test_dummy_is_seeded_by_the_job() -> None:
    first, again = (arrays(make("dummy", shape=[8, 3, 4], low=0, high=1)) for _ in range(2))
    assert np.array_equal(first.inputs, again.inputs)  # type: ignore[arg-type]
    assert first.inputs.dtype == np.float32  # type: ignore[union-attr]
    other = arrays(DATASETS.create(ComponentSpec("Dummy", {"shape": [8, 3, 4], "low": 0, "high": 1}), seed=1))
    assert not np.array_equal(first.inputs, other.inputs)  # type: ignore[arg-type]
    several = arrays(make("Dummy", shape=[[4, 2], [4, 3]], low=0, high=[5, 9], dtype=["int64", "float32"], label=False))
    assert [a.shape for a in several.inputs] == [(4, 2), (4, 3)]
    assert several.labels is None


def test_names_and_parameters_are_known_without_making_anything() -> None:
    assert datasets()["Npz"] == {"path", "inputs", "label", "slice", "limit"}
    assert datasets()["dummy"] == datasets()["Dummy"]
    with pytest.raises(DataError, match="did you mean 'CIFAR10'"):
        make("Cifar10", root="x")
    with pytest.raises(DataError, match=r"no argument 'rot' \(did you mean 'root'"):
        make("MNIST", rot="x")
    with pytest.raises(DataError, match="needs the argument 'root'"):
        make("MNIST")
    with pytest.raises(DataError, match="TensorFlow"):
        make("TFRecordDataset", root="x")


def test_a_new_dataset_is_one_decorated_class() -> None:
    @dataset_registry("TwoOnes")
    class TwoOnes(ArrayDataset):
        def __init__(self) -> None:
            super().__init__(np.ones((2, 1)), np.ones(2))

    assert len(make("TwoOnes")) == 2
