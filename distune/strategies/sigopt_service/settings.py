"""The settings of strategy ``sigopt``, checked before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal
from urllib.parse import urlsplit

from distune.config.secret import Secret
from distune.errors import MissingExtraError, UsageError
from distune.strategies.settings import one_of, whole_number
from distune.strategies.sigopt_service.environment import lite_python

Driver = Literal["http", "lite"]
DRIVERS: tuple[Driver, ...] = ("http", "lite")

TOKEN_VARIABLE = "SIGOPT_API_TOKEN"
PROJECT_VARIABLE = "SIGOPT_PROJECT"
DEFAULT_EXPERIMENT_NAME = "nc-tune"

_PROJECT_ID = re.compile(r"[a-z0-9\-_.]+")

SETTINGS: Mapping[str, str] = {
    "driver": "http: a SigOpt server (default); lite: the in-memory service of sigoptlite.",
    "sigopt_api_token": f"Token of the service; else the environment variable {TOKEN_VARIABLE}.",
    "sigopt_project_id": f"Project of the experiment; else {PROJECT_VARIABLE}. It must exist on the server.",
    "sigopt_experiment_name": f"Name of the experiment (default: {DEFAULT_EXPERIMENT_NAME}).",
    "sigopt_experiment_id": "Work on this experiment, which is running already, instead of creating one.",
    "api_url": "Address of a self-hosted server; else SIGOPT_API_URL, else the hosted service.",
    "parallel_bandwidth": "Configs asked for at once and judged in parallel (default: 1; lite serves only 1).",
}


@dataclass(frozen=True)
class ServiceSettings:
    """Where the service is and what its experiment is called.

    Attributes:
        token: Empty with the driver ``lite``.
        experiment_id: The experiment to join; empty to create one.
        api_url: Empty for the client's own default.
        parallel_bandwidth: Suggestions that are open at once.
    """

    driver: Driver = "http"
    token: Secret = field(default_factory=Secret)
    project: str = ""
    experiment_name: str = DEFAULT_EXPERIMENT_NAME
    experiment_id: str = ""
    api_url: str = ""
    parallel_bandwidth: int = 1

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> ServiceSettings:
        """Read and check the settings, the environment variables included.

        Raises:
            UsageError: Something is missing or wrong; everything that is, is listed.
        """
        if find_spec("sigopt") is None:
            raise MissingExtraError("sigopt", "sigopt", "for strategy sigopt")
        driver = one_of(kwargs, "driver", DRIVERS)
        bandwidth = whole_number(kwargs, "parallel_bandwidth", 1)
        settings = cls(
            driver=driver,
            token=Secret.wrap(kwargs.get("sigopt_api_token") or os.environ.get(TOKEN_VARIABLE)),
            project=str(kwargs.get("sigopt_project_id") or os.environ.get(PROJECT_VARIABLE) or ""),
            experiment_name=str(kwargs.get("sigopt_experiment_name") or DEFAULT_EXPERIMENT_NAME),
            experiment_id=str(kwargs.get("sigopt_experiment_id") or ""),
            api_url=str(kwargs.get("api_url") or "").rstrip("/"),
            parallel_bandwidth=bandwidth,
        )
        problems = settings._lite_problems() if driver == "lite" else settings._http_problems()
        if problems:
            raise UsageError("strategy sigopt: " + "; ".join(problems))
        if driver == "lite":
            lite_python()
        return settings

    def _http_problems(self) -> list[str]:
        problems: list[str] = []
        if not self.token:
            problems.append(f"no token: give sigopt_api_token or set {TOKEN_VARIABLE}")
        if not self.project and not self.experiment_id:
            problems.append("'sigopt_project_id' is required: the project in which the experiment is made")
        if self.project and not _PROJECT_ID.fullmatch(self.project):
            problems.append(
                f"sigopt_project_id {self.project!r}: a project's id has lowercase letters, digits, '-', '_' and '.'"
            )
        if self.api_url:
            address = urlsplit(self.api_url)
            if address.scheme not in ("http", "https") or not address.hostname:
                problems.append("api_url must be an address that begins with http:// or https://")
            elif address.username or address.password:
                problems.append("api_url must not hold a user name or password: give sigopt_api_token")
        return problems

    def _lite_problems(self) -> list[str]:
        problems: list[str] = []
        if self.parallel_bandwidth != 1:
            problems.append("driver lite serves one suggestion at a time: parallel_bandwidth must be 1")
        if self.experiment_id:
            problems.append("driver lite keeps its experiment in memory: there is none to join by sigopt_experiment_id")
        if self.api_url:
            problems.append("driver lite has no api_url")
        return problems
