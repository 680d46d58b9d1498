"""What invoices, letters and forms say, and what one may ask about them."""

from collections.abc import Callable
from dataclasses import dataclass

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.lines import paragraph
from internvl2.synthetic.sample import Turn
from internvl2.synthetic.sheet import Row


@dataclass(frozen=True)
class Document:
    """Rows, and questions with their answers."""

    kind: str
    rows: tuple[Row, ...]
    turns: tuple[Turn, ...]
    summary: str
    """What follows its kind in a description: "from Bell Bakery with a total of 12.30"."""


def asked(draw: Draw, field: str, value: str) -> Turn:
    """A question for a field by its name."""
    wording = draw.choice(
        ("What is the {}?", "What is the {}?", "What is the {}?", "What's the {}?",
         "Find the {}.", "Which {}?", "Give me the {}.", "Tell me the {}.")
    )  # fmt: skip
    return Turn(wording.format(field), value)


def invoice(draw: Draw, difficulty: float) -> Document:
    """A bill for services, with quantities and amounts."""
    labels = _of_split(draw, _invoice_labels)
    title, number_label, date_label, to_label, total_label, has_due = labels.split("|")
    company, customer, number, date = draw.company(), draw.name(), draw.code(), draw.date()
    names = draw.listed_several("service", draw.integer(1, 2 + round(3 * difficulty)))
    counts = [draw.integer(1, 12) for _ in names]
    prices = [draw.integer(5, 240) for _ in names]
    amounts = [count * price for count, price in zip(counts, prices, strict=True)]
    total = f"{sum(amounts):.2f}"
    rows = [
        Row((company,), draw.choice(("left", "right", "left")), is_bold=True),
        Row((title,), "left", is_bold=True, gap_above=0.2),
        Row((number_label, number), draw.choice(("left", "spread"))),
        Row((date_label, date), "left"),
    ]
    due = draw.date()
    if has_due == "due" and due != date:
        rows.append(Row(("Due:", due), "left"))
    rows.append(Row((to_label, customer), "left"))
    rows.append(Row(("Item", "Qty", "Price", "Amount"), "table", rule_above=True, gap_above=0.3))
    turns = [
        asked(draw, "invoice number", number),
        asked(draw, "invoice date", date),
        Turn("Who sent this invoice?", company),
        Turn("Who is it from?", company),
        Turn(draw.choice(("How much do I have to pay?", "How much is it in all?")), total),
        Turn(draw.choice(("What is it for?", "List the items.")), ", ".join(names)),
        Turn("Who is it for?", customer),
        Turn("Who has to pay?", customer),
        *[asked(draw, draw.choice(("total", "total amount", "amount due")), total)] * 2,
        Turn("How many items are listed?", str(len(names))),
    ]
    if has_due == "due" and due != date:
        turns.append(Turn("When is it due?", due))
    else:
        turns += [Turn("What is the date?", date)] * 2
    for index, name in enumerate(names):
        cells = (name, str(counts[index]), f"{prices[index]}.00", f"{amounts[index]}.00")
        rows.append(Row(cells, "table", rule_above=index == 0))
        turns.append(Turn(f"What is the quantity of {name}?", cells[1]))
        turns.append(Turn(f"What is the unit price of {name}?", cells[2]))
        turns.append(Turn(f"What is the amount for {name}?", cells[3]))
    rows.append(Row((total_label, total), "spread", is_bold=True, rule_above=True))
    summary = f"from {company} for {customer}, {total} in all"
    return Document("invoice", tuple(rows), tuple(turns), summary)


def letter(draw: Draw, difficulty: float) -> Document:
    """A short letter with a date, a subject, a greeting and a signature."""
    style = _of_split(draw, _letter_style)
    greeting, closing, date_place, has_subject = style.split("|")
    writer, reader, date, city = draw.name(), draw.listed("first_name"), draw.date(), ""
    head = date
    if date_place == "city":
        city = draw.listed("city")
        head = f"{city}, {date}"
    length = draw.integer(22, 34)
    body = paragraph(draw, draw.integer(1, 2 + round(3 * difficulty)), lambda t: len(t) <= length)
    subject = f"{draw.listed('subject')}"
    rows = [Row((head,), "right" if date_place != "left" else "left")]
    if has_subject == "subject":
        rows.append(Row(("Subject:", subject), "left", is_bold=True, gap_above=0.4))
    rows.append(Row((f"{greeting} {reader},",), gap_above=0.4))
    rows += [Row((text,), gap_above=0.3 if index == 0 else 0) for index, text in enumerate(body)]
    rows.append(Row((closing,), gap_above=0.4))
    rows.append(Row((writer,)))
    turns = [
        Turn("Who wrote this letter?", writer),
        Turn("Who signed the letter?", writer),
        Turn("Who is it from?", writer),
        Turn("Who is the letter to?", reader),
        Turn("Whom is it addressed to?", reader),
        *[Turn("What is the date?", date)] * 3,
        asked(draw, "date of the letter", date),
        Turn("When was it written?", date),
    ]
    if has_subject == "subject":
        turns += [asked(draw, "subject", subject), Turn("What is the letter about?", subject)]
    if city:
        turns.append(Turn("Where was it written?", city))
    return Document("letter", tuple(rows), tuple(turns), f"from {writer} to {reader}")


