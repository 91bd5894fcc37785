"""What the site has besides the pages in docs/: pages that lie at the root, and the configuration reference.

mkdocs calls these functions by their names while it builds (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import reference_pages

REPOSITORY = Path(__file__).parent.parent

ROOT_PAGES = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
"""Pages at the root of the repository, and what stands for them in the site."""

REFERENCE = "reference/index.md"

_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the reference into the navigation."""
    for entry in config.nav or []:
        for title, target in entry.items():
            if target == REFERENCE:
                entry[title] = [REFERENCE, *({page.title: page.file} for page in reference_pages()[1:])]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in ROOT_PAGES.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=(REPOSITORY / source).read_text(encoding="utf-8")))
    for made in reference_pages():
        files.append(File.generated(config, made.file, content=made.text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where their pages are in the site."""
    uri = page.file.src_uri
    source = next((root for root, name in ROOT_PAGES.items() if name == uri and page.file.generated_by), f"docs/{uri}")
    return with_links_of_the_site(markdown, source, uri)


def with_links_of_the_site(markdown: str, source: str, uri: str) -> str:
    """Return a page whose links hold in the site; those to files that are not in it become plain text.

    Args:
        markdown: The page.
        source: Where it lies in the repository; its links are relative to that.
        uri: Where it lies in the site.
    """

    def mended(link: re.Match[str]) -> str:
        text, target, anchor = link["text"], link["target"], link["anchor"] or ""
        if "://" in target or target.startswith("mailto:"):
            return link.group()
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if place in ROOT_PAGES:
            place = ROOT_PAGES[place]
        elif place.startswith("docs/"):
            place = place.removeprefix("docs/")
        else:
            return text
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{anchor})"

    return _LINK.sub(mended, markdown)
