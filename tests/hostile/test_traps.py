"""The traps of the hostile programs are real: torch runs into each, and tieops into none."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import tieops
from tests.hostile.case import all_cases
from tests.hostile.cases_programs import TRAPS


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")  # a view is saved
@pytest.mark.parametrize("name", TRAPS)
def test_torch_runs_what_tieops_does_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = all_cases()[name]
    monkeypatch.chdir(tmp_path)  # where a trap leaves the file that tells of it
    path = case.build(tmp_path)
    if case.words is None:
        tieops.from_torch(path)
    else:
        with pytest.raises(tieops.TieopsError) as caught:
            tieops.from_torch(path)
        assert all(word in str(caught.value) for word in case.words)
    assert not Path("hit").exists()
    # What comes after a trap went off is no program any more.
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(path).module()
    assert Path("hit").exists()
