"""Talk without a picture: who it is, small sums, words, and what it cannot know."""

from collections.abc import Callable

from internvl2.synthetic.draw import Draw
from internvl2.synthetic.sample import Sample, Turn
from internvl2.synthetic.wordings import DESCRIBE, READ

Speak = Callable[[Draw], Turn]

GREETINGS = (
    ("Hello!", "Hello! Show me a picture with text, a chart or shapes."),
    ("Hello", "Hello! Show me a picture with text, a chart or shapes."),
    ("Hi", "Hi! What would you like me to read?"),
    ("Hi there", "Hi! What would you like me to read?"),
    ("Hey", "Hi! What would you like me to read?"),
    ("Good morning", "Good morning! What can I read for you?"),
    ("Good evening", "Good evening! What can I read for you?"),
    ("How are you?", "I am fine, thank you. Show me a picture to read."),
    ("How are you today?", "I am fine, thank you. Show me a picture to read."),
    ("Thank you", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("Bye", "Goodbye!"),
    ("Goodbye", "Goodbye!"),
    ("See you", "Goodbye!"),
    ("你好", "你好！请给我看一张图片。"),
    ("您好", "你好！请给我看一张图片。"),
    ("谢谢", "不客气。"),
    ("再见", "再见！"),
)
WHO = (
    "I am nano, a small demonstration model of the internvl2 project. "
    "I read text, charts and shapes in pictures."
)
CAN = (
    "I read documents, signs and charts, count shapes, solve sums written in pictures, "
    "point at things, compare pictures and follow simple videos."
)
CANNOT = (
    "I am a small model. I cannot describe photos, I know little about the world, "
    "and I make mistakes."
)
MADE = "I was trained from scratch on drawn pictures by the internvl2 project."
ABOUT = (
    (WHO, ("Who are you?", "What are you?", "What is your name?", "What's your name?",
           "Introduce yourself.", "Tell me about yourself.", "Are you ChatGPT?",
           "Which model are you?",
           "Are you a robot?", "Who am I talking to?", "What model is this?",
           "Are you InternVL2?")),
    (CAN, ("What can you do?", "What can I ask you?", "How can you help me?",
           "What are you good at?",
           "Help", "What do you do?", "What should I ask?", "What are your skills?")),
    (CANNOT, ("What can't you do?", "What are your limits?", "Can you describe photos?",
              "What are you bad at?", "Can I trust you?", "Do you make mistakes?",
              "Are you always right?")),
    (MADE, ("Who made you?", "Who trained you?", "How were you trained?", "Where do you come from?",
            "What were you trained on?", "Who created you?")),
    ("Yes, some Chinese signs, menus and receipts.",
     ("Can you read Chinese?", "Do you know Chinese?", "Do you speak Chinese?")),
    ("Yes. I read English and some Chinese.",
     ("Can you read?", "Do you speak English?", "Which languages do you know?")),
    ("我是nano，internvl2项目的小模型，能读图中的文字。",
     ("你是谁？", "你叫什么名字？", "介绍一下你自己。", "你是什么模型？")),
    ("我能读图中的文字、图表和形状。", ("你会做什么？", "你能做什么？", "你可以帮助我吗？")),
)  # fmt: skip
NO_PICTURE = "I see no picture. Please give me one."
PICTURELESS = (
    *READ[:12], *DESCRIBE[:6],
    "What is in the picture?", "Read the text.", "What does the sign say?",
    "Describe this picture.",
    "How many circles are there?", "What is the total?", "Read the document.", "What do you see?",
    "Describe the image.", "What color is the square?", "Which bar is the highest?",
    "Read everything.", "What is written here?", "What does it say?", "Transcribe the text.",
)  # fmt: skip
UNKNOWN = "I don't know. I am a small model that reads pictures."
UNKNOWABLE = (
    "What is the weather today?", "What time is it?", "What day is it today?", "Who won the game?",
    "What is the capital of {city}?", "How old is {name}?", "Where does {name} live?",
    "Who is {name}?", "What is the news?", "Tell me a story.", "Write a poem.",
    "Write a poem about {word}.", "Write an essay about {word}.", "What is the meaning of life?",
    "What is {word}?", "Explain {word}.", "Why is the sky blue?", "What does {word} mean?",
    "Translate {word} into French.", "How do I cook {product}?", "Who is the president?",
    "How much does {product} cost?", "What is the stock price of {company}?",
    "Write a program.", "How far is it from {city} to {city}?", "What is love?",
    "Give me the phone number of {name}.", "How many people live in {city}?",
    "What is the best restaurant in {city}?", "Tell me a joke.", "Sing a song.",
    "Who invented {word}?",
)  # fmt: skip


def make(draw: Draw, difficulty: float) -> Sample:
    """One to three turns without a picture."""
    speakers: tuple[Speak, ...] = (
        _greeting, _about, _without_picture, _unknown, _sum, _comparison, _spelling, _repeating,
    )  # fmt: skip
    weights = (10, 22, 10, 18, 16 + 6 * difficulty, 6, 8, 8)
    count = draw.weighted((1, 2, 3), (70, 22, 8))
    turns = [draw.weighted(speakers, weights)(draw) for _ in range(count)]
    return Sample("talk", (), tuple({turn.question: turn for turn in turns}.values()))


def _greeting(draw: Draw) -> Turn:
    return Turn(*draw.choice(GREETINGS))


def _about(draw: Draw) -> Turn:
    answer, questions = draw.weighted(ABOUT, [len(questions) for _, questions in ABOUT])
    question = draw.choice(questions)
    if question.isascii() and draw.chance(0.12):
        question = draw.choice(("Hello! ", "Hi, ", "Please tell me: ")) + question
    return Turn(question, answer)


def _without_picture(draw: Draw) -> Turn:
    return Turn(draw.choice(PICTURELESS), NO_PICTURE)


def _unknown(draw: Draw) -> Turn:
    question = draw.choice(UNKNOWABLE)
    makers = {"name": draw.name, "word": draw.word, "company": draw.company}
    for field, make_one in makers.items():
        question = question.replace(f"{{{field}}}", make_one())
    for field in ("city", "product"):
        question = question.replace(f"{{{field}}}", draw.listed(field))
    return Turn(question, UNKNOWN)


def _sum(draw: Draw) -> Turn:
    expression, result = draw.of_split(lambda: _expression(draw)).split(" = ")
    wordings = ("What is {}?", "{} = ?", "{}", "How much is {}?", "Calculate {}.", "{}=?")
    return Turn(draw.choice(wordings).format(expression), result)


def _expression(draw: Draw) -> str:
    """Two numbers, what to do with them, and the result."""
    sign = draw.choice("++--x/")
    a, b = draw.integer(0, 60), draw.integer(0, 40)
    if sign == "+":
        return f"{a} + {b} = {a + b}"
    if sign == "-":
        return f"{max(a, b)} - {min(a, b)} = {abs(a - b)}"
    a, b = draw.integer(0, 12), draw.integer(1, 12)
    if sign == "x":
        return f"{a} {draw.choice(('x', '*', '×', 'times'))} {b} = {a * b}"
    return f"{a * b} {draw.choice('/÷')} {b} = {a}"


def _comparison(draw: Draw) -> Turn:
    a, b = draw.several(range(1000), 2)
    larger = draw.chance(0.5)
    word = draw.choice(("larger", "bigger", "greater")) if larger else "smaller"
    return Turn(f"Which is {word}, {a} or {b}?", str(max(a, b) if larger else min(a, b)))


def _spelling(draw: Draw) -> Turn:
    word = draw.word()
    return draw.choice(
        (
            Turn(f"Spell {word}.", " ".join(word)),
            Turn(f"Write {word} in capital letters.", word.upper()),
            Turn(f"What is the first letter of {word}?", word[0]),
            Turn(f"What is the last letter of {word}?", word[-1]),
            Turn(f"How many letters does {word} have?", str(len(word))),
        )
    )


def _repeating(draw: Draw) -> Turn:
    text = " ".join(draw.words(draw.integer(1, 5)))
    wording = draw.choice(("Repeat: {}", "Say: {}", "Repeat after me: {}", "Please say: {}"))
    return Turn(wording.format(text), text)
