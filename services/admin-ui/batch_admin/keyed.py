"""Elements that come and go with what they show, by a key: nothing is drawn anew that has not
changed, so that links and buttons stay where they are while somebody aims at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from nicegui import ui
from nicegui.element import Element


class Shown(Protocol):
    """Something drawn."""

    @property
    def element(self) -> Element:
        """What holds all of it."""
        ...


Key = TypeVar("Key")
Value = TypeVar("Value")
Drawn = TypeVar("Drawn", bound=Shown)


class Keyed(Generic[Key, Value, Drawn]):
    """What is drawn inside ``box``, by its key."""

    def __init__(
        self,
        box: Element,
        draw: Callable[[Key, Value], Drawn],
        update: Callable[[Drawn, Value], None],
    ) -> None:
        self._box = box
        self._draw = draw
        self._update = update
        self.drawn: dict[Key, Drawn] = {}

    def sync(self, wanted: Mapping[Key, Value]) -> None:
        """Draw what is new, update what is there, remove what is gone; keep the order."""
        for key in [key for key in self.drawn if key not in wanted]:
            self.drawn.pop(key).element.delete()
        for place, (key, value) in enumerate(wanted.items()):
            known = self.drawn.get(key)
            if known is not None:
                self._update(known, value)
                continue
            with self._box:
                new = self.drawn[key] = self._draw(key, value)
            if place < len(self.drawn) - 1:
                new.element.move(target_index=place)


class _Box(Generic[Value]):
    def __init__(self, fill: Callable[[Value], None], classes: str, value: Value) -> None:
        self._fill = fill
        self._value = value
        self.element = ui.element("div").classes(classes)
        with self.element:
            fill(value)

    def update(self, value: Value) -> None:
        if value == self._value:
            return
        self._value = value
        self.element.clear()
        with self.element:
            self._fill(value)


class Boxes(Keyed[Key, Value, _Box[Value]]):
    """Boxes whose content ``fill`` draws, anew only when the value is another one."""

    def __init__(
        self, box: Element, fill: Callable[[Value], None], classes: str = "w-full"
    ) -> None:
        super().__init__(
            box,
            draw=lambda _, value: _Box(fill, classes, value),
            update=lambda drawn, value: drawn.update(value),
        )
