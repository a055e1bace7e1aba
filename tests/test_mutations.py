"""The mutations of `mutations.py` fit the source as it is. (Whether tests notice them takes minutes: run that file.)"""

import ast

import pytest

from tests import mutations
from tests.mutations import MUTATIONS, ROOT
from tests.patterns import find, replaced


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_in_one_place_and_can_be_read(mutation):
    path, text = mutations.mutated(mutation)
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_must_notice_it_exists(mutation):
    assert mutation.tests
    for test in mutation.tests:
        file, _, function = mutations.where(test).partition("::")
        assert (ROOT / file).read_text(encoding="utf-8").count(f"def {function}(") == 1


def test_names_are_distinct():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


SOURCE = """
class A:
    def f(self, x):
        y = g(x + 1,  # a comment, é
              key="v")
        if y: return h(y).t + 1


def f(x):
    return h(x)
"""


@pytest.mark.parametrize(
    ("where", "old", "new", "expected"),
    [
        ("A.f", "h(_1).t", "h(_1, _1)", "if y: return (h(y, y)) + 1\n"),
        ("A", "g(..., key='v')", "k(0, ..., key=None)", "y = (k(0, x + 1, key=None))\n"),
        ("", "_1 = g(...)\nif _1: return _2", "_1 = 0", "        y = 0\n\n"),
        ("", "_1._2 + 1", "_1._2", "if y: return (h(y).t)\n"),
        ("A.f", "return _1", "pass", "if y: pass\n"),
    ],
)
def test_a_pattern_is_found_however_it_is_written(tmp_path, where, old, new, expected):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "moved.py").write_text(SOURCE, encoding="utf-8")
    (place,) = find(tmp_path, where, old)
    text = replaced(place, new)
    assert expected in text and text.endswith("def f(x):\n    return h(x)\n")


@pytest.mark.parametrize(("where", "old", "count"), [("f", "h(_1)", 2), ("A", "h(x)", 0), ("B", "h(_1)", 0)])
def test_as_many_places_as_there_are(tmp_path, where, old, count):
    (tmp_path / "one.py").write_text(SOURCE, encoding="utf-8")
    assert len(find(tmp_path, where, old)) == count
