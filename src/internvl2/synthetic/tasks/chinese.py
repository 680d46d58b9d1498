"""Chinese: signs, phrases, menus and receipts in about 800 characters."""

from PIL import Image

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.fonts import Pen, pen
from internvl2.synthetic.page import (
    TILE,
    Paper,
    Shape,
    choose_paper,
    is_easy,
    letter_size,
    rule,
    snap,
    square,
)
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.wordings import DESCRIBE_CHINESE, READ, READ_CHINESE
from internvl2.synthetic.words import characters

READ_ALL = (*READ_CHINESE, *READ[:8], "What does the sign say?")
DIGITS = "零一二三四五六七八九"
ORDINALS = "一二三四五六七八"
PHRASES = ("zh_word", "zh_sign", "zh_dish", "zh_item", "zh_shop", "zh_city", "zh_street")
SIGN_COLOURS = (
    ((190, 20, 30), (255, 255, 255)), ((20, 90, 60), (255, 255, 255)),
    ((20, 60, 140), (255, 255, 255)), ((250, 210, 40), (20, 20, 20)),
    ((30, 30, 30), (250, 220, 120)), ((250, 245, 235), (170, 20, 30)),
    ((120, 20, 25), (255, 225, 120)), ((255, 255, 255), (20, 90, 60)),
    ((90, 60, 35), (255, 250, 235)), ((0, 120, 160), (255, 255, 240)),
)  # fmt: skip
PRICES = ("元", "块", "¥")


def make(draw: Draw, difficulty: float) -> Sample:
    """A sign, lines of phrases, a menu, or a receipt."""
    if is_easy(draw, difficulty):
        return _sign(draw) if draw.chance(0.25) else _word(draw)
    kind = draw.weighted(("sign", "lines", "menu", "receipt"), (32, 36, 17, 15))
    if kind == "sign":
        return _sign(draw)
    if kind == "lines":
        return _lines(draw, difficulty)
    if kind == "menu":
        return _menu(draw, difficulty)
    return _receipt(draw, difficulty)


def _word(draw: Draw) -> Sample:
    """One to four large characters on a plain page."""
    if draw.split == "train" and draw.chance(0.4):
        text = "".join(draw.choice(characters()) for _ in range(draw.integer(1, 4)))
    else:
        text = draw.listed("zh_word")
        while len(text) > 4:
            text = draw.listed(draw.choice(PHRASES))
    writer = pen(draw.face("chinese"), snap(draw.integer(50, 110)))
    side = round(writer.size * len(text) + writer.size * draw.number(0.6, 2.4))
    side = max(side, 112, 2 * writer.size)
    paper = choose_paper(draw, 0.0)
    canvas = paper.sheet(Shape(side, side, side / TILE))
    free_x, free_y = side - writer.width(text), round(side - 1.3 * writer.size)
    x, top = (round(free * draw.number(0.1, 0.9)) for free in (free_x, free_y))
    writer.write(canvas, x, top + writer.size, text, paper.ink)
    return Sample("chinese", (canvas,), (Turn(draw.choice(READ_ALL), text, "read"),))


