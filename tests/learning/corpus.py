"""A text small enough for minutes and large enough to learn from: Python's manual and the King James Bible.

    apt-get download python3.11-doc bible-kjv bible-kjv-text
    python tests/learning/corpus.py FOLDER_WITH_THE_PACKAGES corpus.jsonl

Both are Debian packages (PSF licence; public domain). Only prose is kept. One JSON object per document,
`{"text": ...}`: a few neighbouring paragraphs of the manual, or a chapter. The same packages make the same
bytes; the last line prints their SHA-256.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("python3.11-doc", "bible-kjv", "bible-kjv-text")
_DOCUMENT_CHARACTERS = 1500
_SHORTEST_PARAGRAPH = 60
_LEAST_LETTERS = 0.7  # of a paragraph's characters, letters and blanks: less is code or a table
_NO_PROSE = ("..", ">>>", "$", "|", "+-", "#", ":")  # directives, prompts, tables, comments, fields
_ROLE = re.compile(r":[\w:+-]+:`~?!?([^`<]+?)(?:\s*<[^`]*>)?`")
_MARKUP = re.compile(r"(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|``|\*\*|`_{1,2}|`|(?<=\w)::$|\\")


def main(packages: Path, out: Path) -> None:
    """Write the corpus and say what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        root = unpacked(packages, Path(folder))
        documents = [*manual(root / "usr/share/doc/python3.11/html/_sources"), *bible(root)]
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()
    out.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    print(f"{len(documents):,} documents, {len(data) / 1e6:.1f} MB, sha256 {digest}")


def unpacked(packages: Path, folder: Path) -> Path:
    """The files of the three packages under one folder."""
    for name in PACKAGES:
        found = sorted(packages.glob(f"{name}_*.deb"))
        if not found:
            sys.exit(f"{packages} has no {name}_*.deb: apt-get download {' '.join(PACKAGES)}")
        subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(folder)], check=True)
    return folder


def manual(sources: Path) -> Iterator[str]:
    """Prose of the manual's reStructuredText, as documents of a few paragraphs of one page."""
    for page in sorted(sources.rglob("*.rst.txt")):
        paragraphs = [prose for block in re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
                      if (prose := prose_of(block))]
        document = ""
        for paragraph in paragraphs:
            document = f"{document} {paragraph}".strip()
            if len(document) >= _DOCUMENT_CHARACTERS:
                yield document
                document = ""
        if len(document) >= _DOCUMENT_CHARACTERS // 3:
            yield document


def prose_of(block: str) -> str:
    """A paragraph in one line without markup; empty if it is not prose."""
    if block.lstrip().startswith(_NO_PROSE) or "----" in block or "==" in block:
        return ""
    text = _MARKUP.sub("", _ROLE.sub(r"\1", " ".join(block.split()))).removeprefix("* ")
    is_prose = sum(c.isalpha() or c == " " for c in text) >= _LEAST_LETTERS * len(text)
    return text if len(text) >= _SHORTEST_PARAGRAPH and is_prose and text[-1] in ".:!?)" else ""


def bible(root: Path) -> Iterator[str]:
    """Its chapters, verse after verse, without numbers."""
    done = subprocess.run([root / "usr/bin/bible", "-p", root / "usr/lib", "-l999", "gen1:1-rev22:21"],
                          input="", capture_output=True, text=True, check=True)
    for chapter in re.split(r"\n(?=[\w ]+ \d+\n\n)", done.stdout):
        verses = re.findall(r"^\s+\d+ (.*)$", chapter, flags=re.MULTILINE)
        if verses:
            yield " ".join(" ".join(verses).split())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
