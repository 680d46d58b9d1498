"""How a conversation is written down for each language model of the family.

Every member marks turns the same way, an opening, the text and a closing, and differs only in the
strings; so a template is data (`conversation.py` of the official code), and `layout` renders all.
"""

from dataclasses import dataclass

SHANGHAI_AI_LAB = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
INTERNVL_TEAM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。"
)
THINKING = """\
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential \
solutions, and reason through the problem step-by-step. Enclose this entire thinking process \
within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's \
question. Separate the answer from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer \
should be standalone and not reference the thinking section."""
"""The system text with which InternVL3.5 thinks before it answers (its model card)."""


JINJA = "".join(
    line.strip()
    for line in """
{%- set ns = namespace(pictures=0, number=0, text='') -%}
{%- for message in messages -%}
    {%- if message['content'] is not string -%}
        {%- for part in message['content'] if part['type'] in ['image', 'image_url'] -%}
            {%- set ns.pictures = ns.pictures + 1 -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{{- @PREFIX@ + @SYSTEM_OPENING@ -}}
{%- if not messages or messages[0]['role'] != 'system' -%}
    {{- @DEFAULT_SYSTEM@ + @END@ -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- @USER_OPENING@ -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- @ASSISTANT_OPENING@ -}}
    {%- elif message['role'] != 'system' or not loop.first -%}
        {{- raise_exception('message ' ~ loop.index ~ ' has the role ' ~ message['role']) -}}
    {%- endif -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- set ns.text = '' -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {%- set ns.text = part['text'] -%}
                {{- part['text'] -}}
            {%- else -%}
                {%- if ns.text and ns.text[-1] != '\\n' -%}
                    {{- '\\n' -}}
                {%- endif -%}
                {%- set ns.text = '' -%}
                {%- if part['type'] in ['image', 'image_url'] -%}
                    {%- set ns.number = ns.number + 1 -%}
                    {%- if ns.pictures > 1 -%}
                        {{- 'Image-' ~ ns.number ~ ': ' -}}
                    {%- endif -%}
                    {{- @PICTURE@ + '\\n' -}}
                {%- else -%}
                    {{- '<video>\\n' -}}
                {%- endif -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- @END@ -}}
{%- endfor -%}
{%- if add_generation_prompt and (not messages or messages[-1]['role'] != 'assistant') -%}
    {{- @ASSISTANT_OPENING@ -}}
{%- endif -%}
""".splitlines()
)
"""The layout of a prompt in Jinja; the names between @ are a template's own strings."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What begins a turn: a control token and the text after it."""

    token: str
    text: str


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The strings of one way to write conversations down."""

    name: str
    system: Opening
    user: Opening
    assistant: Opening
    end: str
    """The control token that closes a turn; the model writes it to stop."""
    default_system: str
    after_end: str = ""
    """Text between a closing and the next opening."""
    frame_label: str = "Frame{}"
    """How the frames of a video are numbered."""

    def opening(self, role: str) -> Opening:
        """What begins a turn of this role."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]

    def jinja(
        self, *, system: str | None = None, prefix: str = "", picture: str = "<IMG_CONTEXT>"
    ) -> str:
        """The template in the language of other programs (chat_template.jinja).

        It renders what we render, with `picture` and `<video>` as placeholders; `prefix` is what
        the tokenizer writes before all.
        """
        values = {
            "PREFIX": prefix,
            "SYSTEM_OPENING": self.system.token + self.system.text,
            "USER_OPENING": self.user.token + self.user.text,
            "ASSISTANT_OPENING": self.assistant.token + self.assistant.text,
            "END": self.end + self.after_end,
            "DEFAULT_SYSTEM": self.default_system if system is None else system,
            "PICTURE": picture,
        }
        text = JINJA
        for name, value in values.items():
            text = text.replace(f"@{name}@", _jinja_text(value))
        return text


def _chatml(role: str) -> Opening:
    return Opening("<|im_start|>", f"{role}\n")


def _chatml_template(name: str, **differences: str) -> ChatTemplate:
    return ChatTemplate(
        name=name,
        system=_chatml("system"),
        user=_chatml("user"),
        assistant=_chatml("assistant"),
        end="<|im_end|>",
        **{"default_system": SHANGHAI_AI_LAB} | differences,
    )


TEMPLATES = {
    template.name: template
    for template in (
        _chatml_template("Hermes-2"),
        _chatml_template("internlm2-chat"),
        ChatTemplate(
            name="phi3-chat",
            system=Opening("<|system|>", "\n"),
            user=Opening("<|user|>", "\n"),
            assistant=Opening("<|assistant|>", "\n"),
            end="<|end|>",
            default_system=SHANGHAI_AI_LAB,
        ),
        _chatml_template(
            "internvl2_5",
            default_system=INTERNVL_TEAM,
            after_end="\n",
            frame_label="Frame-{}",
        ),
    )
}


def _jinja_text(text: str) -> str:
    """A string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def find_template(name: str) -> ChatTemplate:
    """The template of this name."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown chat template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
