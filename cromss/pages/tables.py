"""The sweep's own tables (table.html, as `cromss.trials.tables` wrote them), made fit for this page."""

import html
import html.parser

from cromss.pages.run import Run

FILE = "table.html"
TAGS = {"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "b", "strong", "em", "i", "small", "sup", "sub", "p",
        "ul", "ol", "li", "h3", "h4", "br", "span", "div"}  # fmt: skip
ATTRIBUTES = {"colspan", "rowspan", "scope"}


def tables(run: Run) -> str:
    """The fragment as markup: tables and text alone, whatever else the file holds; empty where there is none."""
    try:
        text = (run.folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        run.unreadable.append(FILE)
        return ""
    first, *others = _Plain(text).markup.split("<h3>OA</h3>")  # after mIoU and its differences
    if not others:
        return first
    more, _, notes = others[0].rpartition("</table></div>")
    return f"{first}<details><summary>OA and AA</summary><h3>OA</h3>{more}</table></div></details>{notes}"


class _Plain(html.parser.HTMLParser):
    """Keeps known tags, without what could act or load; a table may be scrolled by itself on a narrow screen."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._open: list[str] = []
        self._hidden = 0  # depth inside <style>, <script>, <head>
        self.feed(text)
        self.close()
        while self._open:
            self.handle_endtag(self._open[-1])
        self.markup = "".join(self._parts)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("style", "script", "title"):
            self._hidden += 1
        if tag not in TAGS:
            return
        kept = "".join(f' {k}="{html.escape(v or "")}"' for k, v in attributes if k in ATTRIBUTES)
        self._parts.append('<div class="scroll"><table>' if tag == "table" else f"<{tag}{kept}>")
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "script", "title"):
            self._hidden = max(self._hidden - 1, 0)
        if tag not in self._open:
            return
        while True:
            last = self._open.pop()
            self._parts.append("</table></div>" if last == "table" else f"</{last}>")
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(html.escape(data, quote=False))
