"""Questions on pictures that `synthetic/` did not draw, with known answers, for `internvl2 eval`.

Bar and pie charts by matplotlib, pages by Chromium, text by ImageMagick in faces that training
never has. What is written is of the test split. A tool that is not on the machine is left out, and
said. The same seed writes the same questions; the pixels are the tools'.

    python benchmarks/nano_foreign.py FOLDER [--count 120] [--kinds bars pies pages texts]
    internvl2 eval FOLDER/questions.jsonl --metric relaxed_accuracy --metric character_similarity \
        --metric lines_exact
"""

import argparse
import html
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from internvl2.synthetic.draw import Draw

SIDE = 448
FACES = ("Inter-Regular", "FreeSans", "FreeSerif", "P052-Roman", "C059-Roman", "URW-Bookman-Light",
         "URW-Gothic-Book", "FreeMono", "Inter-Bold", "FreeSerif-Bold")  # fmt: skip
PAGE_FACES = ("Inter", "FreeSans", "FreeSerif", "P052", "C059", "URW Bookman")
READ = ("Read the text.", "What does it say?", "OCR this image.", "What is written here?")
EDGE = 4
"""Pixels at the right and lower edge of a page on which nothing may be written."""
SECTIONS = 20
"""Pages of one run of Chromium, one below the other, cut apart afterwards."""


@dataclass(frozen=True)
class Case:
    """A line of the file of questions."""

    image: str
    question: str
    answers: tuple[str, ...]
    category: str


def main() -> None:
    """Writes pictures and questions."""
    parser = argparse.ArgumentParser(
        description="Questions on pictures that `synthetic/` did not draw"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=120, help="questions of each kind")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with (chosen.folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for kind in chosen.kinds:
            written = 0
            for case in KINDS[kind](chosen.folder, chosen.count):
                file.write(json.dumps(asdict(case), ensure_ascii=False) + "\n")
                written += 1
            print(f"{kind}: {written} questions")


def bars(folder: Path, count: int) -> Iterator[Case]:
    """matplotlib's bars in its usual looks, half of them with their values written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for number in range((count + 2) // 3):
        draw = Draw(number, "test", "foreign bars")
        names = draw.listed_several("city", draw.integer(3, 6))
        step = draw.choice((1, 5, 10, 50))
        values = [step * value for value in draw.several(range(2, 20), len(names))]
        figure, axes = pyplot.subplots(figsize=draw.choice(((6.4, 4.8), (5, 5), (4.5, 4.5))))
        container = axes.bar(names, values, color=f"C{draw.integer(0, 9)}")
        if number % 2:
            axes.bar_label(container)
        axes.set_title(draw.listed("subject"))
        axes.set_ylabel(draw.choice(("Sales", "Visitors", "Count")))
        axes.tick_params(axis="x", labelrotation=draw.choice((0, 30)) if len(names) > 3 else 0)
        figure.tight_layout()
        image = f"bars-{number:03}.png"
        figure.savefig(folder / image)
        pyplot.close(figure)
        place, high, low = draw.integer(0, len(names) - 1), max(values), min(values)
        first, second = draw.several(range(len(names)), 2)
        greater = first if values[first] > values[second] else second
        for question, answer in (
            (f"What is the value of {names[place]}?", str(values[place])),
            draw.choice((
                ("Which bar is the highest?", names[values.index(high)]),
                ("Which bar is the lowest?", names[values.index(low)]),
            )),
            (f"Which is greater: {names[first]} or {names[second]}?", names[greater]),
        ):  # fmt: skip
            yield Case(image, question, (answer,), "matplotlib bars")


def pies(folder: Path, count: int) -> Iterator[Case]:
    """matplotlib's pies with their shares written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for number in range((count + 2) // 3):
        draw = Draw(number, "test", "foreign pies")
        names = draw.listed_several("product", draw.integer(3, 5))
        parts = draw.several(range(6, 30), len(names))
        whole = sum(parts)
        if sorted(parts)[-1] - sorted(parts)[-2] < 2 or sorted(parts)[1] - sorted(parts)[0] < 2:
            parts[parts.index(max(parts))] += 4
            parts[parts.index(min(parts))] -= 2
            whole = sum(parts)
        figure, axes = pyplot.subplots(figsize=draw.choice(((6.4, 4.8), (5, 5))))
        axes.pie(parts, labels=names, autopct="%1.1f%%", startangle=draw.choice((0, 90)))
        axes.set_title(draw.listed("subject"))
        image = f"pies-{number:03}.png"
        figure.savefig(folder / image)
        pyplot.close(figure)
        if not _has_free_sides(folder / image):
            print(f"{image}: a name is longer than its room; left out", file=sys.stderr)
            (folder / image).unlink()
            continue
        place = draw.integer(0, len(names) - 1)
        share = f"{100 * parts[place] / whole:.1f}"
        for question, answers in (
            (f"What percentage is {names[place]}?", (f"{share}%", share)),
            ("Which slice is the largest?", (names[parts.index(max(parts))],)),
            ("Which slice is the smallest?", (names[parts.index(min(parts))],)),
        ):
            yield Case(image, question, answers, "matplotlib pies")


def texts(folder: Path, count: int) -> Iterator[Case]:
    """ImageMagick's text in faces that training never has."""
    known = _known_faces()
    if not known:
        print("texts: ImageMagick or its faces are missing; left out", file=sys.stderr)
        return
    for number in range(count):
        draw = Draw(number, "test", "foreign texts")
        lines = [_line(draw) for _ in range(draw.integer(1, 5))]
        size = draw.integer(18, 44)
        image = f"texts-{number:03}.png"
        text = "\\n".join(lines)
        ground, ink = draw.choice((("white", "black"), ("ivory", "navy"), ("gray10", "white")))
        command = ["convert", "-background", ground, "-fill", ink, "-font", draw.choice(known),
                   "-pointsize", str(size), f"label:{text}"]  # fmt: skip
        target = folder / image
        subprocess.run([*command, f"PNG24:{target}"], check=True)
        _on_page(target)
        yield Case(image, draw.choice(READ), ("\n".join(lines),), "ImageMagick text")


def pages(folder: Path, count: int) -> Iterator[Case]:
    """Chromium's pages: a heading, lines, a small table; read, or one field."""
    if shutil.which("chromium") is None:
        print("pages: chromium is missing; left out", file=sys.stderr)
        return
    for first in range(0, count, 2 * SECTIONS):
        numbers = range(first // 2, min(first // 2 + SECTIONS, (count + 1) // 2))
        made = [_page(Draw(number, "test", "foreign pages")) for number in numbers]
        targets = [folder / f"pages-{number:03}.png" for number in numbers]
        whole = _photograph([page.markup for page in made], targets)
        for target, page, is_whole in zip(targets, made, whole, strict=True):
            image = target.name
            if not is_whole:
                print(f"{image}: a line is longer than the page; left out", file=sys.stderr)
                continue
            yield Case(image, page.reading, ("\n".join(page.lines),), "Chromium pages, read")
            yield Case(image, page.question, (page.answer,), "Chromium pages, fields")


KINDS: dict[str, Callable[[Path, int], Iterator[Case]]] = {
    "bars": bars,
    "pies": pies,
    "texts": texts,
    "pages": pages,
}


@dataclass(frozen=True)
class _Page:
    markup: str
    lines: tuple[str, ...]
    reading: str
    question: str
    answer: str


def _page(draw: Draw) -> _Page:
    heading = draw.company()
    rows = [(name, f"{draw.price() / 100:.2f}") for name in draw.listed_several("product", 3)]
    date = draw.date()
    prose = [" ".join(draw.words(4)).capitalize() + "." for _ in range(draw.integer(0, 2))]
    chosen = draw.integer(0, 3)
    asked = [(f"What is the price of {name}?", price) for name, price in rows]
    asked.append(("What is the date?", date))
    question, answer = asked[chosen]
    lines = (heading, f"Date: {date}", *prose, *(f"{name} {price}" for name, price in rows))
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>{price}</td></tr>"
        for name, price in rows
    )
    body = "".join(f"<div>{html.escape(line)}</div>" for line in prose)
    markup = (
        f'<section style=\'font-family:"{draw.choice(PAGE_FACES)}";'
        f"font-size:{draw.integer(16, 22)}px'>"
        f"<h2>{html.escape(heading)}</h2><div>Date: {html.escape(date)}</div>{body}"
        f"<table>{cells}</table></section>"
    )
    return _Page(markup, lines, draw.choice(READ), question, answer)


def _photograph(sections: list[str], targets: list[Path]) -> list[bool]:
    """One picture of all sections, cut into a picture each; whether all of a section is on it.

    The window is twice as wide as a section, so that what is too long for one is seen beside it.
    """
    style = (
        "body{margin:0;background:#fff}section{width:448px;height:448px;box-sizing:border-box;"
        "padding:20px;white-space:nowrap}table{width:80%;margin-top:12px}"
    )
    whole: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        page.write_text(f"<meta charset=utf-8><style>{style}</style>{''.join(sections)}")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={folder}/profile", f"--screenshot={shot}",
                   f"--window-size={2 * SIDE},{SIDE * len(sections)}", page.as_uri()]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as picture:
            shown = picture.convert("RGB")
        for index, target in enumerate(targets):
            top, bottom = index * SIDE, (index + 1) * SIDE
            is_blank = _is_white(shown.crop((SIDE - EDGE, top, 2 * SIDE, bottom)))
            whole.append(is_blank and _is_white(shown.crop((0, bottom - EDGE, SIDE, bottom))))
            if whole[-1]:
                shown.crop((0, top, SIDE, bottom)).save(target)
    return whole