def form(draw: Draw, difficulty: float) -> Document:
    """Fields with labels, as of a form, a card or a ticket."""
    most = 4 + round(4 * difficulty)
    layout = _of_split(draw, lambda draw: _form_layout(draw, most))
    align, mark, suffix, place, fields = layout.split("|")
    spread, count = align == "spread", int(fields)
    labels = draw.listed_several("field", count)
    values = [_value(draw, label) for label in labels]
    title = draw.listed(draw.choice(("subject", "business"))) + suffix
    rows = [Row((title,), "middle" if place == "middle" else "left", is_bold=True)]
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        rule = index == 0 or (spread and count < 5)
        rows.append(
            Row(
                (label + mark, value),
                "spread" if spread else "left",
                rule_above=rule,
                gap_above=0.15,
            )
        )
    turns = [Turn("What is the title?", title), Turn("How many fields are there?", str(count))]
    for label, value in zip(labels, values, strict=True):
        turns += [asked(draw, _lower(label), value), Turn(f"{label}?", value)]
    unique = [value for value in values if values.count(value) == 1]
    if unique:
        value = draw.choice(unique)
        turns.append(Turn(f'Which field says "{value}"?', labels[values.index(value)]))
    return Document("form", tuple(rows), tuple(turns), f'with {count} fields, titled "{title}"')


def _value(draw: Draw, label: str) -> str:
    makers: dict[str, Callable[[], str]] = {
        "Address": draw.street,
        "Age": lambda: str(draw.integer(5, 99)),
        "City": lambda: draw.listed("city"),
        "Company": draw.company,
        "Date": draw.date,
        "Date of Birth": draw.date,
        "Delivery": draw.date,
        "Destination": lambda: draw.listed("city"),
        "Email": draw.email,
        "Employer": draw.company,
        "First Name": lambda: draw.listed("first_name"),
        "Height": lambda: f"{draw.integer(90, 210)} cm",
        "Last Name": lambda: draw.listed("last_name"),
        "Location": lambda: draw.listed("city"),
        "Name": draw.name,
        "Phone": draw.phone,
        "Street": draw.street,
        "Subject": lambda: draw.listed("subject"),
        "Town": lambda: draw.listed("city"),
        "Weight": lambda: f"{draw.integer(2, 120)} kg",
    }
    people = ("Contact", "Customer", "Manager", "Member", "Teacher")
    if label in makers:
        return makers[label]()
    if label in people:
        return draw.name()
    if label.endswith(("No", "ID")) or label in ("Postcode", "Reference", "License", "Passport"):
        return draw.code()
    return draw.choice((draw.code, lambda: draw.word().capitalize()))()


def _lower(label: str) -> str:
    return label if label.endswith("ID") else label.lower()


def _of_split(draw: Draw, make: Callable[[Draw], str]) -> str:
    return draw.of_split(lambda: make(draw))


def _invoice_labels(draw: Draw) -> str:
    return "|".join(
        (
            draw.choice(("INVOICE", "Invoice", "Bill", "BILL", "Tax Invoice")),
            draw.choice(("Invoice no.:", "No.", "Invoice #", "Number:", "Invoice number:")),
            draw.choice(("Date:", "Invoice date:", "Issued:", "Dated")),
            draw.choice(("Bill to:", "To:", "Customer:", "For:", "Client:")),
            draw.choice(("Total", "TOTAL", "Total due", "Amount due", "Balance due")),
            draw.choice(("due", "", "")),
        )
    )


def _form_layout(draw: Draw, most: int) -> str:
    spread = draw.chance(0.35)
    return "|".join(
        (
            "spread" if spread else "left",
            draw.choice((":", "") if spread else (":", ":", "")),
            draw.choice(("", " Form", " Card", " Sheet")),
            draw.choice(("middle", "left")),
            str(draw.integer(2, most)),
        )
    )


def _letter_style(draw: Draw) -> str:
    return "|".join(
        (
            draw.choice(("Dear", "Dear", "Hello", "Hi", "Good morning")),
            draw.choice(
                ("Sincerely,", "Kind regards,", "Best wishes,", "Yours,", "Regards,", "Thank you,",
                 "With love,", "See you soon,")
            ),
            draw.choice(("left", "right", "city")),
            draw.choice(("subject", "")),
        )
    )  # fmt: skip
