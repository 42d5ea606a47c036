"""How lists and single things look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vllm_batch.cli import output


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on a terminal, where ids are never cut; tab-separated lines into a pipe."""
    console = output.console()
    if not console.is_terminal:
        for row in rows:
            print("\t".join(row))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_id = column == "id"
        table.add_column(
            column, no_wrap=True, overflow="ignore" if is_id else "ellipsis",
            min_width=len("batch_") + 24 if is_id else None,
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def print_fields(fields: Mapping[str, str | None]) -> None:
    """Print what is set, one field a line."""
    from rich.markup import escape

    given = {name: value for name, value in fields.items() if value is not None}
    width = max(map(len, given), default=0)
    for name, value in given.items():
        output.console().print(f"[dim]{name:>{width}}[/]  {escape(value)}")
