"""A hook of mkdocs: README, CONTRIBUTING and CHANGELOG as pages of the site, and their links as the site has them."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
SOURCE = "https://github.com/memguard/memguard/blob/main/"
LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)\s]+)")


def on_files(files, config):
    """Add the pages that stand outside of docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to pages of the site where there is one, and else to the repository."""
    here = ROOT / "docs" / page.file.src_uri
    generated = {page: name for name, page in PAGES.items()}
    folder = ROOT if page.file.src_uri in generated else here.parent

    def moved(match):
        path, mark, anchor = match[2].partition("#")
        target = Path(*(folder / path).resolve().relative_to(ROOT.resolve()).parts)
        own = PAGES.get(target.as_posix())
        if own is None and target.parts[:1] == ("docs",) and (ROOT / target).is_file():
            own = target.relative_to("docs").as_posix()
        if own is None:
            return f"{match[1]}{SOURCE}{target.as_posix()}{mark}{anchor}"
        up = "../" * page.file.src_uri.count("/")
        return f"{match[1]}{up}{own}{mark}{anchor}"

    return LINK.sub(moved, markdown)
