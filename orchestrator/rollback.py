"""I/O: finds the files of an earlier generation: those that were kept, else from git, and only if they are the same.

They are brought into a directory of their own; the user's files are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from orchestrator.journal import Generation, Journal, known_numbers
from orchestrator.revisions import files_at
from orchestrator.snapshots import SNAPSHOTS_KEPT, Files, Snapshots, files_digest, read_files
from schemas.compose import compose, shown_path
from schemas.problems import ConfigurationError
from schemas.stack import Stack


class RollbackError(Exception):
    """There is nothing to go back to; the text says what there is."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The files of one generation."""

    generation: Generation
    place: Path
    """A directory that has them."""
    files: Files
    is_current: bool
    """The files in the user's directory are the same."""


def recover(journal: Journal, snapshots: Snapshots, conf: Path, number: int) -> Recovered:
    """Bring the files of a generation into a directory; raises `RollbackError`."""
    generation = journal.find(number)
    if generation is None:
        known = known_numbers(each for each in journal.latest() if each.files is not None)
        raise RollbackError(f"There is no generation {number}. There are: {known or 'none'}.")
    if generation.files is None:
        reason = "took the stack down" if generation.command.startswith("down") else "has no record of its files"
        raise RollbackError(f"Generation {number} {reason}: there are no files to go back to.")
    files = _find(snapshots, generation)
    if files is None:
        where = "its files had uncommitted changes" if generation.is_dirty else "they are not in the repository"
        raise RollbackError(
            f"The files of generation {number} are gone: those of the last {SNAPSHOTS_KEPT} are kept, and {where}."
        )
    try:
        is_current = files_digest(read_files(conf, generation.names)) == generation.files
    except OSError:
        is_current = False
    return Recovered(generation, snapshots.keep(files), files, is_current)


def compose_recovered(recovered: Recovered, conf: Path, stack: str) -> Stack:
    """Compose the files of a generation with its overrides; raises `ConfigurationError` that names their revision."""
    generation = recovered.generation
    try:
        return compose(recovered.place, stack, generation.overrides).stack
    except ConfigurationError as error:
        of = f"generation {generation.generation}"
        if generation.revision is not None and not generation.is_dirty:
            of = generation.revision
        here, there = str(shown_path(recovered.place)), str(shown_path(conf))
        problems = [
            problem.model_copy(update={"file": f"{of}:{there}{problem.file.removeprefix(here)}"})
            if problem.file.startswith(here)
            else problem
            for problem in error.problems
        ]
        raise ConfigurationError(problems) from error


def forget_old(journal: Journal, snapshots: Snapshots) -> None:
    """Remove the files that none of the last generations was made from; those in force belong to the last one."""
    recent = [generation.files for generation in islice(journal.latest(), SNAPSHOTS_KEPT)]
    snapshots.prune({digest for digest in recent if digest is not None})


def _find(snapshots: Snapshots, generation: Generation) -> Files | None:
    assert generation.files is not None  # noqa: S101 - asked by the caller
    if snapshots.has(generation.files):
        return read_files(snapshots.place(generation.files), generation.names)
    if generation.commit is None:
        return None
    files = files_at(Path(generation.owner), generation.commit, generation.names)
    return files if files is not None and files_digest(files) == generation.files else None
