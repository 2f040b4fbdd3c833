"""Overrides (`key=value`) of the command line: parsing, checks against the configuration, and products of sweeps.

Grammar and parser are Hydra's; the added checks name the key, the value, and the nearest existing name.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedhet import former_names
from fedhet.errors import ConfigError

LIST_HINT = "`fedhet list` shows every option"
TRANSFORM_AXES = ("optimizer", "staleness", "privacy", "codec")
"""Axes that may have several transforms, each under a name of its own."""
HIDDEN = ("hydra",)
"""Hydra's own groups, which Hydra checks itself."""

NULLABLE_KEYS: dict[str, int | float] = {
    "stop.versions": 0, "stop.seconds": 0.0, "stop.tasks": 0, "stop.target": 0.0, "timeout": 0.0, "max_weight": 0.0,
    "gate.clip": 0.0, "gate.per_buffer": 0, "gate.suspend_seconds": 0.0,
}  # fmt: skip
"""Keys outside the axes whose default may be null, each with an example value of its type."""


def parse(texts: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar. Raises ConfigError with the one that does not parse."""
    parser, parsed = OverridesParser.create(), []
    for text in former_names.overrides(texts):
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"{text!r} is not an override: write key=value, such as seed=3 or strategy=fedbuff")
        try:
            one = parser.parse_override(text)
        except HydraException as error:
            lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See http"))]
            reason = lines[0].partition(" expecting {")[0] if lines else "not key=value"
            hint = "quote text with special characters, as in 'key=\"a b\"'"
            raise ConfigError(f"{text!r} does not parse ({reason}); {hint}") from None
        if not isinstance(one.key_or_group, str) or one.key_or_group in ("", "None"):
            raise ConfigError(f"{text!r} has no key: write key=value")
        parsed.append(one)
    return parsed


def sweeps(texts: Sequence[str]) -> list[str]:
    """The keys with more than one value. Raises ConfigError."""
    return [o.key_or_group for o in parse(texts) if o.is_sweep_override()]


def product(texts: Sequence[str]) -> list[list[str]]:
    """Every combination of comma lists and ranges, the last key changing fastest. Raises ConfigError."""
    choices: list[list[str]] = []
    for text, one in zip(texts, parse(texts), strict=True):
        if not one.is_sweep_override():
            choices.append([text])
        elif one.is_discrete_sweep() or one.is_range_sweep():
            key = text.partition("=")[0]
            choices.append([f"{key}={value}" for value in one.sweep_string_iterator()])
        else:
            raise ConfigError(f"{text!r} has no finite list of values: write {one.key_or_group}=a,b,c")
    return [list(combination) for combination in itertools.product(*choices)]


def groups(conf: Path) -> dict[str, list[str]]:
    """Every group under a configuration folder with its options, both sorted."""
    found: dict[str, list[str]] = {}
    for path in sorted(conf.glob("*/**/*.yaml")):
        inside = path.relative_to(conf)
        found.setdefault(inside.parent.as_posix(), []).append(inside.stem)
    return found


def check_choices(parsed: Iterable[Override], known: Mapping[str, list[str]]) -> None:
    """Check that chosen options exist. Raises ConfigError with the nearest option."""
    for one in parsed:
        group, value = one.key_or_group.partition("@")[0], one.value()
        if group not in known or one.is_sweep_override():
            continue
        if one.is_delete():
            raise ConfigError(f"~{group}: an axis cannot be removed; some have an option none. {LIST_HINT}")
        if one.type is OverrideType.ADD:
            raise ConfigError(f"+{group}: {group} is there already; write {group}={value}")
        if value is None or not isinstance(value, str | int | float):
            raise ConfigError(
                f"{group}={_value_text(value)}: name one option ({_shortened(known[group])}); a value inside is set as "
                f"{group}.KEY=VALUE. {LIST_HINT}"
            )
        if str(value) not in known[group]:
            raise ConfigError(
                f"{one.input_line}: there is no {group} {str(value)!r}{nearest(str(value), known[group])}; "
                f"there are {_shortened(known[group])}. `fedhet list {group}` describes them"
            )


def check_values(parsed: Iterable[Override], cfg: DictConfig, known: Mapping[str, list[str]]) -> None:
    """Check that keys exist and values have the types of their defaults. Raises ConfigError with the nearest key."""
    keys = list(dict.fromkeys([*flat(cfg), *known]))
    for one in parsed:
        key = one.key_or_group
        if key in known or key.partition(".")[0] in HIDDEN or "@" in key:
            continue
        if one.is_delete():
            raise ConfigError(f"~{key}: a key cannot be removed; set it to null where that is allowed")
        if key not in keys:
            if one.type in (OverrideType.ADD, OverrideType.FORCE_ADD) and may_be_added(key, cfg, keys):
                continue
            told = f"{key}={_value_text(one.value())}: there is no key {key!r}{nearest(key, keys)}"
            raise ConfigError(f"{told}. {_list_hint(key, known)}")
        default = OmegaConf.select(cfg, key)
        if key in NULLABLE_KEYS and default is None:
            default = NULLABLE_KEYS[key]
        wanted = mismatch(default, one.value())
        if wanted:
            raise ConfigError(f"{key}={_value_text(one.value())}: needs {wanted}")


def may_be_added(key: str, cfg: DictConfig, keys: Sequence[str]) -> bool:
    """Whether a key that the configuration lacks is used by something: a parameter of its parent's class, anything
    inside a parameter that is a mapping, or a further transform of a slot.

    Raises ConfigError with the nearest parameter if the parent's class has no such parameter.
    """
    path = key.split(".")
    above = [".".join(path[:k]) for k in range(1, len(path))]
    there = [name for name in above if isinstance(OmegaConf.select(cfg, name), DictConfig)]
    built = [name for name in there if "_target_" in OmegaConf.select(cfg, name)]
    if not there:
        return False
    if not built:
        return there[-1] in TRANSFORM_AXES
    if built[-1] != there[-1]:
        return True
    target, name = str(OmegaConf.select(cfg, built[-1])["_target_"]), path[len(built[-1].split("."))]
    taken = parameters(target)
    if taken is not None and name not in taken:
        own = target.rpartition(".")[2]
        raise ConfigError(f"{key}: {own} has no parameter {name!r}{nearest(name, taken)}. {_list_hint(key, cfg)}")
    return f"{built[-1]}.{name}" not in keys  # a plain value has no keys inside


def parameters(target: str) -> list[str] | None:
    """The parameter names of a class or function; None if it accepts any, or cannot be imported or inspected."""
    try:
        found = inspect.signature(get_object(target)).parameters
    except (ImportError, ValueError, TypeError, HydraException):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in found.values()):
        return None
    return list(found)


def mismatch(default: Any, value: Any) -> str:
    """What a value should be, as text, if it does not have the type of the default; "" if it does."""
    if default is None or value is None or (isinstance(value, str) and value.startswith("${")):
        return ""  # an optional value: its part checks it
    if isinstance(default, DictConfig):
        return "" if isinstance(value, dict | DictConfig) else "a mapping; set one key inside it as KEY.INNER=VALUE"
    if isinstance(default, list | tuple | ListConfig):
        return "" if isinstance(value, list | tuple | ListConfig) else "a list, such as [1,2]"
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if isinstance(value, int) and not isinstance(value, bool) else "an integer"
    if isinstance(default, float):
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    return "" if not isinstance(value, list | dict) else "a text"


def flat(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, parents before their children."""
    for key in map(str, cfg):
        if prefix == "" and key in HIDDEN:
            continue
        yield f"{prefix}{key}"
        inner = cfg._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none():
            yield from flat(inner, f"{prefix}{key}.")


def _list_hint(key: str, known: Container[str]) -> str:
    head = key.partition(".")[0]
    more = f", `fedhet list {head}` its options" if head in known else ""
    return f"`fedhet run --cfg job` shows every key{more}"


def nearest(word: str, words: Iterable[str]) -> str:
    """The nearest existing words, in brackets: siblings of the key first, then equal last parts, then by spelling."""
    pool = [w for w in dict.fromkeys(words) if not w.endswith("_target_")]
    head, _, last = word.rpartition(".")
    siblings = [w for w in pool if head and w.startswith(head + ".")]
    near = (
        difflib.get_close_matches(word, siblings, 3, 0.75)
        or siblings[:8]
        or [w for w in pool if "." in w and w.rpartition(".")[2] == last][:3]
        or difflib.get_close_matches(word, pool, 3, 0.6)
    )
    return f" (nearest: {', '.join(near)})" if near else ""


def _shortened(words: Sequence[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def _value_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
