"""Looks at every page of a built site in a headless browser, and says what a reader would.

    python docs/look.py build/site --screenshots build/screenshots

Fails on: a link to a page, an anchor or a file of the site that does not exist; a picture that does
not load; an error of the page's scripts; a table that is wider than its column on a desktop; a page
that is wider than its window, on a desktop and on a phone.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOWS = {"desktop": (1280, 900), "phone": (420, 900)}
PROBE = """<script>
window.addEventListener("error", e => (window.faults = window.faults || []).push(e.message || "?"));
window.addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement, found = (window.faults || []).map(f => "script: " + f);
  if (root.scrollWidth > root.clientWidth + 1)
    found.push("the page is " + root.scrollWidth + " pixels wide, its window " + root.clientWidth);
  for (const image of document.querySelectorAll("article img"))
    if (!image.complete || !image.naturalWidth) found.push("no picture: " + image.src);
  if (root.clientWidth > 1000)
    for (const table of document.querySelectorAll("article table")) {
      const column = document.querySelector("article").getBoundingClientRect();
      if (table.getBoundingClientRect().right > column.right + 1)
        found.push("a table is wider than its column: " + table.innerText.slice(0, 60));
    }
  root.setAttribute("data-faults", JSON.stringify(found));
}, 300));
</script>"""


class Page(HTMLParser):
    """The links, pictures and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.anchors = list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src"):
            if name in given and tag in ("a", "img", "link", "script"):
                self.links.append(given[name])


def broken_links(site: Path) -> list[str]:
    """A line for each link within the site that leads nowhere."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are absolute, for wherever it is shown
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            missing = not target.is_file()
            if not missing and parts.fragment and target in pages:
                missing = unquote(parts.fragment) not in pages[target].anchors
            if missing:
                found.append(f"{path.relative_to(site.resolve())}: broken link {link}")
    return found


def faults(browser: str, page: Path, window: str, picture: Path | None) -> list[str]:
    """What the browser finds in a page, which is laid out in one of WINDOWS; and a screenshot."""
    width, height = WINDOWS[window]
    probed = page.with_name(f".{window}-{page.name}")
    probed.write_text(page.read_text("utf-8").replace("<head>", f"<head>{PROBE}", 1), "utf-8")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={profile}", f"--window-size={width},{height}",
                   "--allow-file-access-from-files", "--virtual-time-budget=4000"]  # fmt: skip
        try:
            done = subprocess.run(
                [*command, "--dump-dom", probed.as_uri()], capture_output=True, timeout=120
            )
            if picture is not None:
                shot = [*command, f"--screenshot={picture.resolve()}", page.as_uri()]
                subprocess.run(shot, capture_output=True, timeout=120, check=True)
        finally:
            probed.unlink()
    said = re.search(r'data-faults="([^"]*)"', done.stdout.decode("utf-8", "replace"))
    if said is None:
        return [f"the browser showed nothing: {done.stderr.decode(errors='replace')[-300:]}"]
    return json.loads(html.unescape(said[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the pages")
    arguments = parser.parse_args()
    lines = broken_links(arguments.site)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("no browser is installed: only links were checked")
    else:
        lines += looked_at(browser, arguments.site.resolve(), arguments.screenshots)
    print(*lines, sep="\n")
    print(f"{len(lines)} faults in {len(list(arguments.site.rglob('*.html')))} pages")
    return int(bool(lines))


def looked_at(browser: str, site: Path, screenshots: Path | None) -> list[str]:
    """The faults of all pages in all windows, two at a time."""
    if screenshots is not None:
        screenshots.mkdir(parents=True, exist_ok=True)
    jobs = []
    for page in sorted(site.rglob("*.html")):
        name = "-".join(page.relative_to(site).with_suffix("").parts)
        for window in WINDOWS:
            picture = screenshots / f"{name}-{window}.png" if screenshots else None
            if page.name != "404.html":
                jobs.append((name, window, page, picture))
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda job: faults(browser, job[2], job[1], job[3]), jobs)
        return [
            f"{name}, {window}: {fault}"
            for (name, window, _, _), lines in zip(jobs, found, strict=True)
            for fault in lines
        ]


if __name__ == "__main__":
    sys.exit(main())
