"""Calls an async function for each word; the results go through an internal topic to a step that may fail."""

from __future__ import annotations

import asyncio
import os

from streams import App, Text, dead_letter

PREFIX = os.environ["CALLS_PREFIX"]


async def look_up(word: str) -> str:
    await asyncio.sleep(0.02)
    return f"{word} found"


def check(text: str) -> str:
    if text.startswith("bad"):
        raise ValueError("made to fail")
    return text


app = App(f"{PREFIX}-calls", create_topics=True, dead_letter_limit=1.0)
words = app.stream(f"{PREFIX}-in", value=Text()).map_async(look_up, concurrency=50)
moved = words.key_by(lambda text: text.split()[0]).repartition("by-word", value=Text())
moved.map(check, on_error=dead_letter).to(f"{PREFIX}-out", value=Text())
