"""What mkdocs does before it builds: files of the repository's root become pages, and links out of docs/ plain text."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# pages that stand in the root, where GitHub and PyPI look for them
PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files, config):
    """Adds the pages of the root."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=from_root((ROOT / source).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to the root's pages into links of the site, and those to code into its name."""
    depth = page.file.src_uri.count("/") + 1
    return LINK.sub(lambda found: relinked(*found.groups(), "../" * depth), markdown)


def from_root(text):
    """The text of a file in the root, its links as those of a file in docs/."""
    return LINK.sub(lambda found: "{}[{}]({})".format(*found.groups()[:2], moved(found[3])), text)


def moved(target):
    """A link from the root, as one from docs/."""
    if re.match(r"#|[a-z]+:", target):
        return target
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def relinked(mark, text, target, up):
    """A link as the site has it; `up` leads from the page to the root."""
    if not target.startswith(up):
        return f"{mark}[{text}]({target})"
    page, *anchor = target.removeprefix(up).split("#")
    if page not in PAGES:
        return text
    return f"{mark}[{text}]({up[3:]}{PAGES[page]}{''.join(f'#{part}' for part in anchor)})"
