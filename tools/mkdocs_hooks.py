"""Write the lists of plugins, and turn the Markdown files of the repository's root into pages of the site."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.kind_pages import kind_pages
from tools.plugin_tables import with_lists

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File of the root to page of the site."""
SINGLE_PAGES = (*PAGES.values(), "tutorial.md", "coverage.md")
"""Pages that are a tab of their own, where a sidebar would show nothing else."""
WIDE_PAGES = ("coverage.md",)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages about kinds of findings to the navigation, after the index of their folder."""
    _list_kinds(config.nav or [], sorted(kind_pages()))
    return config


def _list_kinds(entries: list[Any], pages: list[str]) -> None:
    for entry in list(entries):
        if isinstance(entry, dict):
            for below in entry.values():
                _list_kinds(below if isinstance(below, list) else [], pages)
        elif entry.endswith("/index.md"):
            entries += [page for page in pages if page.rpartition("/")[0] == entry.rpartition("/")[0]]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages about kinds of findings, and the root pages with links relative to the documentation folder."""
    for page, text in kind_pages().items():
        files.append(File.generated(config, page, content=text))
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=as_page((ROOT / source).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Page, **options: Any) -> str:
    """Write the lists of plugins, and hide the sidebars that show nothing and those beside wide tables."""
    hidden = ["navigation"] if page.file.src_uri in SINGLE_PAGES else []
    page.meta["hide"] = [*hidden, "toc"] if page.file.src_uri in WIDE_PAGES else hidden
    return with_lists(markdown)


def as_page(markdown: str) -> str:
    """Return the text of a root file with its links as they are in the folder `docs`."""
    for source, page in PAGES.items():
        markdown = markdown.replace(f"]({source}", f"]({page}")
    return markdown.replace("](docs/", "](")
