"""What a receipt says, and what one may ask about it."""

from dataclasses import dataclass

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.papers import Document, asked
from internvl2.synthetic.sample import Turn
from internvl2.synthetic.sheet import Row

TOTALS = ("Total", "TOTAL", "Total due", "Amount due", "Sum", "To pay", "Grand total")
THANKS = (
    "Thank you!",
    "THANK YOU",
    "Thanks for your visit",
    "Please come again",
    "Have a nice day",
)


@dataclass(frozen=True)
class _Plan:
    """A template of receipts; which ones belong to which split follows from their key."""

    total: str
    has_street: bool
    has_phone: bool
    number: str
    amounts: str
    has_tax: bool
    paid: str
    sign: str
    has_thanks: bool
    has_title: bool

    @property
    def key(self) -> str:
        return "/".join(
            (self.total, self.number, self.amounts, self.paid, self.sign, f"{self.has_tax}",
             f"{self.has_street}{self.has_phone}{self.has_thanks}{self.has_title}")
        )  # fmt: skip


def receipt(draw: Draw, difficulty: float) -> Document:
    """A shop's receipt of one to eight wares."""
    plan = _choose_plan(draw)
    shop, number, date = draw.company(), draw.digits(draw.integer(3, 7)), draw.date()
    names = draw.listed_several("product", draw.integer(1, 3 + round(5 * difficulty)))
    counts = [draw.integer(1, 4) if plan.amounts != "none" else 1 for _ in names]
    prices = [draw.price(40, 4000) * count for count in counts]
    net = sum(prices)
    tax = round(net * draw.choice((5, 7, 8, 10, 19, 20)) / 100) if plan.has_tax else 0
    total = net + tax
    rows = _head(draw, plan, shop)
    rows.append(Row((f"{plan.number}{number}",), "left", rule_above=True))
    rows.append(Row((date, draw.time()), "spread"))
    for index, (name, count, price) in enumerate(zip(names, counts, prices, strict=True)):
        shown = {"before": f"{count} x {name}", "after": f"{name} x{count}"}.get(plan.amounts, name)
        rows.append(Row((shown, _amount(price, plan.sign)), "spread", rule_above=index == 0))
    if plan.has_tax:
        rows.append(Row(("Subtotal", _amount(net, plan.sign)), "spread", rule_above=True))
        rows.append(Row(("Tax", _amount(tax, plan.sign)), "spread"))
    value = _amount(total, plan.sign)
    rows.append(Row((plan.total, value), "spread", is_bold=True, rule_above=not plan.has_tax))
    turns = _about_head(shop, number, date) + _about_wares(plan, names, counts, prices)
    turns += [asked(draw, "total", value)] * 3
    paid = ("How much do I have to pay?", "How much did it cost?", "What is the total amount?")
    turns.append(Turn(draw.choice(paid), value))
    turns.append(Turn(draw.choice(("What was bought?", "List the items.")), ", ".join(names)))
    if plan.has_tax:
        turns += [Turn("How much is the tax?", _amount(tax, plan.sign)),
                  Turn("What is the subtotal?", _amount(net, plan.sign))]  # fmt: skip
    if plan.paid == "Cash":
        given = (total // 1000 + draw.integer(1, 3)) * 1000
        rows.append(Row(("Cash", _amount(given, plan.sign)), "spread"))
        rows.append(Row(("Change", _amount(given - total, plan.sign)), "spread"))
        turns.append(Turn("How much change was given?", _amount(given - total, plan.sign)))
        turns.append(Turn("How much cash was paid?", _amount(given, plan.sign)))
    elif plan.paid:
        rows.append(Row((f"Paid by {plan.paid}",), "left"))
        turns.append(Turn("How was it paid?", plan.paid))
    if plan.has_thanks:
        rows.append(Row((draw.choice(THANKS),), "middle", gap_above=0.4))
    return Document("receipt", tuple(rows), tuple(turns), f"from {shop} with a total of {value}")


def _choose_plan(draw: Draw) -> _Plan:
    while True:
        plan = _Plan(
            draw.choice(TOTALS),
            draw.chance(0.5),
            draw.chance(0.25),
            draw.choice(("Receipt ", "Receipt no. ", "No. ", "#", "Order ", "Ticket: ")),
            draw.weighted(("none", "before", "after"), (5, 3, 1)),
            draw.chance(0.3),
            draw.choice(("", "", "card", "Cash", "Visa", "phone")),
            draw.choice(("$", "", "", "€", "£")),
            draw.chance(0.4),
            draw.chance(0.2),
        )
        if draw.belongs(plan.key):
            return plan


def _head(draw: Draw, plan: _Plan, shop: str) -> list[Row]:
    rows = [Row((shop,), "middle", is_bold=True)]
    if plan.has_title:
        rows.append(Row((draw.choice(("RECEIPT", "Receipt", "Sales Receipt")),), "middle"))
    if plan.has_street:
        rows.append(Row((draw.street(),), "middle"))
        rows.append(Row((draw.listed("city"),), "middle"))
    if plan.has_phone:
        rows.append(Row((f"Tel. {draw.phone()}",), "middle"))
    return rows


def _about_head(shop: str, number: str, date: str) -> list[Turn]:
    return [
        Turn("Which shop is this receipt from?", shop),
        Turn("What is the name of the shop?", shop),
        Turn("Where was it bought?", shop),
        Turn("What is the receipt number?", number),
        *[Turn("What is the date?", date)] * 2,
        Turn("When was it bought?", date),
    ]


def _about_wares(plan: _Plan, names: list[str], counts: list[int], prices: list[int]) -> list[Turn]:
    turns = [
        Turn("How many different items were bought?", str(len(names))),
        Turn("How many kinds of items are on the receipt?", str(len(names))),
    ]
    for name, count, price in zip(names, counts, prices, strict=True):
        value = _amount(price, plan.sign)
        turns += [Turn(f"What is the price of {name}?", value)] * 2
        turns.append(Turn(f"{name}?", value))
        if plan.amounts != "none":
            turns.append(Turn(f"What is the quantity of {name}?", str(count)))
    if len(set(prices)) == len(prices) > 1:
        dearest = max(range(len(prices)), key=prices.__getitem__)
        cheapest = min(range(len(prices)), key=prices.__getitem__)
        turns.append(Turn("Which item costs the most?", names[dearest]))
        turns.append(Turn("Which item costs the least?", names[cheapest]))
        both = _amount(prices[0] + prices[1], plan.sign)
        turns.append(Turn(f"How much are {names[0]} and {names[1]} together?", both))
    return turns


def _amount(cents: int, sign: str) -> str:
    amount = f"{cents // 100}.{cents % 100:02}"
    return f"{amount} €" if sign == "€" else f"{sign}{amount}"
