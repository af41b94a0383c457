import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultfs.domain.errors import InvalidField, TooLarge
from vaultfs.domain.metadata import Json, format_metadata, merge_patch, merged, parse_metadata

RFC_7396_A = (
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
)
"""RFC 7396, appendix A: original, patch, result."""

leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values: st.SearchStrategy[Json] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)
objects = st.dictionaries(st.text(max_size=2), values, max_size=4)


@pytest.mark.parametrize(("original", "patch", "result"), RFC_7396_A)
def test_the_examples_of_the_standard(original: str, patch: str, result: str) -> None:
    assert merged(json.loads(original), json.loads(patch)) == json.loads(result)


@given(objects, objects)
@settings(deadline=None, max_examples=30)
def test_a_patch_changes_neither_itself_nor_its_target(
    target: dict[str, Json], patch: dict[str, Json]
) -> None:
    before = json.dumps([target, patch])
    once = merged(target, patch)
    assert json.dumps([target, patch]) == before
    assert merged(once, patch) == once


@given(objects)
@settings(deadline=None, max_examples=30)
def test_what_is_written_is_read_again(value: dict[str, Json]) -> None:
    assert parse_metadata(format_metadata(value, most=10**6)) == value


def test_there_is_one_form() -> None:
    assert format_metadata({"b": 1, "a": "\u00e9"}, most=99) == '{"a":"\u00e9","b":1}'
    assert merge_patch('{ "b" : 1 }', '{"a":[ ]}', most=99) == '{"a":[],"b":1}'


def test_size_is_counted_in_bytes() -> None:
    text = '{"a":"\u00e9"}'
    assert merge_patch("{}", text, most=10) == text
    with pytest.raises(TooLarge):
        merge_patch("{}", text, most=9)


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "null", '"a"', "{", "{'a':1}", '{"a":NaN}', '{"a":Infinity}', "{}{}"]
)
def test_what_is_no_metadata(text: str) -> None:
    with pytest.raises(InvalidField):
        parse_metadata(text)


@pytest.mark.parametrize("text", ['{"a":' + "[" * 100_000, '{"a":"\\ud800"}', '{"a":1e999}'])
def test_what_no_catalog_could_keep(text: str) -> None:
    with pytest.raises(InvalidField):
        merge_patch("{}", text, most=10**6)