def _has_free_sides(path: Path) -> bool:
    """Whether nothing stands at the left and right edge, where matplotlib cuts long names off."""
    with Image.open(path) as image:
        shown = image.convert("RGB")
    width, height = shown.size
    sides = ((0, 0, 1, height), (width - 1, 0, width, height))
    return all(_is_white(shown.crop(side)) for side in sides)


def _is_white(piece: Image.Image) -> bool:
    return piece.getextrema() == ((255, 255),) * 3


def _line(draw: Draw) -> str:
    kind = draw.integer(0, 3)
    if kind == 0:
        return draw.name()
    if kind == 1:
        return draw.date()
    words = " ".join(draw.words(draw.integer(1, 4)))
    return words.capitalize() if kind == 2 else words


def _on_page(path: Path) -> None:
    """The text in the middle of a square that is 448 pixels wide, or as wide as the text needs."""
    with Image.open(path) as image:
        text = image.convert("RGB")
    side = max(SIDE, text.width + 24, text.height + 24)
    page = Image.new("RGB", (side, side), text.getpixel((0, 0)))
    page.paste(text, ((side - text.width) // 2, (side - text.height) // 2))
    page.save(path)


def _known_faces() -> list[str]:
    if shutil.which("convert") is None:
        return []
    listed = subprocess.run(["convert", "-list", "font"], capture_output=True, text=True)
    names = {
        line.split(":", 1)[1].strip() for line in listed.stdout.splitlines() if "Font:" in line
    }
    return [face for face in FACES if face in names]


if __name__ == "__main__":
    main()
