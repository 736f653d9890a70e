"""Images on disk: a folder a class, or a list of files with class ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distune.data.dataset import Dataset, existing, hash_files
from distune.data.registry import dataset_registry
from distune.errors import DataError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"})


class _ImageFiles(Dataset):
    """Pillow images (RGB) of files, with class ids."""

    def __init__(self, root: Path, samples: list[tuple[Path, int]]) -> None:
        self._root = root
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from PIL import Image, UnidentifiedImageError

        path, label = self._samples[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), label
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error

    def digest(self) -> str:
        return hash_files(self._root, [path for path, _ in self._samples])


@dataset_registry("ImageFolder")
class ImageFolder(_ImageFiles):
    """``root/<class>/**/<image>``; class ids count the class folders in sorted order.

    Attributes:
        classes: Names of the class folders, by class id.
    """

    def __init__(self, root: str) -> None:
        base = existing(root, "ImageFolder root")
        self.classes = sorted(path.name for path in base.iterdir() if path.is_dir())
        samples = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((base / name).rglob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
        if not samples:
            raise DataError(f"ImageFolder: no image in the class folders of {base} (expected root/<class>/<image>)")
        super().__init__(base, samples)


@dataset_registry("ImagenetRaw")
class ImagenetRaw(_ImageFiles):
    """Images of one folder with a list file of lines ``<file> <class id>``.

    Args:
        data_path: Folder of the images.
        image_list: The list file; ``val_map.txt`` of the folder unless given.
    """

    def __init__(self, data_path: str, image_list: str | None = None) -> None:
        base = existing(data_path, "ImagenetRaw data_path")
        listing = existing(image_list or base / "val_map.txt", "ImagenetRaw image_list")
        samples: list[tuple[Path, int]] = []
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            file, _, label = line.strip().rpartition(" ")
            if not file or not label.isdigit():
                raise DataError(f"{listing}:{number}: expected '<file> <class id>', found {line!r}")
            samples.append((existing(base / file, f"{listing}:{number}: image"), int(label)))
        if not samples:
            raise DataError(f"ImagenetRaw: {listing} lists no image")
        super().__init__(base, samples)
