"""A page of HTML as tests look at it."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The page as a browser takes it apart: its tags, its text, its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside, self.broken = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "wbr":  # a place where a word may be broken is no end of it
            self.broken = True
        else:
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.broken:
            self.words[-1] += data
        else:
            (self.scripts if self.inside == "script" else self.words).append(data)
        self.broken = False

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))
