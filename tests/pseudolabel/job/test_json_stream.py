"""A JSON file read piece by piece gives what json.loads gives, wherever the pieces end."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel.errors import DataError
from pseudolabel.job import json_stream
from pseudolabel.job.json_stream import JsonFile, Section

numbers = st.integers() | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3)
)
objects = st.fixed_dictionaries(
    {"info": values, "images": st.lists(values, max_size=5)},
    optional={"é]": values, "annotations": st.lists(values, max_size=5)},
)


def read(path, data):
    file = JsonFile(path)
    return {
        key: list(file.iterate(value)) if isinstance(value, Section) else value
        for key, value in file.head.items()
    }


@settings(max_examples=60, deadline=None)
@given(
    data=objects,
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    mark=st.booleans(),
)
def test_equals_json_loads_for_any_size_of_the_pieces(
    data, chunk, indent, ascii_only, mark, tmp_path_factory
):
    path = tmp_path_factory.mktemp("json") / "x.json"
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    path.write_text(text, encoding="utf-8-sig" if mark else "utf-8", errors="surrogatepass")
    before, json_stream.CHUNK = json_stream.CHUNK, chunk
    try:
        assert read(path, data) == json.loads(text)
        assert list(read(path, data)) == list(json.loads(text))
    finally:
        json_stream.CHUNK = before


def test_a_list_at_the_top(tmp_path):
    (tmp_path / "x.json").write_text(" [1, 22, {}]\n")
    file = JsonFile(tmp_path / "x.json")
    assert list(file.iterate(file.rows)) == [1, 22, {}]


def test_not_a_number_is_read_so_that_its_place_can_be_named(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [NaN, -Infinity]}')
    file = JsonFile(tmp_path / "x.json")
    assert str(list(file.iterate(file.head["images"]))) == "[nan, -inf]"


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expecting value at byte 0"),
        ("{", "expecting a key"),
        ('{"a" 1}', "expecting ':' at byte 5"),
        ('{"a": 1,}', "after a comma"),
        ('{"images": [1 2]}', "expecting ',' at byte 14"),
        ('{"images": [1,]}', "after a comma"),
        ('{"images": [1', "expecting ','"),  # cut off
        ('{"images": [{"id": 1}, {"id', "byte 23"),  # cut off in an element
        ('{"a": 1} x', "extra data at byte 9"),
        ('{"images": [1], "a": 1, "images": []}', "'images' occurs twice"),  # json.loads: no images
        ("7", "holds no JSON object"),
        ("nul", "expecting value"),
        ('{"images": [' + "[" * 100_000, "recursion"),
    ],
)
def test_malformed_text_is_one_clear_error(text, problem, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=rf"x\.json.*{problem}.*Remedy"):
        JsonFile(tmp_path / "x.json")


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="not valid JSON"):
        JsonFile(tmp_path / "x.json")
    with pytest.raises(DataError, match="does not exist"):
        JsonFile(tmp_path / "y.json")
    with pytest.raises(DataError, match="cannot be read"):
        JsonFile(tmp_path)
