"""``tuning_config.yaml``: the accepted tuning config with its ranges and scales, to be applied again without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distune import __version__
from distune.errors import UsageError
from distune.space.op_config import TuningConfig

FORMAT_VERSION = 1


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

    def dump(self) -> str:
        """The text of the file."""
        content = {
            "format_version": FORMAT_VERSION,
            "distune_version": __version__,
            "framework": self.framework,
            "quant_format": self.quant_format,
            "config_hash": self.config.hash,
            "config": self.config.to_json(),
            "deploy": dict(self.deploy),
        }
        heading = (
            "# Apply to the fp32 model with: distune export THIS_FILE --model model.onnx --output quantized.onnx\n"
        )
        return heading + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)

    @classmethod
    def load(cls, path: Path) -> SavedConfig:
        """Read a file written by ``dump``.

        Raises:
            UsageError: It cannot be read, is not such a file, or was changed by hand in a way that cannot be applied.
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
            return cls(content["framework"], content["quant_format"], config, content["deploy"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"{path}: the tuning config in it is incomplete or was changed ({error!r})") from error


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The C dumper where PyYAML has it: a config of 300 ops takes a second otherwise. Never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
