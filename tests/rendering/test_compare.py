"""Before and after: what changed is told in words and marked, and colours stay."""

from __future__ import annotations

import pytest

import tieops
from fixtures.gallery import seed_network
from tieops.rendering.picture import picture_of
from tieops.rendering.picture_changes import compared


@pytest.fixture(scope="module")
def seed() -> tieops.TiedModel:
    return seed_network()


def told(before: tieops.TiedModel, after: tieops.TiedModel):
    return compared(picture_of(before), picture_of(after))


def statuses(picture) -> dict[str, str]:
    return {box["name"]: box["status"] for box in picture["boxes"] if box["status"]}


def test_a_new_head(seed):
    wide = tieops.replace_head(seed, "fc", out_features=15, name="fcNew")
    small = tieops.remove_disconnected_outputs(wide)
    data = told(seed, small)
    assert data["changes"] == [
        "fc.weight, output emb/weights no longer read emb.weight",
        "gone: layer fc",
        "new: layer fcNew (weight f32[300,15], bias f32[15])",
        "gone: output emb/weights",
        "before: 5.29 MB read, 4.09 MB stored; after: 4.11 MB read, 4.11 MB stored",
    ]
    before, after = data["pictures"]
    assert statuses(before) == {"fc": "gone", "emb/weights": "gone", "probabilities": "changed"}
    assert statuses(after) == {"fcNew": "new", "probabilities": "changed"}


def test_an_untied_head_has_a_copy_of_its_own(seed):
    data = told(seed, tieops.untie(seed, "fc"))
    assert (
        "fc.weight no longer reads emb.weight and has a copy: fc.weight f32[300,1000]"
        in data["changes"]
    )


def test_tying_and_untying_are_told_the_other_way_round(seed):
    free = tieops.remove_disconnected_outputs(tieops.untie(seed))
    data = told(free, tieops.tie(free))
    assert "fc.weight now reads emb.weight" in data["changes"]


def test_a_parameter_keeps_its_mark(seed):
    for before, after in ((seed, tieops.untie(seed)), (tieops.untie(seed), seed)):
        first, second = told(before, after)["pictures"]
        marks = [
            {each["names"][0]: each["mark"] for each in picture["parameters"]}
            for picture in (first, second)
        ]
        assert marks[0]["emb.weight"] == marks[1]["emb.weight"] == 0
        assert [mark for mark in marks[0].values() if mark >= 0] == [0]


def test_nothing_changed(seed):
    data = told(seed, seed)
    assert data["changes"] == ["Nothing changed: the same layers read the same parameters."]
    assert statuses(data["pictures"][0]) == {}
