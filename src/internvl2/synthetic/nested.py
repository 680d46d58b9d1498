"""Forms within forms, and which lies in which."""

from collections.abc import Sequence
from dataclasses import replace

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.forms import Form
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.scenes import Scene, choose_ground, choose_shapes, make_form, scatter

CONTAINERS = ("circle", "square", "rectangle", "hexagon", "pentagon")


def make_nested(draw: Draw, difficulty: float) -> Sample:
    """Two or three holders, all but one at most with a form within."""
    while True:
        ground = choose_ground(draw)
        side = draw.choice((384, 448, 448, 512))
        outer = draw.shuffled(CONTAINERS)[: draw.integer(2, 3)]
        inner = draw.shuffled(choose_shapes(difficulty))
        pairs = zip(outer, inner, strict=False)
        colours = draw.shuffled(ground.colours)
        holders, contents = [], []
        for i, (holder, content) in enumerate(pairs):
            holders.append(replace(make_form(draw, holder, colours[i]), hollow=True, turn=0))
            contents.append(make_form(draw, content, colours[-1 - i]))
        holders = scatter(draw, side, side, holders)
        contents = [_within(draw, a, b) for a, b in zip(holders, contents, strict=True)]
        empty = len(contents) > 2 and draw.chance(0.5)
        scene = Scene(side, side, ground, (*holders, *contents[: len(contents) - empty]))
        if draw.belongs(scene.key):
            break
    image, _ = scene.paint()
    return Sample("shapes", (image,), _nested_turns(draw, holders, contents, empty))


def _within(draw: Draw, holder: Form, content: Form) -> Form:
    play = round(0.08 * holder.radius)
    return replace(
        content,
        radius=holder.radius * (0.26 if holder.shape == "rectangle" else 0.38),
        x=holder.x + draw.integer(-play, play),
        y=holder.y + draw.integer(-play, play),
        hollow=False,
    )


def _nested_turns(
    draw: Draw, holders: Sequence[Form], contents: Sequence[Form], empty: bool
) -> tuple[Turn, ...]:
    turns = []
    filled = len(holders) - empty
    for i in draw.shuffled(range(len(holders)))[: draw.integer(1, 2)]:
        holder, content = holders[i], contents[i]
        if i >= filled:
            turns.append(Turn(f"Is there anything inside the {holder.name}?", "No"))
            continue
        turns.append(
            draw.choice(
                (
                    Turn(f"What is inside the {holder.name}?", content.name),
                    Turn(f"Which shape lies within the {holder.name}?", content.name),
                    Turn(f"What shape is the {content.colour} {content.shape} in?", holder.name),
                    Turn(f"Which shape contains the {content.name}?", holder.name),
                    Turn(f"Is the {content.name} inside the {holder.name}?", "Yes"),
                    Turn(
                        f"Is the {contents[(i + 1) % filled].name} inside the {holder.name}?",
                        "Yes" if (i + 1) % filled == i else "No",
                    ),
                    Turn(f"What colour is the shape inside the {holder.name}?", content.colour),
                )
            )
        )
    return tuple(turns)
