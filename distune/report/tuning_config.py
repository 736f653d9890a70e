"""``tuning_config.yaml``: the accepted tuning config with its ranges and scales, to be applied again without data.

Arrays (weights that were found with data) are in ``tuning_config.npz`` beside it, without pickles; the YAML has
``{$array: NUMBER}`` where they belong, and the file's name and digest.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from distune import __version__
from distune.errors import UsageError
from distune.report.tuning_config_check import check_config, check_deploy, check_format
from distune.space.op_config import TuningConfig

FORMAT_VERSION = 1

CONFIG_FILE, ARRAYS_FILE = "tuning_config.yaml", "tuning_config.npz"

_ARRAY = "$array"


@dataclass(frozen=True)
class SavedConfig:
    """Content of a ``tuning_config.yaml``.

    Attributes:
        framework: The backend that made it.
        quant_format: ``QDQ`` or ``QOperator``.
        deploy: What the backend needs to export without data (``ExportedModel.deploy``).
    """

    framework: str
    quant_format: str
    config: TuningConfig
    deploy: Mapping[str, Any]

    def files(self) -> dict[str, bytes]:
        """Content of ``tuning_config.yaml`` and of what goes beside it, by file name."""
        arrays: list[NDArray[Any]] = []
        content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "distune_version": __version__,
            "framework": self.framework,
            "quant_format": self.quant_format,
            "config_hash": self.config.hash,
            "config": self.config.to_json(),
            "deploy": _without_arrays(dict(self.deploy), arrays),
        }
        beside: dict[str, bytes] = {}
        if arrays:
            beside[ARRAYS_FILE] = _packed(arrays)
            content["arrays"] = {"file": ARRAYS_FILE, "sha256": hashlib.sha256(beside[ARRAYS_FILE]).hexdigest()}
        heading = "# Apply to the fp32 model with: distune export THIS_FILE --model MODEL --output QUANTIZED\n"
        text = heading + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        return {CONFIG_FILE: text.encode(), **beside}

    @classmethod
    def load(cls, path: Path) -> SavedConfig:
        """Read a file of ``files``, with what is beside it.

        Raises:
            UsageError: It cannot be read, is not such a file, or was changed by hand in a way that cannot be applied;
                the file of arrays is missing or belongs to another config.
        """
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {error}") from error
        if not isinstance(content, dict) or "config" not in content or "format_version" not in content:
            raise UsageError(f"{path} is not a tuning_config.yaml of distune (it has no format_version and config)")
        if content["format_version"] != FORMAT_VERSION:
            raise UsageError(
                f"{path} has format_version {content['format_version']}, this is distune {__version__} which reads "
                f"{FORMAT_VERSION}; it was written by distune {content.get('distune_version', '?')}"
            )
        try:
            config = TuningConfig.from_json(content["config"])
            deploy = content["deploy"]
            if "arrays" in content:
                deploy = _with_arrays(deploy, _read_arrays(path, content["arrays"]))
            framework, quant_format = content["framework"], content["quant_format"]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"{path}: the tuning config in it is incomplete or was changed ({error!r})") from error
        check_format(f"{path}", framework, quant_format)
        check_config(f"{path}", config)
        check_deploy(f"{path}", deploy)
        return cls(framework, quant_format, config, deploy)


def _without_arrays(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """``value`` with numbers in place of arrays, which are appended to ``arrays``."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, Mapping):
        return {key: _without_arrays(part, arrays) for key, part in value.items()}
    return value


def _with_arrays(value: Any, arrays: Sequence[NDArray[Any]]) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _with_arrays(part, arrays) for key, part in value.items()}
    return value


def _packed(arrays: Sequence[NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, *arrays)
    return buffer.getvalue()


def _read_arrays(path: Path, entry: Mapping[str, str]) -> list[NDArray[Any]]:
    file = path.parent / Path(entry["file"]).name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} needs {file} ({error.strerror or error}): the weights that were found with data are in it; "
            "put both files into one folder"
        ) from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise UsageError(f"{file} belongs to another tuning config than {path}, or was changed; take both from one run")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return [found[f"arr_{number}"] for number in range(len(found.files))]
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UsageError(f"{file} is no file of arrays of distune ({error})") from error


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The C dumper where PyYAML has it: a config of 300 ops takes a second otherwise. Never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
