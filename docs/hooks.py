"""Hooks of mkdocs: rows and pictures of bench/results as part of the site; a nav that exists."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = re.compile(r"\]\((?:\.\./)+bench/results/([^)#]*)\)")


def on_config(config: Any) -> Any:
    """Leaves out of the nav what is not in docs/."""
    config.nav = _existing(config.nav, Path(config.docs_dir))
    return config


def _existing(nav: list, docs: Path) -> list:
    found = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            if kept := _existing(target, docs):
                found.append({title: kept})
        elif (docs / target).is_file():
            found.append(entry)
    return found


def on_files(files: Files, config: Any) -> Files:
    """Adds bench/results/ as results/."""
    for path in sorted((ROOT / "bench" / "results").iterdir()):
        if path.suffix in (".csv", ".png"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to ../bench/results, which work in the repository, lead to results/ in the site."""
    here = posixpath.dirname(page.file.src_uri)
    return RESULTS.sub(
        lambda found: f"]({posixpath.relpath(f'results/{found[1]}', here or '.')})", markdown
    )
