"""The mutations of `mutations.py` fit the source as it is. (Whether tests notice them takes minutes: run that file.)"""

import ast

import mutations
import pytest
from mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_in_one_place_and_can_be_read(mutation):
    assert mutations.fault(mutation) == ""
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    mutated = source.replace(mutation.old, mutation.new)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_must_notice_it_exists(mutation):
    assert mutation.tests
    for test in mutation.tests:
        file, _, function = mutations.where(test).partition("::")
        assert (ROOT / file).read_text(encoding="utf-8").count(f"def {function}(") == 1


def test_names_are_distinct():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
