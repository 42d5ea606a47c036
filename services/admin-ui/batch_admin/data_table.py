"""A table of rows, which stays under the user's fingers while it is live. Its values are shown as
text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from nicegui.element import Element

Kind = Literal["text", "link", "state", "time", "progress", "open", "acts"]
ROWS_MAX = 100


def column(
    name: str, label: str, kind: Kind = "text", *, right: bool = False, sortable: bool = False,
    **more: str,
) -> dict[str, Any]:  # fmt: skip
    """Return a column: the key in the rows, its title, and how its values are shown.

    ``link`` takes an ``href`` that the value is put behind, ``time`` (Unix seconds or ISO 8601)
    what to say where there is ``never`` one, ``open`` what the button ``says``; ``state`` takes its
    colour from the row's ``colour``, ``progress`` its shares from ``ok`` and ``no``, ``acts`` its
    buttons from the row's ``acts``.
    """
    side = "right" if right else "left"
    return {"name": name, "label": label, "kind": kind, "align": side, "sortable": sortable, **more}


class DataTable(Element, component="widgets/data_table.js"):
    """See the module. Emits ``ask`` (page, size, sort, descending) where the server pages,
    ``open`` (id) and ``act`` (name, id). Rows have an ``id``."""

    def __init__(
        self,
        columns: Sequence[dict[str, Any]],
        *,
        label: str,
        empty: str,
        page_size: int = 25,
    ) -> None:
        super().__init__()
        self._props |= {
            "columns": list(columns), "rows": [], "label": label, "empty": empty, "total": None,
            "page": 1, "page_size": page_size, "sort": "", "descending": False,
        }  # fmt: skip

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is shown now."""
        found: list[dict[str, Any]] = self._props["rows"]
        return found

    def show(self, rows: list[dict[str, Any]], **paging: Any) -> None:
        """Show these rows; ``paging``: total, page, page_size, sort, descending, where the server
        does it. Nothing is sent where nothing has changed."""
        wanted = {"rows": rows, **paging}
        if any(self._props[name] != value for name, value in wanted.items()):
            self._props.update(wanted)
            self.update()
