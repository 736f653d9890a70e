"""One experiment of the service: suggestions out of it, observations into it, best assignments read back.

Whatever the service answers is recorded through ``outside``, so that a run that is resumed takes the same decisions
without asking for anything twice. An experiment on a server is then gone on with; one of the in-memory service died
with its process and is built up again from what it was told.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from distune.errors import DistuneError, UsageError
from distune.strategies.sigopt_service.environment import lite_python
from distune.strategies.sigopt_service.lite import LiteDriver
from distune.strategies.sigopt_service.settings import PROJECT_VARIABLE, ServiceSettings

Assignments = Mapping[str, str | int | float]

T = TypeVar("T")

_TEXT = 100
"""Characters that the service allows in a name."""


class Outside(Protocol):
    """Runs ``work`` and records what it gives under ``key``; gives what is recorded where it was run before."""

    def __call__(self, key: str, work: Callable[[], Any]) -> Any: ...


@dataclass(frozen=True)
class Definition:
    """What an experiment is made of, in the service's own terms.

    Attributes:
        parameters, metrics: Bodies as the service takes them.
        budget: Observations that are planned.
        metadata: Plain values by name, shown beside the experiment.
    """

    parameters: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    budget: int
    metadata: Mapping[str, str | int | float]


@dataclass(frozen=True)
class Suggestion:
    """What the service wants tried."""

    id: str
    assignments: Assignments


class Experiment:
    """See the module's description.

    Args:
        seed: Of the in-memory service; a server has its own.
    """

    def __init__(self, settings: ServiceSettings, definition: Definition, seed: int, outside: Outside) -> None:
        self._settings = settings
        self._definition = definition
        self._seed = seed
        self._outside = outside
        self._connection: Any = None
        self._driver: LiteDriver | None = None
        self._id = ""
        self._suggested = 0
        self._told: list[dict[str, Any]] = []

    @property
    def id(self) -> str:
        """Identity on the server; empty before the first suggestion."""
        return self._id

    def open(self) -> None:
        """Create the experiment, or look up the one that is to be joined."""
        self._id = str(self._outside("sigopt experiment", self._open))

    def suggest(self) -> Suggestion:
        """The next assignments to try."""
        self._suggested += 1

        def live() -> dict[str, Any]:
            suggestions = self._live().experiments(self._id).suggestions()
            # a tag per machine, as the service's own guide to parallel workers has it
            tags = {} if self._lite else {"metadata": {"host": socket.gethostname(), "process": os.getpid()}}
            found = self._asking("to suggest", lambda: suggestions.create(**tags))
            return {"id": str(found.id), "assignments": dict(found.assignments)}

        answer = self._outside(f"sigopt suggestion {self._suggested}", live)
        return Suggestion(answer["id"], answer["assignments"])

    def observe(
        self, suggestion: Suggestion, values: Mapping[str, float] | None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Tell what came of a suggestion.

        Args:
            values: Value of every metric; ``None`` reports a failed observation.
            metadata: Plain values shown beside the observation (a server only).
        """
        body: dict[str, Any]
        if self._lite:
            # by assignments: after a resume the in-memory service does not know its suggestion any more
            body = {"assignments": dict(suggestion.assignments)}
        else:
            body = {"suggestion": suggestion.id, "metadata": dict(metadata or {})}
        body["failed"] = values is None
        if values is not None:
            body["values"] = [{"name": name, "value": value} for name, value in values.items()]

        def live() -> bool:
            self._observe(self._live(), body)
            return True

        self._outside(f"sigopt observation {len(self._told) + 1}", live)
        self._told.append(body)

    def best(self) -> list[dict[str, Any]]:
        """The service's best assignments, each with ``assignments`` and ``values`` by metric."""

        def live() -> list[dict[str, Any]]:
            source = self._live().experiments(self._id).best_assignments()
            found = self._asking("to give the best assignments", lambda: list(source.fetch().iterate_pages()))
            return [
                {
                    "assignments": dict(item.assignments),
                    "values": {value.name: value.value for value in item.values or ()},
                }
                for item in found
            ]

        answer: list[dict[str, Any]] = self._outside("sigopt best assignments", live)
        return answer

    def log_winner(
        self, name: str, assignments: Assignments, values: Mapping[str, float], model: str, datasets: Sequence[str]
    ) -> None:
        """Log the chosen model as a run of the project: its model, datasets, parameters and metrics (a server only)."""
        if self._lite or not self._settings.project:
            return

        def live() -> str:
            from sigopt.factory import SigOptFactory

            def log() -> str:
                run = SigOptFactory(self._settings.project, connection=self._live()).create_run(name=name)
                if model:
                    run.log_model(model)
                for dataset in datasets:
                    run.log_dataset(dataset)
                run.log_metadata("experiment", self._id)
                run.set_parameters(dict(assignments))
                run.log_metrics(dict(values))
                run.end()
                return str(run.id)

            return self._asking("to log the winner", log)

        self._outside("sigopt winner", live)

    def close(self) -> None:
        """End the in-memory service, where it is one."""
        if self._driver is not None:
            self._driver.close()

    # ------------------------------------------------------------------------------------------------------- service

    @property
    def _lite(self) -> bool:
        return self._settings.driver == "lite"

    def _live(self) -> Any:
        """The connection, made when it is first needed: a run that is replayed in full needs none."""
        if self._connection is None:
            self._connection = self._connect()
            if self._lite:
                self._create(self._connection)
                for body in self._told:
                    self._observe(self._connection, body)
        return self._connection

    def _connect(self) -> Any:
        connection_type = _client(self._settings.project)
        if self._lite:
            self._driver = driver = LiteDriver(lite_python(), self._seed)
            return connection_type(driver=lambda: driver)
        address = {"api_url": self._settings.api_url} if self._settings.api_url else {}
        return connection_type(client_token=self._settings.token.reveal(), **address)

    def _open(self) -> str:
        connection = self._live()
        if self._lite:
            return "-1"  # the service's fixed id; _live has created it
        if self._settings.experiment_id:
            return self._join(connection)
        self._check_project(connection)
        return self._create(connection)

    def _create(self, connection: Any) -> str:
        definition = self._definition
        body: dict[str, Any] = {
            "name": self._settings.experiment_name[:_TEXT],
            "parameters": [dict(parameter) for parameter in definition.parameters],
            "metrics": [dict(metric) for metric in definition.metrics],
            "observation_budget": definition.budget,
            "parallel_bandwidth": self._settings.parallel_bandwidth,
        }
        if not self._lite:  # which has neither
            body["project"] = self._settings.project
            body["metadata"] = dict(definition.metadata)
        return str(self._asking("to create the experiment", lambda: connection.experiments().create(**body)).id)

    def _join(self, connection: Any) -> str:
        wanted = self._settings.experiment_id
        found = self._asking("to look up the experiment", lambda: connection.experiments(wanted).fetch())
        ours = {str(parameter["name"]) for parameter in self._definition.parameters}
        theirs = {str(parameter.name) for parameter in found.parameters or ()}
        metrics = {str(metric["name"]) for metric in self._definition.metrics}
        if ours != theirs or metrics != {str(metric.name) for metric in found.metrics or ()}:
            raise UsageError(
                f"sigopt_experiment_id {wanted}: its parameters and metrics are not those of this job, which is about "
                f"another model, space or objective"
            )
        return wanted

    def _check_project(self, connection: Any) -> None:
        from sigopt.defaults import ensure_project_exists
        from sigopt.exception import ProjectNotFoundException

        project = self._settings.project
        try:
            self._asking("to look up the project", lambda: ensure_project_exists(connection, project))
        except ProjectNotFoundException as error:
            raise UsageError(
                f"sigopt_project_id: there is no project {project!r} on the server; create it with: "
                f"sigopt create project --project {project}"
            ) from error

    def _observe(self, connection: Any, body: Mapping[str, Any]) -> None:
        observations = connection.experiments(self._id or "-1").observations()
        self._asking("to take an observation", lambda: observations.create(**body))

    def _asking(self, what: str, ask: Callable[[], T]) -> T:
        """Ask the service; its refusals become errors that say what to do. None of them holds the token."""
        from sigopt.exception import ApiException, ProjectNotFoundException, SigOptException

        where = "sigoptlite" if self._lite else self._settings.api_url or "the SigOpt service"
        try:
            return ask()
        except ProjectNotFoundException:
            raise
        except ApiException as error:
            message = f"{where} refused {what} ({error.status_code}): {error.message}"
            if error.status_code in (401, 403):
                raise UsageError(f"{message}; check sigopt_api_token or SIGOPT_API_TOKEN") from None
            raise DistuneError(message) from error
        except SigOptException as error:
            raise DistuneError(f"{where} cannot be asked {what}: {error}; run again to resume") from error


def _client(project: str) -> Any:
    """The client's ``Connection``.

    When it is imported the client derives a project's name from the current folder, and refuses to be imported where
    that cannot be done (in ``/``, for one); the variable keeps it from trying.
    """
    before = os.environ.get(PROJECT_VARIABLE)
    os.environ[PROJECT_VARIABLE] = project or before or "distune"
    try:
        from sigopt import Connection
    finally:
        if before is None:
            del os.environ[PROJECT_VARIABLE]
        else:
            os.environ[PROJECT_VARIABLE] = before
    return Connection
