"""What charts are about: titles, names of categories and series, axis labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from internvl2.synthetic.draw import Draw

CLOSED: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "Month": (
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ),
        "Day": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
        "Quarter": ("Q1", "Q2", "Q3", "Q4"),
        "Year": tuple(str(year) for year in range(2008, 2030)),
        "Group": ("A", "B", "C", "D", "E", "F", "G", "H"),
        "Class": ("1A", "1B", "2A", "2B", "3A", "3B", "4A", "4B"),
    }
)  # fmt: skip
"""Names of which all belong to both splits: there are no others."""
OPEN: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "Fruit": (
            "Apples", "Bananas", "Cherries", "Grapes", "Lemons", "Mangoes", "Oranges", "Pears",
            "Peaches", "Plums", "Melons", "Kiwis", "Figs", "Dates", "Limes", "Berries",
        ),
        "Country": (
            "France", "Spain", "Italy", "China", "Japan", "India", "Brazil", "Chile", "Peru",
            "Egypt", "Kenya", "Norway", "Sweden", "Poland", "Greece", "Canada", "Mexico", "Turkey",
        ),
        "Animal": (
            "Cats", "Dogs", "Birds", "Fish", "Horses", "Cows", "Sheep", "Goats", "Rabbits",
            "Ducks", "Bears", "Lions", "Tigers", "Frogs",
        ),
        "Language": (
            "Python", "Java", "Rust", "Go", "Swift", "Ruby", "Kotlin", "Scala", "Julia", "Perl",
        ),
        "Product": (
            "Phones", "Laptops", "Tablets", "Books", "Shoes", "Chairs", "Tables", "Lamps", "Toys",
            "Bikes", "Cameras", "Watches", "Shirts", "Hats", "Bags", "Desks",
        ),
        "Department": (
            "Sales", "Finance", "Design", "Legal", "Support", "Research", "Marketing", "IT", "HR",
            "Logistics", "Security", "Training",
        ),
        "Expense": (
            "Rent", "Food", "Travel", "Savings", "Clothes", "Health", "Energy", "Insurance",
            "Leisure", "Taxes", "Transport", "Housing",
        ),
        "Sport": (
            "Soccer", "Tennis", "Golf", "Hockey", "Rugby", "Boxing", "Cycling", "Swimming",
            "Running", "Skiing", "Cricket", "Rowing",
        ),
    }
)  # fmt: skip
LISTED: Mapping[str, str] = MappingProxyType({"City": "city", "Person": "first_name"})
"""Kinds whose names are a list of the package."""
MEASURES = (
    "Sales", "Revenue", "Profit", "Visitors", "Orders", "Cost", "Price", "Score", "Population",
    "Output", "Rainfall", "Temperature", "Users", "Votes", "Students", "Units", "Downloads",
    "Distance", "Weight", "Points", "Exports", "Budget", "Demand", "Growth", "Hours", "Members",
)  # fmt: skip
UNITS = ("", "", "", " ($)", " (%)", " (k)", " (kg)", " (units)", " (tons)", " (hours)")


@dataclass(frozen=True)
class Subject:
    """The words of one chart."""

    kind: str
    categories: tuple[str, ...]
    series: tuple[str, ...]
    measure: str
    title: str


def choose_subject(draw: Draw, categories: int, series: int) -> Subject:
    """Names that differ; those of an ordered kind stay in their order."""
    in_order = draw.chance(0.4)
    kinds = [kind for kind in CLOSED if len(CLOSED[kind]) >= categories]
    kind = draw.choice(kinds) if in_order else draw.choice((*OPEN, *LISTED))
    names = _in_order(draw, kind, categories) if in_order else _names(draw, kind, categories)
    measure = draw.choice(MEASURES)
    return Subject(
        kind, names, _series_names(draw, series, names), measure, _title(draw, kind, measure)
    )


def _in_order(draw: Draw, kind: str, count: int) -> tuple[str, ...]:
    start = draw.integer(0, len(CLOSED[kind]) - count)
    return tuple(CLOSED[kind][start : start + count])


def _names(draw: Draw, kind: str, count: int) -> tuple[str, ...]:
    """Names of a kind that belong to the split, or words of the split, or both."""
    if kind in LISTED:
        return tuple(draw.listed_several(LISTED[kind], count))
    known = [] if draw.chance(0.4) else [name for name in OPEN[kind] if draw.belongs(name)]
    names = draw.shuffled(known)[:count]
    while len(names) < count:
        word = draw.word().capitalize()
        if word not in names and len(word) <= 11:
            names.append(word)
    return tuple(names)


def _series_names(draw: Draw, count: int, taken: Sequence[str]) -> tuple[str, ...]:
    fixed = (("Men", "Women"), ("2023", "2024", "2025"), ("North", "South", "East", "West"))
    choices = [names for names in fixed if len(names) >= count and not set(names) & set(taken)]
    if draw.chance(0.4) and choices:
        return tuple(draw.choice(choices)[:count])
    names: list[str] = []
    while len(names) < count:
        word = draw.word().capitalize()
        if word not in names and word not in taken and len(word) <= 9:
            names.append(word)
    return tuple(names)


def _title(draw: Draw, kind: str, measure: str) -> str:
    word = draw.word().capitalize()
    return draw.choice(
        (
            f"{measure} by {kind}",
            f"{measure} per {kind}",
            f"{word} {measure}",
            f"{word} {measure} by {kind}",
            f"{word} {draw.word().capitalize()}",
            f"{measure} of {word}",
            f"{measure} {draw.integer(1990, 2030)}",
        )
    )
