"""A name -> the thing that answers to it. Refuses duplicates; an unknown name is answered with the nearest known one."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mil.errors import MilError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind (`encoder`, `model`, `strategy`, ...) by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter the decorated thing under `name`."""

        def enter(thing: T) -> T:
            if name in self._entries:
                raise ValueError(f"two entries for {self.kind} '{name}'")
            self._entries[name] = thing
            return thing

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise MilError(f"unknown {self.kind} '{name}'; {nearest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
