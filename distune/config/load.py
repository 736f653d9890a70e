"""Reading a configuration file: ``load_config`` finds every problem before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from distune.config.diagnostics import Problem, Span, config_error, describe, did_you_mean
from distune.config.faults import Context, Fault, faults_of
from distune.config.job import TuningJob
from distune.config.known import KnownNames
from distune.config.overrides import apply_overrides
from distune.config.paths import PathResolver
from distune.config.schema import Configuration
from distune.config.schema_quantization import NO_EFFECT
from distune.config.to_job import to_job
from distune.config.yaml_nodes import Document, KeyPath, parse_yaml
from distune.errors import ConfigError

S = TypeVar("S", bound=BaseModel)

DEFAULT_WORKSPACE = "distune_workspace"


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration.

    Attributes:
        source: The file as the user named it.
        configuration: Its content; paths are absolute, user code in files too.
        warnings: What is accepted but has no effect, each with its position.
    """

    source: str
    configuration: Configuration
    warnings: tuple[str, ...] = ()
    _document: Document = field(default_factory=lambda: Document(""), repr=False)

    @property
    def is_fragment(self) -> bool:
        """True for a file without ``model``: it validates, but is no job."""
        return self.configuration.model is None

    def job(self, workspace: str | None = None) -> TuningJob:
        """The job that the file describes.

        Args:
            workspace: Folder of the run, relative to the current one; else ``tuning.workspace.path``, else
                ``./distune_workspace``.

        Raises:
            ConfigError: The file is a fragment.
        """
        model = self.configuration.model
        if model is None:
            message = "'model' is missing: a run needs 'model: {framework: onnxruntime, path: model.onnx}'"
            raise config_error(self.source, [Problem(Span(self.source, 1, 1), "", message)])
        folder = workspace or self.configuration.tuning.workspace.path or DEFAULT_WORKSPACE
        return to_job(self.configuration, model, self._where, self.source, os.path.abspath(folder))

    def position(self, key_path: str) -> str:
        """``file:line:column`` of a key, or of the nearest section around it.

        Args:
            key_path: Keys joined by dots, e.g. ``tuning.strategy``; a key may itself hold dots.
        """
        dotted = {".".join(map(str, path)): path for path in self._document.entries}
        while key_path and key_path not in dotted:
            key_path = key_path.rpartition(".")[0]
        return self._where(dotted.get(key_path, ()))

    def _where(self, path: KeyPath) -> str:
        _, entry = self._document.nearest_entry(path)
        return str(entry.key or entry.value)


def load_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    known: KnownNames | None = None,
    environ: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Read and check a configuration file.

    Args:
        path: The YAML file. Paths in it are relative to its folder.
        overrides: ``key.path=value`` from the command line; they replace values of the file.
        known: Names to check against; nothing of the kind is checked where empty.
        environ: Variables for ``${NAME}``; those of the process by default.

    Raises:
        ConfigError: The file cannot be read, or is wrong: every problem, each with position, key and hint.
    """
    source = os.fspath(path)
    document = parse_yaml(_read(source), source)
    if document.problems and not document.data:
        raise config_error(source, document.problems)
    if not isinstance(document.data, dict) or not (document.data or overrides):
        message = f"expected sections such as 'model:' and 'tuning:', got {describe(document.data or None)}"
        raise config_error(source, [*document.problems, Problem(Span(source, 1, 1), "", message)])
    document.data = dict(document.data)
    apply_overrides(document, overrides)
    context = Context(
        PathResolver(Path(os.path.abspath(source)).parent, os.environ if environ is None else environ),
        known if known is not None else KnownNames(),
        complete="model" in document.data,
    )
    configuration = _validated(Configuration, document, context, source)
    return LoadedConfig(source, configuration, tuple(_warnings(configuration, context, document)), document)


def load_section(path: str | os.PathLike[str], section: type[S]) -> S:
    """Read and check a file that is one section, e.g. a ``sigopt.yml``.

    Raises:
        ConfigError: As ``load_config``.
    """
    source = os.fspath(path)
    document = parse_yaml(_read(source), source)
    context = Context(PathResolver(Path(os.path.abspath(source)).parent, os.environ))
    return _validated(section, document, context, source)


def _validated(section: type[S], document: Document, context: Context, source: str) -> S:
    try:
        found = section.model_validate(document.data, context=context)
    except ValidationError as error:
        problems = [_located(fault, document) for fault in faults_of(error)]
        raise config_error(source, [*document.problems, *problems]) from None
    if document.problems:
        raise config_error(source, document.problems)
    return found


def _read(source: str) -> str:
    try:
        return Path(source).read_bytes().decode("utf-8")
    except FileNotFoundError:
        folder = Path(os.path.abspath(source)).parent
        names = [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")] if folder.is_dir() else []
        hint = did_you_mean(Path(source).name, names)
        raise ConfigError(f"{source}: there is no such file{hint if 'did you mean' in hint else ''}") from None
    except IsADirectoryError:
        raise ConfigError(f"{source}: is a folder; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: is not UTF-8 text (byte {error.start}); is it a YAML file?") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None


def _located(fault: Fault, document: Document) -> Problem:
    """Turn keys into a position: of the value or key meant, else of what stands for it in the file."""
    path, entry = document.nearest_entry(fault.place)
    found = len(path) == len(fault.place)
    span = entry.key if fault.at == "key" and found and entry.key is not None else entry.value
    focus = fault.focus or ("" if found else str(fault.place[-1]))
    return Problem(span.focused(focus), ".".join(map(str, path)), fault.message)


def _warnings(configuration: Configuration, context: Context, document: Document) -> Iterator[str]:
    idle = [Fault(f"has no effect: {reason}", path, "key") for path, reason in _without_effect(configuration, ())]
    for fault in (*context.notices, *idle):
        problem = _located(fault, document)
        yield f"{problem.where}: {problem.key}: {problem.message}"


def _without_effect(section: BaseModel, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Fields that the user set to something else than the default and that do nothing, with the reason."""
    for name, info in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        extra = info.json_schema_extra
        if isinstance(extra, dict) and NO_EFFECT in extra:
            if value != info.get_default(call_default_factory=True):
                yield (*path, name), str(extra[NO_EFFECT])
        elif isinstance(value, BaseModel):
            yield from _without_effect(value, (*path, name))
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, BaseModel):
                    yield from _without_effect(item, (*path, name, key))
