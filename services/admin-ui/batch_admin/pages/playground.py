"""Playground: chat with a served model, or with two side by side."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from nicegui import ui

from batch_admin import chat_stream, show
from batch_admin.shell import Page, heading, notice
from batch_admin.view import View
from vllm_batch import model_listing
from vllm_batch.events import Recorded

_SHOWN_EVERY_SECONDS = 0.1


class Side:
    """A chat with one model: what was said, and the model it is said to."""

    def __init__(self, view: View, models: list[str], label: str, chosen: str) -> None:
        self._view = view
        self._messages: list[dict[str, str]] = []
        self._stopped = False
        self._nothing: ui.label | None = None
        self.element = show.named(ui.element("section").classes("panel"), f"Chat: {label}")
        with self.element:
            self.model = ui.select(models, value=chosen, label=label).props("dense outlined")
            self._said = ui.column().classes("w-full gap-2").style("min-height:40vh")
            self._show_nothing()

    async def ask(self, prompt: str, system: str, parameters: dict[str, Any]) -> None:
        """Send the chat with ``prompt`` at its end and show the answer as it comes."""
        model, self._stopped = self.model.value, False
        messages = self._messages  # of this chat: another one may begin meanwhile
        messages.append({"role": "user", "content": prompt})
        first = [{"role": "system", "content": system}] if system else []
        body = {"model": model, "messages": [*first, *messages], **parameters}
        if self._nothing is not None:
            self._nothing.delete()
            self._nothing = None
        with self._said:
            ui.label(prompt).classes("said by-user")
            text = ui.label("…").classes("said by-model")
            figures = ui.label().classes("dim").style("font-size:.8rem")

        async def deed() -> str:
            answer = await self._stream(body, text, figures)
            messages.append({"role": "assistant", "content": answer})
            return ""

        if not await self._view.act("chat with a model", model, deed):
            messages.pop()
            text.set_text("No answer.")

    async def _stream(self, body: dict[str, Any], text: ui.label, figures: ui.label) -> str:
        """Show an answer as it comes, and return it."""
        now = self._view.services.clock.monotonic
        started = shown = now()
        first: float | None = None
        answer, tokens = "", 0
        async with aclosing(chat_stream.chat(self._view.services, body)) as pieces:
            async for piece in pieces:
                answer += piece.text
                tokens = piece.output_tokens or tokens
                first = first or now()
                if now() - shown > _SHOWN_EVERY_SECONDS:
                    text.set_text(answer)
                    shown = now()
                if self._stopped:
                    break
        text.set_text(answer or "(nothing)")
        took = now() - started
        rate = f" · {show.number(tokens / took)} tokens/s" if tokens and took else ""
        figures.set_text(
            f"first piece after {(first or now()) - started:.2f} s · {took:.2f} s"
            f" · {tokens:,} tokens{rate}" + (" · stopped" if self._stopped else "")
        )
        return answer

    def stop(self) -> None:
        """Take no more of the answer."""
        self._stopped = True

    def clear(self) -> None:
        """Begin a new chat; an answer that still comes belongs to none any more."""
        self.stop()
        self._messages = []
        self._said.clear()
        self._show_nothing()

    def _show_nothing(self) -> None:
        with self._said:
            self._nothing = ui.label(
                "Nothing was said yet. Write below; the answer comes as it is generated, with its "
                "time and tokens."
            ).classes("dim")


class Playground:
    """One chat, two on demand, and what both are asked with."""

    def __init__(self, view: View, models: list[str]) -> None:
        self._view = view
        with ui.row().classes("w-full items-end gap-3"):
            self._both = ui.switch("Compare two models")
            self._tokens = ui.number("Tokens at most", value=256, min=1, step=1, format="%.0f")
            self._temperature = ui.number("Temperature", value=0.7, min=0, max=2, step=0.1)
            self._top_p = ui.number("Top p", value=1, min=0, max=1, step=0.05)
            for field in (self._tokens, self._temperature, self._top_p):
                field.props("dense outlined").classes("w-36")
        self._system = ui.input("System prompt").props("dense outlined").classes("w-full")
        with ui.element("div").classes("two"):
            self._sides = [
                Side(view, models, "Model", models[0]),
                Side(view, models, "Second model", models[-1]),
            ]
        self._sides[1].element.bind_visibility_from(self._both, "value")
        with ui.row().classes("w-full items-center no-wrap gap-2"):
            self._prompt = ui.input("Say something").props("outlined dense").classes("grow")
            self._prompt.on("keydown.enter", self._send)
            self._send_button = ui.button("Send", on_click=self._send).props("unelevated no-caps")
            ui.button("Stop", on_click=self._stop).props("flat no-caps")
            ui.button("Clear", on_click=self._clear).props("flat no-caps")

    async def refresh(self, _: list[Recorded]) -> None:
        """Offer what is served now; what is chosen stays, and so does a list that is open."""
        served = _models(self._view)
        for side in self._sides:
            offered = sorted({*served, side.model.value})
            if offered != side.model.options:
                side.model.set_options(offered)

    async def _send(self) -> None:
        asked = self._prompt.value.strip()
        if not asked or not self._send_button.enabled:
            return
        self._prompt.value = ""
        chosen = self._sides if self._both.value else self._sides[:1]
        parameters = {
            "max_tokens": int(self._tokens.value or 1),
            "temperature": self._temperature.value,
            "top_p": self._top_p.value,
        }
        system = self._system.value
        self._send_button.disable()
        try:
            await asyncio.gather(*(side.ask(asked, system, parameters) for side in chosen))
        finally:
            self._send_button.enable()

    def _stop(self) -> None:
        for side in self._sides:
            side.stop()

    def _clear(self) -> None:
        for side in self._sides:
            side.clear()


async def build(view: View) -> None:
    """Show the playground, where there is a model to play with."""
    heading("Playground")
    models = _models(view)
    if not models:
        notice("forum", "No model is served", "Load one on the page Models, or start a worker.")
        return
    playground = Playground(view, models)
    view.refresh_on({"model", "worker"}, playground.refresh)


def _models(view: View) -> list[str]:
    """Return the names and aliases that some worker serves now."""
    found = model_listing.listed(view.live.models, view.live.fleet)
    return sorted(
        name for one in found if one.status == "ready" for name in (one.name, *one.aliases)
    )


PAGE = Page(path="/playground", title="Playground", build=build, icon="forum", role="operator")
