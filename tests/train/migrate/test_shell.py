"""Shell scripts are taken apart as a shell would, and never run."""

import pytest

from internvl2.train.migrate.command import find_command
from internvl2.train.migrate.flags import Flag


def flag(script: str, **variables: str) -> Flag:
    """The flag `--x` of the script's command."""
    command = find_command(script, variables)
    return next(found for found in command.flags if found.name == "x")


def value(script: str, **variables: str) -> tuple[str, ...]:
    """Its values as a program would get them."""
    found = flag(script, **variables)
    assert found.fault is None, found.fault
    return found.values


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("swift sft --x 'a $B' # --x c", ("a $B",)),
        ('B=1 C="two words"\nswift sft --x "$C" ${B}', ("two words", "1")),
        ("A='one two'\nswift sft --x $A", ("one", "two")),
        ("A=(one 'two three')\nswift sft --x \"${A[@]}\"", ("one", "two three")),
        ("A=(a b)\nA+=(c)\nswift sft --x ${A[2]} ${#A[@]}", ("c", "3")),
        ("swift sft --x ${A:-4} ${B:-'5 6'} ${C:-${D:-7}}", ("4", "5", "6", "7")),
        ("G=${G:-8}\nB=128\nswift sft --x $((B / 2 / G)) $(( (B - 1) % 10 * 2 ))", ("8", "14")),
        ("G=4\nswift sft --x $(expr 32 / $G) `expr 2 \\* $G`", ("8", "8")),
        ("swift sft --x=3 2>&1 | tee -a log.txt", ("3",)),
        ("swift sft --x -1 --y", ("-1",)),
        ("swift sft \\\n  --x 1 \\\n\n  # --x 2 \\\n", ("1",)),
        ("A=1\nB=$A.$A\nswift sft --x pre-${B}-post", ("pre-1.1-post",)),
        ('swift sft --x "a\\"b" c\\ d', ('a"b', "c d")),
        ("if [ ! -d o ]; then\n  mkdir -p o\nfi\nswift sft --x 1 > log", ("1",)),
        ("export A=1; unset A; cd y && swift sft --x ${A-none}", ("none",)),
        ("E=''\nswift sft $E --x 1 \"$@\"", ("1",)),
        ("L='python -m y --z 1'\n$L swift/cli/sft.py --x 2", ("2",)),
        ("A=1 swift sft --x ${A:-outer}", ("outer",)),
    ],
)
def test_words_are_those_that_a_shell_makes(script: str, expected: tuple[str, ...]):
    assert value(script) == expected


def test_variables_that_a_script_is_started_with_go_before_its_defaults():
    script = "G=${G:-8}\nswift sft --x $G"
    assert value(script, G="2") == ("2",)
    assert value(script) == ("8",)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("swift sft --x $(nproc)", r"\$\(nproc\) is a command, and none is run"),
        ("A=`ls`\nswift sft --x $A", r"\$A of line 1: `ls` is a command"),
        ("swift sft --x $A", r"\$A is set nowhere; give it with --set A=VALUE"),
        ("swift sft --x ${A%%/*}", "a form of expansion that is not read"),
        ("if true; then\n A=1\nfi\nswift sft --x $A", r"\$A of line 2: .* inside of an `if`"),
        ("for i in 1 2; do\nswift sft --x $i\ndone", r"\$i of line 1: it changes in a loop"),
        ("A=b\nswift sft --x $((A + 1))", "is 'b', not a whole number"),
        ("swift sft --x $((1 / 0))", "divides by 0"),
        ("swift sft --x $(expr length abc)", "the sum .*length abc.* is not read"),
        ("swift sft --x $((1if 2 else 3))", r"the sum .* is not read"),
        ("swift sft --x $((9 ** 9 ** 9))", r"has more than \+ - \* / %"),
        ("swift sft --x $((__import__('os').getpid()))", r"has more than \+ - \* / %"),
        ("A=aaaaaaaaaa\n" + "A=$A$A\n" * 40 + "swift sft --x $A", "more than 100000 characters"),
        ("swift sft --x " + "${A:-" * 300 + "}" * 300, "nested too deeply"),
    ],
)
def test_what_only_a_running_shell_knows_is_told_when_it_is_asked_for(script: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        flag(script).text()


def test_nothing_of_a_script_is_executed(tmp_path):
    trace = tmp_path / "trace"
    find_command(f"touch {trace}\nA=$(touch {trace})\nswift sft --x `touch {trace}` $A", {})
    assert not trace.exists()


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("swift sft --x 'a", "line 1: a quote is not closed by '"),
        ("\nA=(1\n", r"line 2: an array is not closed by \)"),
        ("A=(1 < 2)", r"line 1: an array is not closed by \)"),
        ("swift sft <<EOF\nEOF", "line 1: text after << is not read"),
        ("swift sft --x ${A", r"line 1: \$\{ is not closed by \}"),
    ],
)
def test_a_script_that_is_cut_off_is_refused_with_its_line(script: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        find_command(script, {})


def test_flags_of_launchers_and_variables_are_kept_apart_from_those_of_the_program():
    command = find_command("export A=1\nB=2 torchrun --x 3 internvl_chat_finetune.py --x 4", {})
    names = [(found.name, found.values) for found in command.flags]
    assert names == [
        *(("environment.A", ("1",)), ("environment.B", ("2",))),
        *(("launcher.x", ("3",)), ("x", ("4",))),
    ]
