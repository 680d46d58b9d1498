"""What the option parser complains about, as one plain line instead of a frame of several."""

import re

_RULE = re.compile(r"─{4,}|-{4,}")
_NAMED = re.compile(r" {4}(\S.*)")
"""An argument in a list; what it means stands below it, further to the right."""
_NEW_WORDS = {
    r"invalid choice (.+) for argument '(.+)'\. Expected one of \((.+)\)\.": r"\2 is \1; known: \3",
    r"Error parsing (\S+): .*invalid literal for int\(\).*: (.+)": r"\1 is \2, not a whole number",
    r"Error parsing (\S+): .*could not convert string to float: (.+)": r"\1 is \2, not a number",
    r"Missing value for argument '(.+)'\..*": r"\1 needs a value",
    r"Missing from .*:": "missing:",
    r"Expected one of \{(.+)\}\.": r"a command is missing; known: \1",
    r"Unrecognized or misplaced options: (\S+) .*": r"unknown option \1",
    r"Unrecognized options: (-[^,]*).*": r"unknown option \1",
    r"Unrecognized options: (.+)": r"not understood: \1",
}


def as_line(framed: str, command: str) -> str:
    """The parser's complaint about a `command`, and where more is told."""
    sections = _sections(framed)
    if not sections:
        return " ".join(framed.split())
    first, rest = sections[0], sections[1:]
    names = [match[1] for line in first if (match := _NAMED.fullmatch(line))]
    message = first[0] if names else " ".join(" ".join(first).split())
    for pattern, words in _NEW_WORDS.items():
        if re.fullmatch(pattern, message):
            message = re.sub(pattern, words, message)
            break
    parts = [f"{message} {', '.join(names)}" if names else message]
    for section in rest:
        if section[0].startswith("Available subcommands: "):
            parts.append(section[0].replace("Available subcommands", "known commands"))
        elif section[0] == "Perhaps you meant:":
            options = re.findall(r"(?<!\S)--[\w.-]+", section[1])
            others = [option for option in options if not message.endswith(f" {option}")]
            parts += [f"did you mean {' or '.join(others)}?"] if others else []
    return "; ".join([*parts, f"see {command} --help"])


def _sections(framed: str) -> list[list[str]]:
    """The lines inside the frame (drawn or of blanks, as the terminal can), cut at its rules."""
    sections: list[list[str]] = [[]]
    for line in framed.splitlines():
        content = line[2:].rstrip(" │")
        if line[1:2] != " ":
            continue  # the frame itself, with its title
        if _RULE.fullmatch(content.strip()):
            sections.append([])
        elif content:
            sections[-1].append(content)
    return [section for section in sections if section]