def _sign(draw: Draw) -> Sample:
    text = draw.listed(draw.weighted(("zh_sign", "zh_shop", "zh_street"), (6, 3, 2)))
    rows = [text]
    if len(text) >= 4 and len(text) % 2 == 0 and draw.chance(0.3):
        rows = [text[: len(text) // 2], text[len(text) // 2 :]]
    shape = square(draw)
    longest = max(map(len, rows))
    size = min(100.0, 448 * draw.number(0.55, 0.9) / longest)
    writer = pen(draw.face("chinese"), shape.letters(size))
    ground, ink = draw.choice(SIGN_COLOURS)
    around = draw.colour(90, 245)
    canvas = Image.new("RGB", (shape.width, shape.height), around)
    height = round(len(rows) * writer.size * 1.25 + writer.size * draw.number(0.4, 1.2))
    width = max(writer.width(row) for row in rows) + round(writer.size * 0.7)
    left = draw.integer(0, max(0, shape.width - width))
    top = draw.integer(0, max(0, shape.height - height))
    edge = max(2, writer.size // 14)
    if draw.chance(0.5):
        rule(canvas, left - edge, top - edge, left + width + edge, top + height + edge, ink)
    rule(canvas, left, top, left + width, top + height, ground)
    first = top + (height - round(len(rows) * writer.size * 1.2)) // 2
    for index, row in enumerate(rows):
        x = left + (width - writer.width(row)) // 2
        baseline = first + round(index * writer.size * 1.2 + writer.size * 0.98)
        writer.write(canvas, x, baseline, row, ink)
    describe = Turn(
        draw.choice(DESCRIBE_CHINESE),
        f"一块牌子，上面写着“{text}”。",
        "describe",
    )
    read = Turn(draw.choice(READ_ALL), "\n".join(rows), "read")
    return Sample("chinese", (canvas,), (describe if draw.chance(0.12) else read,))


def _lines(draw: Draw, difficulty: float) -> Sample:
    shape, paper = square(draw), choose_paper(draw, difficulty)
    writer = _pen(draw, shape, difficulty)
    room = shape.width - 2 * round(0.04 * shape.width)
    rows = [_phrases(draw, difficulty, writer, room) for _ in range(draw.integer(1, 6))]
    canvas = paper.sheet(shape)
    step = round(writer.size * draw.number(1.25, 1.7))
    rows = rows[: max(1, (shape.height - 2 * writer.size) // step)]
    free = shape.height - step * len(rows) - writer.size // 2
    top = draw.integer(0, max(0, free)) + writer.size // 4
    middle = draw.chance(0.3)
    for index, row in enumerate(rows):
        rest = room - writer.width(row)
        x = round(0.04 * shape.width) + (rest // 2 if middle else 0)
        writer.write(canvas, x, top + index * step + writer.size, row, paper.ink)
    turns = [Turn(draw.choice(READ_ALL), "\n".join(rows), "read")]
    if len(rows) > 1 and draw.chance(0.3):
        index = draw.integer(0, len(rows) - 1)
        wording = draw.choice(("第{}行写了什么？", "读出第{}行。", "第{}行是什么？"))
        turns.append(Turn(wording.format(ORDINALS[index]), rows[index]))
    if len(rows) > 1 and draw.chance(0.1):
        turns.append(Turn("一共有几行字？", str(len(rows))))
    return Sample("chinese", (canvas,), tuple(turns))


def _phrases(draw: Draw, difficulty: float, writer: Pen, room: int) -> str:
    """Words one after another, figures at times; in training, characters in any order too."""
    if draw.split == "train" and draw.chance(0.1 + 0.25 * difficulty):
        known = characters()
        count = draw.integer(2, max(2, min(12, room // writer.size)))
        return "".join(draw.choice(known) for _ in range(count))
    if draw.chance(0.12):
        return draw.of_split(lambda: _fact(draw))
    text = draw.listed(draw.choice(PHRASES))
    for _ in range(draw.integer(0, 2 + round(2 * difficulty))):
        longer = text + draw.choice(("", "", "", "，", " ", "、")) + draw.listed("zh_word")
        if writer.width(longer) > room:
            break
        text = longer
    return text


def _fact(draw: Draw) -> str:
    kind = draw.integer(0, 4)
    if kind == 0:
        return f"电话：{draw.digits(8)}"
    if kind == 1:
        return f"{draw.integer(1995, 2032)}年{draw.integer(1, 12)}月{draw.integer(1, 28)}日"
    if kind == 2:
        return f"{draw.listed('zh_item')} {_price(draw) / 100:.2f}元"
    if kind == 3:
        return f"{draw.listed('zh_city')}{draw.listed('zh_street')}{draw.integer(1, 300)}号"
    return f"{draw.listed('zh_field')}：{draw.listed('zh_person')}"


def _menu(draw: Draw, difficulty: float) -> Sample:
    shape, paper = square(draw), choose_paper(draw, 0.4)
    writer = _pen(draw, shape, difficulty, 30)
    title = (
        draw.listed("zh_shop") if draw.chance(0.5) else draw.choice(("菜单", "今日特价", "价目表"))
    )
    step = round(writer.size * draw.number(1.35, 1.7))
    most = (shape.height - writer.size) // step - 2
    goods = "zh_dish" if draw.chance(0.7) else "zh_item"
    names = draw.listed_several(goods, min(most, draw.integer(2, 6)))
    sign = draw.choice(PRICES)
    prices = [draw.integer(2, 98) for _ in names]
    values = [f"¥{price}" if sign == "¥" else f"{price}{sign}" for price in prices]
    canvas = paper.sheet(shape)
    left, right = round(0.07 * shape.width), round(0.93 * shape.width)
    x = (shape.width - writer.width(title)) // 2
    baseline = writer.size + draw.integer(0, writer.size // 2)
    writer.write(canvas, x, baseline, title, paper.ink)
    for name, value in zip(names, values, strict=True):
        baseline += step
        writer.write(canvas, left, baseline, name, paper.ink)
        writer.write(canvas, right - writer.width(value), baseline, value, paper.ink)
    rows = [title, *(f"{name} {value}" for name, value in zip(names, values, strict=True))]
    index = draw.integer(0, len(names) - 1)
    about = [
        Turn(
            draw.choice((f"{names[index]}多少钱？", f"{names[index]}的价格是多少？")), values[index]
        ),
        Turn(draw.choice(("菜单上有几样？", "一共有几种？")), str(len(names))),
        Turn(draw.choice(("标题是什么？", "最上面写了什么？")), title),
    ]
    if len(set(prices)) == len(prices) > 1:
        cheapest = min(range(len(prices)), key=prices.__getitem__)
        dearest = max(range(len(prices)), key=prices.__getitem__)
        about.append(Turn("最便宜的是什么？", names[cheapest]))
        about.append(Turn("最贵的是什么？", names[dearest]))
    return Sample("chinese", (canvas,), _mixed(draw, "\n".join(rows), [about[0], *about]))


def _receipt(draw: Draw, difficulty: float) -> Sample:
    shape = square(draw)
    shade = draw.integer(236, 255)
    paper = Paper((shade, shade, shade - draw.integer(0, 12)), draw.colour(0, 60))
    writer = _pen(draw, shape, difficulty, 26)
    step = round(writer.size * draw.number(1.25, 1.5))
    most = (shape.height - writer.size) // step - 3
    names = draw.listed_several("zh_item", max(1, min(most, draw.integer(2, 6))))
    prices = [_price(draw) for _ in names]
    shop, number = draw.listed("zh_shop"), draw.digits(draw.integer(4, 7))
    total = f"{sum(prices) / 100:.2f}"
    word = draw.choice(("合计", "总计", "金额"))
    pairs = [("单号", number)]
    pairs += [(name, f"{price / 100:.2f}") for name, price in zip(names, prices, strict=True)]
    pairs.append((word, total))
    canvas = paper.sheet(shape)
    left, right = round(0.08 * shape.width), round(0.92 * shape.width)
    baseline = writer.size + draw.integer(0, writer.size // 2)
    x = (shape.width - writer.width(shop)) // 2
    writer.write(canvas, x, baseline, shop, paper.ink)
    for name, value in pairs:
        baseline += step
        if name == word:
            top = baseline - writer.size - 1
            rule(canvas, left, top, right, top + 1, paper.ink)
        writer.write(canvas, left, baseline, name, paper.ink)
        writer.write(canvas, right - writer.width(value), baseline, value, paper.ink)
    index = draw.integer(0, len(names) - 1)
    about = [
        Turn(draw.choice((f"{word}多少？", "一共多少钱？", "总价是多少？")), total),
        Turn(f"{names[index]}多少钱？", pairs[index + 1][1]),
        Turn(draw.choice(("单号是多少？", "单号是什么？")), number),
        Turn(draw.choice(("店名是什么？", "这是哪家店？")), shop),
        Turn(draw.choice(("买了几样东西？", "有几种商品？")), str(len(names))),
    ]
    rows = [shop, *(f"{name} {value}" for name, value in pairs)]
    return Sample("chinese", (canvas,), _mixed(draw, "\n".join(rows), about))


def _mixed(draw: Draw, text: str, about: list[Turn]) -> tuple[Turn, ...]:
    if draw.chance(0.45):
        return (Turn(draw.choice(READ_ALL), text, "read"),)
    chosen = draw.several(about, min(len(about), draw.more(2)))
    return tuple({turn.question: turn for turn in chosen}.values())


def _price(draw: Draw) -> int:
    return draw.choice((draw.integer(10, 199) * 50, draw.integer(100, 9999)))


def _pen(draw: Draw, shape: Shape, difficulty: float, most: int = 60) -> Pen:
    size = min(most, 1.15 * letter_size(draw, difficulty) + 4)
    return pen(draw.face("chinese"), shape.letters(size))
