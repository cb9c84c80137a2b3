"""Every page of docs/: its code runs, its commands exist, and every public name has its entry."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from doc_pages import DOCS, blocks, run

import fastclip
from fastclip.benchmark.run import parser
from fastclip.cli import COMMANDS

ROOT = DOCS.parent
# Pages whose blocks need more than torch, or count on files, have tests beside their subject.
ELSEWHERE = {"clipping.md", "norms.md", "param_groups.md", "structure_loss.md"}
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
WITH_CODE = [page for page in PAGES if page not in ELSEWHERE and blocks(page)]

pytestmark = pytest.mark.skipif(
    not (ROOT / "bench" / "results").is_dir(), reason="needs the rows of the repository"
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", WITH_CODE)
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    for _, package, _ in found:
        if package:
            pytest.importorskip(package)
    run(page, found)


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_is_seen_by_the_runner(page):
    text = (DOCS / page).read_text()
    assert len(re.findall(r"^```python", text, flags=re.MULTILINE)) == len(blocks(page))


@pytest.mark.parametrize("page", ["../README.md", *PAGES])
def test_commands_of_the_pages_exist(page):
    text = (DOCS / page).read_text()
    shells = re.findall(r"^```(?:sh|shell|bash)?\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    for line in "\n".join(shells).splitlines():
        words = shlex.split(line, comments=True) if line.startswith("fastclip ") else []
        if len(words) < 2:
            continue
        assert words[1] in COMMANDS, line
        if words[1] == "bench":
            parser().parse_args(words[2:])


def test_the_readme_is_short_and_its_block_runs(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    heads = [torch.randn(1, 1, 32, 32) for _ in range(3)]
    scope: dict = dict(zip(("map_2", "map_1", "map_x"), heads, strict=True), torch=torch)
    model = torch.nn.ModuleDict(
        {"embeddings": torch.nn.Embedding(4, 4), "head": torch.nn.Linear(4, 4)}
    )
    scope["optimizer"] = torch.optim.AdamW(model.parameters(), fused=True)
    scope["trainer"] = SimpleNamespace(fit=lambda module: None)
    scope["scaler"] = torch.amp.GradScaler("cpu")
    scope |= {"model": model, "module": model, "mask": (heads[0] > 0).float(), "tensors": heads}
    value = scope["scaler"].scale(model["head"](model["embeddings"](torch.arange(4))).sum())
    value.backward()
    exec(compile(code, "README.md", "exec"), scope)
    assert len(scope["groups"]) == 2


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\(([^):#]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_public_name_is_in_the_api():
    listed = re.findall(r"^::: fastclip\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(fastclip.__all__) - {"__version__"})


def test_pages_are_in_the_nav():
    nav = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in PAGES if f": {page}\n" not in nav] == []


@pytest.mark.slow
def test_the_site_builds_strictly_and_every_page_looks_right(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    look = [sys.executable, str(DOCS / "look.py"), str(site)]
    done = subprocess.run(look, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import look

    (tmp_path / "index.html").write_text(
        '<a href="other.html#here"></a><a href="other.html#there"></a><a href="gone.html"></a>'
        '<a href="https://example.org/x"></a><img src="gone.png">'
    )
    (tmp_path / "other.html").write_text('<h1 id="here"></h1>')
    assert look.broken_links(tmp_path) == [
        f"index.html: broken link {link}" for link in ("other.html#there", "gone.html", "gone.png")
    ]


@pytest.mark.slow
def test_what_a_browser_shows_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import shutil

    import look

    browser = next(filter(None, map(shutil.which, look.BROWSERS)), None)
    if browser is None:
        pytest.skip("needs chromium")
    page = tmp_path / "page.html"
    wide = "<td style='min-width: 3000px'>wide</td>"
    page.write_text(
        f"<html><head></head><body><article style='width: 600px'><table><tr>{wide}</tr></table>"
        "<img src='gone.png'></article><script>nothing()</script></body></html>"
    )
    found = " ".join(look.faults(browser, page, "desktop", None))
    for fault in ("no picture", "a table is wider than its column", "the page is", "script: "):
        assert fault in found, found
    page.write_text("<html><head></head><body><article><p>well</p></article></body></html>")
    assert look.faults(browser, page, "phone", None) == []
