"""Makes a model's or a server's words safe for a terminal: control characters become visible signs."""

from __future__ import annotations

# Line ends and tabs stay; carriage returns are dropped; escape and similar ones are shown as U+241B and so on. The
# second set of control characters (U+0080 to U+009F) contains terminal commands of one character, and has no signs of
# its own.
_SIGNS: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(0x20)}
_SIGNS |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}
_SIGNS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}
# These change the direction of the text around them, even of the prompt.
_SIGNS |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
# Half of a surrogate pair, which cannot be sent to a terminal.
_SIGNS |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def clean(text: str) -> str:
    return text.translate(_SIGNS)


def one_line(text: str, most: int = 300) -> str:
    """The same for a message of one line, cut if it is long."""
    whole = " ".join(clean(text).split())
    return whole if len(whole) <= most else whole[: most - 1] + "…"
