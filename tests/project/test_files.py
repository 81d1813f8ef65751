"""Readers of stored files: a value of another shape is named with its file, line, key and remedy."""

from pathlib import Path
from typing import Any

import pytest

from metatuner.errors import UserError
from metatuner.files import NUMBER, read_csv, read_json, read_lines

SHAPE = {"name": str, "rows": [{"n": NUMBER, "note?": (str, type(None))}], "by": {"*": {"ok": bool}}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ('{"name": "a", "by": {}}', "key 'rows' is missing"),
        ('{"name": 3, "rows": [], "by": {}}', "key 'name': a text is needed, not 3"),
        ('{"name": "a", "rows": {}, "by": {}}', "key 'rows': no JSON list"),
        ('{"name": "a", "rows": [{"n": 1}, {}], "by": {}}', "key 'rows.1': key 'n' is missing"),
        ('{"name": "a", "rows": [{"n": null}], "by": {}}', "key 'rows.0.n': a number is needed, not null"),
        ('{"name": "a", "rows": [{"n": true}], "by": {}}', "key 'rows.0.n': a number is needed, not true"),
        ('{"name": "a", "rows": [{"n": NaN}], "by": {}}', "key 'rows.0.n': a finite number is needed, not nan"),
        (
            '{"name": "a", "rows": [{"n": 1, "note": 2}], "by": {}}',
            "key 'rows.0.note': a text or null is needed, not 2",
        ),
        ('{"name": "a", "rows": [], "by": {"x": {"ok": 1}}}', "key 'by.x.ok': true or false is needed, not 1"),
        ('{"name": "a"', "line 1: not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
    ],
)
def test_json_of_another_shape_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_json(path, "mend it", SHAPE)
    assert says in str(error.value)
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith("; mend it")
    assert "\n" not in str(error.value)


def test_json_of_the_shape_is_read_with_whatever_else_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"name": "a", "rows": [{"n": 1.5, "note": null, "m": 2}], "by": {"x": {"ok": true}}, "more": 1}')
    found: Any = read_json(path, "mend it", SHAPE)
    assert found["rows"] == [{"n": 1.5, "note": None, "m": 2}]
    assert found["more"] == 1


def test_a_line_of_another_shape_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line, says in (("3", "line 2: an object is needed"), ("{", "line 2: not valid JSON")):
        path.write_text(f'{{"n": 1}}\n{line}\n')
        with pytest.raises(UserError, match=says):
            read_lines(path, "mend it")
    path.write_text('{"n": 1}\n{"n": "1"}\n')
    with pytest.raises(UserError, match=r"line 2, key 'n': a number is needed, not \"1\"; mend it"):
        read_lines(path, "mend it", {"n": NUMBER})


@pytest.mark.parametrize("field", ["", "x", "nan", "inf", "1,2"])
def test_a_field_that_is_no_number_is_named_with_its_row(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'n,m\n1,2\n"{field}",2\n')
    with pytest.raises(UserError, match=r"row 3: n .* is no finite number; mend it"):
        read_csv(path, ("m",), "mend it", ("n",))
    assert read_csv(path, ("m",), "mend it")[1] == {"n": field, "m": "2"}
