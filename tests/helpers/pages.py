"""Reports taken apart."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that elements are nested properly; collects rows, images and addresses."""

    def __init__(self, content: str):
        super().__init__()
        self.open, self.rows, self.images, self.addresses = [], [], [], []
        self.texts: dict[str, list[str]] = {}
        self.headings, self.values = [], []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [
            attributes[name] for name in ("src", "href", "data") if name in attributes
        ]
        if tag == "img":
            self.images.append(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag == "th":
            self.headings.append(attributes.get("class"))
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.values.append(attributes.get("data-value"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def assert_files_are_linked(page: Page, folder: Path, names: list[str]) -> None:
    """The page links just these files and folders, and they are there."""
    images = [image["src"] for image in page.images]
    assert [address for address in page.addresses if address not in images] == names
    assert all((folder / name).exists() for name in names)
