"""Named things found by name: passes and backends, tiacc's own and those of other packages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from tiacc.errors import RegistryError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from name to object, filled by a decorator and by the entry points of installed packages.

    Entry points are read on the first look-up that the table itself cannot answer, so that importing tiacc stays cheap.

    Args:
        kind: What the table holds, in the singular, as error messages name it: ``"pass"``.
        group: The entry-point group, ``"tiacc.passes"``.
        convert: Makes what the table holds of what an entry point names; raises where it cannot.
    """

    def __init__(self, kind: str, group: str, convert: Callable[[Any], T] | None = None) -> None:
        self.kind = kind
        self.group = group
        self._convert = convert
        self._items: dict[str, T] = {}
        self._is_loaded = False
        self._failures: dict[str, str] = {}

    def register(self, name: str, *, replace: bool = False) -> Callable[[T], T]:
        """Return a decorator that registers its argument under `name`.

        Raises:
            RegistryError: `name` is taken by another object and `replace` is false.
        """

        def add(item: T) -> T:
            known = self._items.get(name)
            if known is not None and not replace and _identity(known) != _identity(item):
                raise RegistryError(
                    f"the {self.kind} name {name!r} is taken by {_identity(known)}; "
                    f"choose another name for {_identity(item)}, or register with replace=True"
                )
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """Return what is registered under `name`.

        Raises:
            RegistryError: Nothing is; the message lists the names and the closest one.
        """
        if name not in self._items:
            self._load_entry_points()
        try:
            return self._items[name]
        except KeyError:
            pass
        if name in self._failures:
            raise RegistryError(f"the {self.kind} {name!r} is installed but failed to import: {self._failures[name]}")
        close = difflib.get_close_matches(name, self._items, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise RegistryError(f"no {self.kind} is named {name!r}{hint} Known: {', '.join(sorted(self._items)) or 'none'}")

    def names(self) -> tuple[str, ...]:
        """Return the registered names in alphabetical order."""
        self._load_entry_points()
        return tuple(sorted(self._items))

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield name and object, in alphabetical order of the names."""
        for name in self.names():
            yield name, self._items[name]

    def failures(self) -> dict[str, str]:
        """Return the entry points that could not be imported, each with its error."""
        self._load_entry_points()
        return dict(self._failures)

    def _load_entry_points(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        for point in entry_points(group=self.group):
            if point.name in self._items:
                continue
            try:
                item = point.load()
                if self._convert is not None:
                    item = self._convert(item)
            except Exception as error:  # noqa: BLE001 - a broken plugin must not break tiacc; get() reports it by name
                self._failures[point.name] = f"{type(error).__name__}: {error}"
                continue
            own = getattr(item, "name", point.name)
            if own != point.name:
                self._failures[point.name] = f"the entry point names a {self.kind} that calls itself {own!r}; give both the same name"
                continue
            self._items.setdefault(point.name, item)


def _identity(item: Any) -> str:
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', repr(item))}"
