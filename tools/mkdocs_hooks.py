"""Turn the Markdown files of the repository's root into pages of the site, so that each text has one home."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File of the root to page of the site."""

_WITHOUT_SIDEBAR = "---\nhide: [navigation]\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, with links that begin at the folder of the documentation."""
    for source, page in PAGES.items():
        content = _WITHOUT_SIDEBAR + as_page((ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=content))
    return files


def as_page(markdown: str) -> str:
    """Return the text of a root file with its links as they are in the folder `docs`."""
    for source, page in PAGES.items():
        markdown = markdown.replace(f"]({source}", f"]({page}")
    return markdown.replace("](docs/", "](").replace('src="docs/', 'src="')
