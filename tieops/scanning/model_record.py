"""What a scan records of one model: a frozen record, and a line of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tieops.errors import TieopsError
from tieops.ir.evidence import Evidence
from tieops.ir.notation import brief_bytes, counted, printable

__all__ = ["Failure", "FileMark", "FoundDuplicate", "FoundTie", "ScanRecord"]


@dataclass(frozen=True)
class FileMark:
    """A file that a record tells of, as it was then.

    Args:
        path: Its path or URL.
        size: Bytes.
        mark: What changes with its content: a time, an ETag; empty where nobody says.
    """

    path: str
    size: int
    mark: str


@dataclass(frozen=True)
class FoundTie:
    """A parameter that several layers read.

    Args:
        names: Every name of it.
        slots: What reads it, as ``layer.role``.
        saved_bytes: What the tie saves in the file.
    """

    names: tuple[str, ...]
    slots: tuple[str, ...]
    saved_bytes: int


@dataclass(frozen=True)
class FoundDuplicate:
    """Stored tensors of equal content.

    Args:
        names: The tensors; the first is the one that ``tie`` would keep.
        wasted_bytes: What joining them would save.
        evidence: ``content``: compared bit for bit; ``storage``: one range of bytes; ``samples``:
            equal wherever it was looked, which is likely and not known.
        held_back: Why ``tie`` does not join it unless it is asked to; empty where it does.
    """

    names: tuple[str, ...]
    wasted_bytes: int
    evidence: str
    held_back: str


@dataclass(frozen=True)
class Failure:
    """Why a model could not be looked at: the parts of a tieops error.

    Args:
        kind: The error's class.
        what: What went wrong.
        facts: What was found, label and text.
        fix: What to do about it; empty where nothing is known.
    """

    kind: str
    what: str
    facts: tuple[tuple[str, str], ...]
    fix: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the parts of an error; of one that is not tieops's, what Python says.

        Args:
            error: The error.
        """
        kind = type(error).__name__
        if isinstance(error, TieopsError):
            facts = tuple((label, str(fact)) for label, fact in error.facts.items())
            return cls(kind, error.what, facts, error.fix or "")
        said = str(error).split("\n")[0][:500]
        if isinstance(error, MemoryError):
            return cls(kind, "there was not enough memory", (), "allow it more")
        return cls(
            kind,
            "unexpected error inside tieops",
            (("Python says", f"{kind}: {said}"),),
            "please report this",
        )


@dataclass(frozen=True)
class ScanRecord:
    """What a scan found in one model.

    Args:
        path: The model's path or URL.
        files: It and its data files, as they were.
        parameters: How many learnables and tables it stores.
        stored_bytes: Bytes of all stored tensors, each range once.
        ties: What is shared, the largest saving first.
        duplicates: What is stored twice, the largest waste first.
        whole: Whether large tensors of a remote file were read whole where they may be equal.
        read_bytes: What was read of a remote model; 0 for files of this machine, which are mapped.
        seconds: How long it took.
        error: Why nothing is known of it, or None.
    """

    path: str
    files: tuple[FileMark, ...] = ()
    parameters: int = 0
    stored_bytes: int = 0
    ties: tuple[FoundTie, ...] = ()
    duplicates: tuple[FoundDuplicate, ...] = ()
    whole: bool = False
    read_bytes: int = 0
    seconds: float = 0.0
    error: Failure | None = None

    @property
    def saved_bytes(self) -> int:
        """What its ties save."""
        return sum(tie.saved_bytes for tie in self.ties)

    @property
    def wasted_bytes(self) -> int:
        """What is known to be stored twice and would be joined: constants and the like are not."""
        known = (each for each in self.duplicates if each.evidence != Evidence.SAMPLES)
        return sum(each.wasted_bytes for each in known if not each.held_back)

    @property
    def likely_wasted_bytes(self) -> int:
        """What was equal wherever it was looked, and was not read whole."""
        likely = (each for each in self.duplicates if each.evidence == Evidence.SAMPLES)
        return sum(each.wasted_bytes for each in likely)

    def to_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        data = asdict(self)
        if self.error is not None:
            data["error"]["facts"] = dict(self.error.facts)
        sums = ("saved_bytes", "wasted_bytes", "likely_wasted_bytes")
        return data | {name: getattr(self, name) for name in sums}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScanRecord:
        """Return the record that ``to_dict`` made this of.

        Args:
            data: The data; sums are computed again.

        Raises:
            KeyError: If a part is missing.
            TypeError: If a part is of another kind.
        """
        error = data["error"]
        return cls(
            path=str(data["path"]),
            files=tuple(FileMark(**each) for each in data["files"]),
            parameters=int(data["parameters"]),
            stored_bytes=int(data["stored_bytes"]),
            ties=tuple(
                FoundTie(tuple(each["names"]), tuple(each["slots"]), int(each["saved_bytes"]))
                for each in data["ties"]
            ),
            duplicates=tuple(
                FoundDuplicate(**(each | {"names": tuple(each["names"])}))
                for each in data["duplicates"]
            ),
            whole=bool(data["whole"]),
            read_bytes=int(data["read_bytes"]),
            seconds=float(data["seconds"]),
            error=error and Failure(**(error | {"facts": tuple(error["facts"].items())})),
        )

    def __str__(self) -> str:
        name = printable(self.path)
        if self.error is not None:
            return f"{name}: {printable(self.error.what)}"
        likely = self.likely_wasted_bytes
        more = f", {brief_bytes(likely)} more likely" if likely else ""
        return (
            f"{name}: {counted(len(self.ties), 'tie')}, {brief_bytes(self.stored_bytes)} stored, "
            f"{brief_bytes(self.wasted_bytes)} wasted{more}"
        )
