"""Writes a quantized model where the user wants it, and never over the files that it was made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from distune.errors import UsageError
from distune.journal.files import replace_file


def named_after(target: Path, files: Mapping[str, bytes]) -> dict[Path, bytes]:
    """The files of a model, the model first, as they are called where it is ``target``.

    What belongs to it has a name of its own beside each model of a folder: ``int8.onnx.data``, ``int8.state.pt``.
    """
    (name, model), *others = files.items()
    if others and name.endswith(".onnx"):
        from distune.backends.onnxruntime.storage import DATA_FILE, with_data_file

        data = target.with_name(f"{target.name}.data")
        return {target: with_data_file(model, data.name), data: files[DATA_FILE]}
    return {target: model, **{target.with_name(f"{target.stem}.{other}"): content for other, content in others}}


def write_model(content: Mapping[Path, bytes], sources: Collection[Path]) -> None:
    """Write files, each whole or not at all, the first one (the model) last, when all it needs is there.

    Args:
        content: By path; folders are made where they are missing.
        sources: Files that the model was made of.

    Raises:
        UsageError: One of the files is a source, and nothing was written; or one cannot be written.
    """
    for path in content:
        if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
            raise UsageError(
                f"{path} would be written over, but the quantized model is made of it; give the quantized model "
                "another name or folder"
            )
    for path, data in reversed(list(content.items())):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
