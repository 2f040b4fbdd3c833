"""`fedhet new`: a plug-in to begin with, in the user's own folder: a file that works, its option and its test."""

from __future__ import annotations

import difflib
import keyword
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from string import Template

from fedhet.config import composition, overrides
from fedhet.errors import InputError
from fedhet.provenance import source_tree

AXES = {
    "rule": "rule", "schedule": "schedule", "space": "space", "transform": "codec", "work": "work", "model": "model",
    "data": "data", "transport": "transport",
}  # fmt: skip
"""Kind of plug-in to the axis that chooses it. A transform may be moved to conf/optimizer, staleness or privacy."""
TEMPLATES = Path(__file__).parent / "templates"
TAKEN = frozenset({"conftest", *sys.stdlib_module_names, *source_tree.PACKAGES})


def new(kind: str, name: str, into: Path) -> None:
    """Write NAME.py, conf/AXIS/NAME.yaml and test_NAME.py below `into`; print them and what to do next.

    Raises InputError for an unknown kind, a name that cannot be one, and files that exist; then nothing is written.
    """
    if kind not in AXES:
        near = difflib.get_close_matches(kind, AXES, 1)
        raise InputError(f"fedhet new {kind}: there is {', '.join(AXES)}{f' (nearest: {near[0]})' if near else ''}")
    if into.exists() and not into.is_dir():
        raise InputError(f"--into {into} is a file: name a folder")
    if wrong := _wrong(kind, name, into):
        raise InputError(f"{name!r} {wrong} (nearest: {_nearest(kind, name, into)})")
    files = _files(kind, name)
    written: list[Path] = []
    try:
        for path, text in files.items():
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            with (into / path).open("x", encoding="utf-8") as file:
                written.append(into / path)
                file.write(text)
    except OSError:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise
    for path in written:
        print(path)
    there = "" if into == Path() else f"cd {into} && "
    print(f"next: {there}fedhet run --config-dir conf {AXES[kind]}={name} debug=quick")
    print(f"      {there}python -m pytest test_{name}.py")


def _files(kind: str, name: str) -> Mapping[Path, str]:
    """Path inside the folder to text."""
    source = Template((TEMPLATES / f"{kind}.py.txt").read_text(encoding="utf-8"))
    made = _class(name)
    if re.search(rf"\b{made}\b", source.template):  # a word of the file itself
        made += kind.capitalize()
    words = {"NAME": name, "CLASS": made, "KIND": kind, "GIVEN": made if kind == "model" else f"{made}()"}
    option = Template((TEMPLATES / f"{kind}.yaml.txt").read_text(encoding="utf-8"))
    test = Template((TEMPLATES / "test.py.txt").read_text(encoding="utf-8"))
    return {
        Path(f"{name}.py"): source.substitute(words),
        Path("conf", AXES[kind], f"{name}.yaml"): option.substitute(words),
        Path(f"test_{name}.py"): test.substitute(words),
    }


def _class(name: str) -> str:
    """The class in a module: NormWeighted in norm_weighted; a name with capitals stays what it is."""
    return name if name != name.lower() else "".join(part.capitalize() for part in name.split("_"))


def _wrong(kind: str, name: str, into: Path) -> str:
    """Why a plug-in cannot have this name; empty if it can."""
    axis = AXES[kind]
    if not name.isidentifier() or not name.isascii():
        return "is no name for a Python module: letters, digits and _, not beginning with a digit"
    if keyword.iskeyword(name):
        return "is a word of Python's own"
    if not _class(name).isidentifier():
        return "leaves no name for a class"
    if not isinstance(overrides.parse([f"{axis}={name}"])[0].value(), str):
        return f"is a value and no text in {axis}={name}"
    conf = into / "conf"
    if name in composition.options(conf if conf.is_dir() else None).get(axis, ()):
        return f"is an option of {axis} already"
    files = (Path(f"{name}.py"), Path("conf", axis, f"{name}.yaml"), Path(f"test_{name}.py"), Path(name))
    if there := [str(into / path) for path in files if (into / path).exists()]:
        return f"would overwrite or hide {there[0]}"
    if name in TAKEN or source_tree.source_of(name) is not None:
        return "is another module, which `import` would find instead"
    return ""


def _nearest(kind: str, name: str, into: Path) -> str:
    """A name like it that can be one."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or kind
    names = [plain, f"my_{plain}", *(f"my_{plain}_{number}" for number in range(2, 1000))]
    return next((one for one in names if not _wrong(kind, one, into)), f"my_{kind}")
