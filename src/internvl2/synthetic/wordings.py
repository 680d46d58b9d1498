"""How people ask: the questions that every picture may be asked, and how a question is varied.

Typed questions lack their capital or their mark, are short or polite, and have slips. The same is
drawn for train and test, for a test asks about unseen pictures, not in an unseen manner.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.sample import Turn

READ = (
    "Read the text.", "Read all the text.", "What does it say?", "What is written here?",
    "What does the picture say?", "What text is in the picture?", "OCR", "OCR this image.",
    "Please transcribe the text.", "Transcribe the text.", "Can you read this?", "Read this.",
    "Read it to me.", "Read the text in the image.", "Extract the text.", "Text?",
    "Extract all the text from the image.", "What's written in this picture?",
    "Could you read this for me?", "Tell me what it says.", "What is the text in the image?",
    "Recognize the text.", "Perform OCR on this image.", "Convert the image to text.",
    "Write down the text.", "Copy the text.", "What does this say?", "Read everything.",
    "What words are in the picture?", "Type out what you can read.", "Read aloud.",
    "Please read the text in this picture line by line.",
)  # fmt: skip
"""Its answer is all that is written, whatever kind of picture it is."""
DESCRIBE = (
    "Describe this picture.", "Describe the picture.", "Describe this image.",
    "Describe the image.", "What do you see?", "What is in this picture?",
    "What's in this image?", "What does the picture show?", "What does this image show?",
    "What is shown here?", "Please describe the image shortly.", "Caption this image.",
    "Give a short description of the image.", "Tell me about this picture.",
    "What can you see in the picture?", "Describe what you see.",
)  # fmt: skip
READ_CHINESE = (
    "图中写了什么？", "读出图中的文字。", "请识别图片中的文字。", "这张图上写着什么？",
    "把图里的字写出来。", "图片里的文字是什么？", "读一下。", "请逐行读出文字。",
    "提取图中的文字。", "这上面写的是什么？", "识别文字。", "请读出所有文字。", "上面写了什么字？",
    "写的什么？", "请把图片转成文字。", "图里的文字内容是什么？",
)  # fmt: skip
DESCRIBE_CHINESE = (
    "描述这张图片。", "图里有什么？", "请描述这张图片。", "你看到了什么？", "这是什么图片？",
    "图片里有什么？",
)  # fmt: skip

VARIED = 0.24
PLAIN = 0.4
_OPENERS = re.compile(
    r"(What|Which|How|Who|Whom|When|Where|Why|Is|Are|Does|Do|Can|Could|Please|In|On|At|The|Read|"
    r"Describe|Count|Find|Give|Tell|List|Name|Locate|Detect|Calculate|Solve|Transcribe|Extract|"
    r"Write|Work|Fill|Convert|Copy|Type|Show|Caption|Recognize|Perform)(?=[ ',.?]|$)"
)
_ASKS = re.compile(r"(What|Which|How|Who|Whom|When|Where|Is|Are|Does|Do|In|On|At) .*\?")
_ORDERS = re.compile(
    r"(Read|Describe|Count|Find|Give|Tell|List|Name|Locate|Detect|Calculate|Solve|Transcribe|"
    r"Extract|Write|Convert|Copy) .*\."
)
_WHAT_IS = re.compile(r"What(?: is|'s) the ([^<?]{3,40})\?")
_POLITE = ("{} Thanks.", "Please tell me: {}", "Can you tell me: {}", "Hi! {}", "Hello, {}",
           "A question: {}", "Quick question: {}", "I would like to know: {}")  # fmt: skip
_POLITE_ORDERS = ("Please {}", "Can you {}?", "Could you {}?", "Could you please {}?",
                  "Would you {}?", "I want you to {}", "Now {}")  # fmt: skip
_POLITE_CHINESE = ("请问，{}", "请告诉我，{}", "你好，{}", "{}谢谢。")
_SLIPS = frozenset(
    (
        "what", "which", "does", "picture", "written", "describe", "image", "there", "many",
        "colour", "color", "highest", "lowest", "largest", "smallest", "total", "read", "text",
        "number", "where", "value", "please", "says", "date", "price", "name", "transcribe",
        "line", "direction", "move", "shape", "shapes", "calculate", "result",
    )
)  # fmt: skip


def plain_or(draw: Draw, plain: str, others: Sequence[str]) -> str:
    """What most people would ask first, the most frequent wording, or one of the others."""
    return plain if draw.chance(PLAIN) else draw.choice(others)


def spoken(draw: Draw, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns with some of their questions as people type them; no two become alike."""
    taken = {turn.question for turn in turns}
    varied: list[Turn] = []
    for turn in turns:
        question = vary(draw, turn.question) if draw.chance(VARIED) else turn.question
        if question not in taken:
            taken.add(question)
            turn = replace(turn, question=question)
        varied.append(turn)
    return tuple(varied)


def vary(draw: Draw, question: str) -> str:
    """The question in a more casual, shorter or more polite form; what it is about stays."""
    if question[-1] in "？。":
        return draw.choice(("{}", "{}", *_POLITE_CHINESE)).format(question).rstrip("？。")
    kind = draw.weighted(("typed", "polite", "short", "slip"), (42, 24, 16, 18))
    if kind == "polite" and _ORDERS.fullmatch(question):
        return draw.choice(_POLITE_ORDERS).format(_lowered(question).rstrip("."))
    if kind == "polite" and _ASKS.fullmatch(question):
        return draw.choice(_POLITE).format(question)
    if kind == "short" and (match := _WHAT_IS.fullmatch(question)):
        return draw.choice(("{}?", "{}", "the {}?", "{} ?", "{}, please")).format(match[1])
    if kind == "slip":
        return _with_slip(draw, question)
    return _typed(draw, question)


def _typed(draw: Draw, question: str) -> str:
    """Without the capital, the mark, or both."""
    without = question[:-1] if question[-1] in ".?" and not question.endswith("..") else question
    return draw.choice((_lowered(question), without, _lowered(without), _lowered(without)))


def _lowered(question: str) -> str:
    """A small letter first, where no name stands there."""
    return question[0].lower() + question[1:] if _OPENERS.match(question) else question


def _with_slip(draw: Draw, question: str) -> str:
    """Two letters of a usual word exchanged, one lost or doubled."""
    words = question.split(" ")
    usual = [i for i, word in enumerate(words) if word.strip(".,:?").lower() in _SLIPS]
    if not usual:
        return _typed(draw, question)
    place = draw.choice(usual)
    word = words[place]
    at = draw.integer(1, len(word.strip(".,:?")) - 2)
    kind = draw.integer(0, 2)
    if kind == 0:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif kind == 1:
        word = word[:at] + word[at + 1 :]
    else:
        word = word[:at] + word[at] + word[at:]
    return " ".join((*words[:place], word, *words[place + 1 :]))
