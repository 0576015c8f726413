"""Programs, and edits of their source: the faults that people make, and what looks odd but is sound."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomllib

from attnwatch import TrainingCheckup

SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Edit:
    """A program, or a program after an edit of its source.

    Attributes:
        program: name of its file in `scripts`.
        name: of the edit; "as it is" for none.
        kinds: findings that name the fault, its cause first; none for sound programs.
        replacements: texts that occur once in the program, each with what takes its place.
    """

    program: str
    name: str = "as it is"
    kinds: tuple[str, ...] = ()
    replacements: tuple[tuple[str, str], ...] = ()

    def source(self) -> str:
        """Return the edited source of the program.

        Raises:
            ValueError: a text occurs not once in the program.
        """
        source = (SCRIPTS / f"{self.program}.py").read_text()
        for before, after in self.replacements:
            if source.count(before) != 1:
                raise ValueError(f"{self.program}, {self.name}: {before!r} occurs {source.count(before)} times")
            source = source.replace(before, after)
        return source


def all_edits() -> list[Edit]:
    """Return each program as it is, then its faults and oddities in the order of its file."""
    return [edit for path in sorted(SCRIPTS.glob("*.py")) for edit in _edits_of(path)]


def _edits_of(path: Path) -> Sequence[Edit]:
    declared = tomllib.loads(path.with_suffix(".toml").read_text())
    faults = [
        Edit(path.stem, each["name"], tuple(each["kinds"]), _replacements(each)) for each in declared.get("fault", [])
    ]
    odd = [Edit(path.stem, each["name"], (), _replacements(each)) for each in declared.get("sound", [])]
    return [Edit(path.stem), *faults, *odd]


def _replacements(declared: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs `before` and `after`, `before_2` and `after_2`, and so on."""
    return tuple(
        (text, declared[key.replace("before", "after")]) for key, text in declared.items() if key.startswith("before")
    )


def load(edit: Edit, folder: Path) -> Callable[[int], TrainingCheckup]:
    """Import the edited program from a file in a folder, and return its `train`."""
    name = "edited_program"
    file = folder / f"{name}.py"
    file.write_text(edit.source())
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    train: Callable[[int], TrainingCheckup] = module.train
    return train
