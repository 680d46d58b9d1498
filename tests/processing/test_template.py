"""Templates as data, and the same templates in Jinja."""

import jinja2
import pytest

from internvl2.processing.conversation import Message, Picture, Text, Video
from internvl2.processing.layout import ImageTokens, Layout, MediumSize
from internvl2.processing.template import TEMPLATES, THINKING, ChatTemplate, find_template

CONVERSATIONS = {
    "a question": [Message.user("What is this?")],
    "a system text": [Message.system('It\'s \\ "short".\n'), Message.user("Hi")],
    "an answer": [Message.user("Hi"), Message.assistant("Yes?\n"), Message.user("Go on.")],
    "an answered end": [Message.user("Hi"), Message.assistant("")],
    "a picture": [Message.user(Picture("a.png"), "What is this?")],
    "a picture after text": [Message.user("What is this?", Picture("a.png"))],
    "pictures in turns": [
        Message.user(Picture("a.png"), Picture("b.png"), "Compare."),
        Message.assistant("Both are red."),
        Message.user("Line\n", Picture("c.png"), "And this?"),
    ],
    "a video": [Message.user(Video("a.mp4", num_frames=1), "What happens?")],
}
KINDS = {Picture: "image", Video: "video"}


@pytest.fixture(params=TEMPLATES)
def template(request) -> ChatTemplate:
    return TEMPLATES[request.param]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_jinja_renders_what_we_render(template, name):
    conversation = CONVERSATIONS[name]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    jinja = environment.from_string(template.jinja(prefix="<s>", picture="<image>"))
    rendered = jinja.render(messages=openai_form(conversation), add_generation_prompt=True)
    assert rendered == "<s>" + ours(template, conversation)


def test_jinja_takes_another_default_system_text(template):
    jinja = jinja2.Environment().from_string(template.jinja(system="Be brief.\\n"))
    rendered = jinja.render(messages=[{"role": "user", "content": "Hi"}])
    assert rendered.startswith(f"{template.system.token}{template.system.text}Be brief.\\n")


def test_jinja_refuses_a_late_system_message(template):
    def refuse(message: str) -> None:
        raise ValueError(message)

    jinja = jinja2.Environment().from_string(template.jinja())
    messages = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "No"}]
    with pytest.raises(ValueError, match="message 2 has the role system"):
        jinja.render(messages=messages, raise_exception=refuse)


def test_an_unknown_template_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown chat template 'vicuna'; known: Hermes-2, intern"):
        find_template("vicuna")


def test_the_thinking_text_asks_for_think_tags():
    assert THINKING.startswith("You are an AI assistant that rigorously follows")
    assert "<think> and </think> tags" in THINKING


def ours(template: ChatTemplate, conversation: list[Message]) -> str:
    """Our prompt as text, a picture as `<image>` and a video as `<video>`."""
    tokens = [template.system.token, template.user.token, template.assistant.token, template.end]
    controls = {token: number for number, token in enumerate(tokens)}
    layout = Layout(template, controls, ImageTokens(7, 8, 9), frame_label="<video>")
    turns = conversation[1:] if conversation[0].role == "system" else conversation
    system = conversation[0].text if turns is not conversation else template.default_system
    media = [p for m in turns for p in m.content if not isinstance(p, Text)]
    opened = turns[-1].role != "assistant"
    pieces = layout.pieces(system, turns, [MediumSize((1,))] * len(media), open_answer=opened)
    text = "".join("" if p.token_id in (7, 9) else p.text for p in pieces)
    return text.replace("<video>: <IMG_CONTEXT>", "<video>").replace("<IMG_CONTEXT>", "<image>")


def openai_form(conversation: list[Message]) -> list[dict]:
    return [{"role": m.role, "content": _content(m)} for m in conversation]


def _content(message: Message) -> str | list[dict]:
    if all(isinstance(part, Text) for part in message.content):
        return message.text
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": KINDS[type(part)]}
        for part in message.content
    ]
