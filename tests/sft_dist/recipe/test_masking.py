"""What of a URL is secret does not reach messages."""

import json

import pytest

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.masking import masked, masked_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:hunter2@host/db#t", "postgresql://me:***@host/db#t"),
        ("postgresql://me:a/b:c@host/db#t", "postgresql://me:***@host/db#t"),
        ("mysql+pymysql://:hunter2@host/db", "mysql+pymysql://:***@host/db"),
        ("https://hf_token@host/a.csv", "https://***@host/a.csv"),
        ("see https://a.b/c.csv?x=1&X-Amz-Signature=abc&y=2", "see https://a.b/c.csv?x=1&X-Amz-Signature=***&y=2"),
        ("https://a.b/c.csv?access_token=abc", "https://a.b/c.csv?access_token=***"),
        ("postgresql://me:$PASSWORD@host/db", "postgresql://me:$PASSWORD@host/db"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("https://host:80/a.csv?page=2", "https://host:80/a.csv?page=2"),
        ("a: b@c", "a: b@c"),
    ],
)
def test_secrets_of_urls_are_masked_and_nothing_else(text, expected):
    assert masked(text) == expected
    assert masked_values({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_errors_are_masked():
    error = UserError(Problem("cannot reach postgres://me:hunter2@host", value="postgres://me:hunter2@host"))
    assert "hunter2" not in f"{error} {error.render()} {error.to_json()}"
    assert json.loads(error.to_json())["problems"][0]["value"] == "postgres://me:***@host"
