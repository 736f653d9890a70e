"""The JSON schema takes what ``validate`` takes, and an editor would underline what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from distune.api.names import known_names
from distune.cli.schema import markdown_lines
from distune.config.json_schema import json_schema
from distune.config.vocabulary import RECIPE_MEANINGS, RECIPES, WEIGHT_ONLY_RECIPES
from distune.space.recipes import DEFAULTS
from tests.cli.jobs import distune

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "launch" / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema(known_names())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_fits(validator: Any, path: Path) -> None:
    validator.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("quantization: {aproach: static}", ["quantization"]),
        ("quantization: {approach: statik}", ["quantization", "approach"]),
        ("quantization: {model_wise: {weight: {scheme: [symm]}}}", ["quantization", "model_wise", "weight", "scheme"]),
        ("quantization: {recipes: {smoothquant: true}}", ["quantization", "recipes"]),
        ("tuning: {exit_policy: {max_trials: 0}}", ["tuning", "exit_policy", "max_trials"]),
        ("tuning: {accuracy_criterion: {relative: [1]}}", ["tuning", "accuracy_criterion", "relative"]),
    ],
)
def test_mistakes_are_found_where_they_are(validator: Any, text: str, place: list[str]) -> None:
    errors = list(validator.iter_errors(yaml.safe_load(text)))
    if place[-1] == "scheme":  # a comma string may be anything to an editor; a list may not
        assert errors != []
    assert [list(error.absolute_path) for error in errors] == [place]


@pytest.mark.parametrize(
    "text",
    [
        "tuning: {strategy: mse}",
        "tuning: {accuracy_criterion: {relative: 1%}}",
        "quantization: {calibration: {sampling_size: '50, 100'}}",
        "quantization: {model_wise: {weight: {dtype: 'int8, fp32', granularity: per_channel}}}",
        "evaluation: {accuracy: {multi_metrics: {topk: 1, MSE: {}, weight: [0.5, 0.5]}}}",
    ],
)
def test_short_forms_fit(validator: Any, text: str) -> None:
    validator.validate(yaml.safe_load(text))


def test_the_page_of_keys_is_what_the_schema_says() -> None:
    """``docs/configuration.md`` holds the table that ``distune schema --keys`` prints."""
    page = (ROOT / "docs" / "configuration.md").read_text().splitlines()
    table = [line for line in page if line.startswith("| ")]
    assert table == list(markdown_lines()), "put what `python -m distune schema --keys` prints into the page"


def test_the_page_of_components_is_what_is_registered(tmp_path: Path) -> None:
    """``docs/components.md`` holds the tables that ``distune schema --components`` prints (in a process of its own,
    where no test has registered components)."""
    page = (ROOT / "docs" / "components.md").read_text()
    tables = page[page.index("## ") :].splitlines()
    printed = distune(tmp_path, "schema", "--components").stdout
    assert [line for line in tables if line] == [line for line in printed.splitlines() if line]


def test_every_recipe_that_changes_something_says_what() -> None:
    assert {*DEFAULTS, *WEIGHT_ONLY_RECIPES} <= set(RECIPE_MEANINGS) <= set(RECIPES)
    assert RECIPE_MEANINGS["adaround"] in json.dumps(json_schema(known_names()))


def test_it_is_json() -> None:
    json.dumps(json_schema(known_names()), allow_nan=False)
