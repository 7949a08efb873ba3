"""Errors: one tree, three parts, and what other code may rely on."""

from __future__ import annotations

import inspect
import pickle

import pytest

from tieops import errors
from tieops.errors import TieopsError

TREE = {
    name: each for name, each in vars(errors).items() if inspect.isclass(each) and name[0] != "_"
    if issubclass(each, TieopsError)
}  # fmt: skip
BUILT_IN = {
    "SelectionError": LookupError,
    "VerificationError": AssertionError,
    "MissingDependencyError": ImportError,
}


def test_every_error_is_in_the_tree_and_exported():
    assert sorted(TREE) == sorted(errors.__all__)
    assert len(TREE) == 11
    assert issubclass(errors.TieMismatchError, errors.PreconditionError)


@pytest.mark.parametrize("name", sorted(TREE))
def test_an_error_renders_what_the_facts_and_the_fix(name):
    facts = {"a": "f32[2,3]", "b": 4}
    error = TREE[name]("it broke", facts, "change it")
    assert str(error) == "it broke\n  a: f32[2,3]    b: 4\n  fix: change it"
    assert (error.what, error.facts, error.fix) == (
        "it broke",
        {"a": "f32[2,3]", "b": 4},
        "change it",
    )
    assert str(TREE[name]("it broke")) == "it broke"
    assert str(TREE[name]("it broke", None, "change it")) == "it broke\n  fix: change it"
    assert str(TREE[name]("it broke", {"a": 1})) == "it broke\n  a: 1"
    assert TREE[name].__doc__


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_an_error_is_also_what_python_calls_it(name):
    assert issubclass(TREE[name], BUILT_IN[name])
    with pytest.raises(BUILT_IN[name]):
        raise TREE[name]("it broke", {"a": 1}, "change it")


def test_many_facts_stand_below_each_other():
    facts = {f"fact {index}": "x" * 30 for index in range(4)}
    lines = str(TieopsError("it broke", facts, "change it")).splitlines()
    assert lines == ["it broke", *(f"  fact {i}: {'x' * 30}" for i in range(4)), "  fix: change it"]


def test_facts_are_a_copy():
    facts: dict[str, object] = {"a": 1}
    error = TieopsError("it broke", facts)
    facts["a"] = 2
    assert error.facts == {"a": 1}


@pytest.mark.parametrize("name", sorted(TREE))
def test_an_error_crosses_processes_whole(name):
    error = TREE[name]("it broke", {"a": 1}, "change it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
