# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The configuration language of NanoMQ, a dialect of HOCON: writing it, and reading it as the broker does.

What sets the dialect apart (NanoNNG: scanner.c, parser.c, hocon.c; each point was tried on NanoMQ 0.25.6):

* A character that begins no token is dropped without a word, and so is ``${VARIABLE}``: ``a = ${X}`` followed by
  ``b = 1`` reads as ``a { b = 1 }``.
* In a quoted string every backslash vanishes; only ``\\"`` stands for something. Unquoted words keep theirs.
* A lone value, or ``{}``, is a configuration: the broker starts with its defaults.
* The last of two equal keys in a block wins. Of two blocks of one name the first one's values win; in their inner
  blocks it is the last one's, one level deeper the first one's again, and so on.
* Names of keys are compared without regard to case, and the first match counts.
* An empty array crashes the broker; ``x { }`` is a syntax error, while ``x = {}`` is as if absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.edgesec.nanomq.plugins.module_utils import _schema

MASK = "***"
_MAX_DEPTH = 64
_MAX_INCLUDES = 10


class ConfError(ValueError):
    """A configuration that must not be written; `problems` says why, with no value in it."""

    def __init__(self, problems: list):
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfSyntaxError(ValueError):
    """A text that the broker cannot read (it exits or crashes); quotes nothing of it."""

    def __init__(self, message: str, line: int, column: int):
        self.message, self.line, self.column = message, line, column
        super().__init__(f"line {line}, column {column}: {message}")


# --- writing ----------------------------------------------------------------------------------------------------------

_BARE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")
_WORDS = ("true", "false", "null", "include")


def emit(conf: dict, *, version: str | None = None, partial: bool = False, indent: int = 2) -> str:
    """The text of `conf`, known keys in the order of the schema. Raises ConfError with every problem there is.

    version, partial: see `_schema.validate`. With partial, an empty `conf` gives an empty text.
    indent: spaces per level
    """
    problems = _schema.validate(conf, version, partial)
    if problems:
        raise ConfError(problems)
    pruned = _schema.prune(conf) or {}
    return "".join(line + "\n" for line in _block(_schema.TREE, pruned, "", " " * indent))


def quote(text: str) -> str:
    """A text as a quoted string. The text must have passed `_schema.text_problem`."""
    return '"' + text.replace('"', '\\"') + '"'


def _scalar(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))
    return quote(str(value))


def _in_order(node, block: dict) -> list:
    """(name, value) of a block: the schema's keys in its order, then the user's own names in theirs."""
    known = [(name, block[name]) for name in node.children if name in block]
    return known + [(name, value) for name, value in block.items() if name not in node.children]


def _block(node, block: dict, margin: str, step: str):
    """Lines of what stands between the braces of a block."""
    for name, value in _in_order(node, block):
        below = node.child(name)
        plain = _BARE_NAME.match(name) and name not in _WORDS
        if isinstance(value, dict):
            # The grammar wants a "=" between a quoted name and its block.
            yield f"{margin}{name} {{" if plain else f"{margin}{quote(name)} = {{"
            yield from _block(below, value, margin + step, step)
            yield margin + "}"
        elif isinstance(value, (list, tuple)):
            yield from _array(below, name, value, margin, step)
        else:
            yield f"{margin}{name if name in node.children else quote(name)} = {_scalar(value)}"


def _array(node, name: str, items: list, margin: str, step: str):
    if not isinstance(items[0], dict):
        yield f"{margin}{name} = [{', '.join(_scalar(item) for item in items)}]"
        return
    yield f"{margin}{name} = ["
    for item in items:
        yield f"{margin}{step}{{"
        yield from _block(node.item, item, margin + 2 * step, step)
        yield f"{margin}{step}}}"
    yield margin + "]"


# --- reading: tokens --------------------------------------------------------------------------------------------------

# The scanner's rules, in its order; the longest match wins, then the earlier rule.
_NUMBER = r"[+-]?[0-9]+"
_INCLUDE = r"include[ \t]*(?:required\([ \t]*(?:file\([ \t]*)?|file\([ \t]*)?\""
_RULES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("skip", r"[ \t\r\n]+|#[^\n]*|//[^\n]*"),
        ("punct", r"[{}\[\],:=]"),
        ("word", r"[A-Za-z][A-Za-z0-9_.@%|\\\"-]*"),
        ("text", r"[0-9]+(?:kb|KB|mb|MB|gb|GB|%|us|ms|MS|[dDhHmMsS])"),
        ("float", _NUMBER + r"(?:\.[0-9]*(?:[Ee][+-]?[0-9]+)?|[Ee][+-]?[0-9]+)"),
        ("int", _NUMBER),
        ("skip", r"\$\{\??[A-Za-z][A-Za-z0-9_.@%|\\\"-]*\}|\{MultilineChar\}\*"),
        ("skip", r"(?s:.)"),  # no rule: dropped
    )
)
_INCLUDE_RULE = re.compile(_INCLUDE)


def _rules_for(char: str) -> tuple:
    """The rules that can match at a character, so that not all of them need be tried."""
    if char in " \t\r\n#/":
        kinds = (0, 7)
    elif char in "{}[],:=":
        kinds = (1, 6)
    elif char.isalpha():
        kinds = (2,)
    elif char.isdigit() or char in "+-":
        kinds = (3, 4, 5, 7)
    else:
        kinds = (6, 7)
    return tuple(_RULES[index] for index in kinds)


_BY_CHARACTER = {chr(code): _rules_for(chr(code)) for code in range(128)}
_OTHERS = (_RULES[7],)


@dataclass(frozen=True)
class _Token:
    """kind: punct (`value` is the character), string, word, text, int, float, true, false, null or end"""

    kind: str
    value: object
    start: int
    end: int


class _Scanner:
    """Tokens of one text; those of included files are spliced in, with the position of the ``include``."""

    def __init__(self, text: str, reader=None, depth: int = 0, place=None):
        self.text, self.reader, self.depth, self.place = text, reader, depth, place
        self.comments: list = []  # (start, end)
        self.dropped: list = []  # (start, end) of what begins no token
        self.strings: list = []  # (start, end) of quoted strings

    def error(self, message: str, position: int) -> ConfSyntaxError:
        if self.place:
            return self.place(message)
        line = self.text.count("\n", 0, position) + 1
        return ConfSyntaxError(message, line, position - self.text.rfind("\n", 0, position))

    def tokens(self):
        text, at, blank = self.text, 0, False
        while at < len(text):
            char = text[at]
            if char == "\0":
                raise self.error("NUL character", at)
            include = _INCLUDE_RULE.match(text, at) if char == "i" else None
            kind, end = self._string(at) if char == '"' else self._longest(char, at)
            if include and (blank or include.end() >= end):
                end = yield from self._include(include, at)
            elif kind == "skip":
                self._note(char, at, end)
            else:
                if kind == "string":
                    self.strings.append((at, end))
                yield self._token(kind, text[at:end], at, end)
            blank = kind == "skip" and not text[at:end].strip(" \t")
            at = end

    def _longest(self, char: str, at: int) -> tuple:
        kind, end = "", at
        for rule, pattern in _BY_CHARACTER.get(char, _OTHERS):
            found = pattern.match(self.text, at)
            if found and found.end() > end:
                kind, end = rule, found.end()
        return kind, end

    def _note(self, char: str, at: int, end: int) -> None:
        if char == "#" or self.text.startswith("//", at):
            self.comments.append((at, end))
        elif not char.isspace() and not self.text.startswith("${", at) and char != "\ufeff":
            self.dropped.append((at, end))

    def _string(self, start: int) -> tuple:
        """A string ends at the first quote without a backslash, else at the last with one; a lone quote is dropped."""
        end, at = 0, start
        while True:
            before, at = at, self.text.find('"', at + 1)
            if at < 0:
                return ("string", end) if end else ("skip", start + 1)
            if "\0" in self.text[before:at]:
                raise self.error("NUL character", start)
            end = at + 1
            if self.text[at - 1] != "\\":
                return "string", end

    @staticmethod
    def _token(kind: str, raw: str, start: int, end: int) -> _Token:
        if kind == "string":
            return _Token(kind, _unescape(raw), start, end)
        if kind == "punct":
            return _Token("punct", "=" if raw == ":" else raw, start, end)
        if kind == "int":
            return _Token("int", _integer(raw), start, end)
        if kind == "float":
            return _Token("float", float(raw), start, end)
        if kind == "word" and raw in ("true", "false", "null"):
            return _Token(raw, {"true": True, "false": False}.get(raw), start, end)
        return _Token(kind, raw, start, end)

    def _include(self, found, at: int):
        """Splices in the tokens of an included file; returns where to go on."""
        text, opened = self.text, found.group(0).count("(")
        name = re.compile(r"[ \t]*([^ \t\n\"]+)[^\"\0]*\"" + r"[^)\0]*\)" * opened).match(text, found.end())
        if not name:
            raise self.error("include without a file name", at)
        if self.reader is None:
            raise self.error("includes another file", at)
        if self.depth >= _MAX_INCLUDES:
            raise self.error("includes nested too deeply", at)
        try:
            inner = self.reader(name.group(1))
        except (OSError, UnicodeDecodeError, KeyError):
            raise self.error("includes a file that cannot be read: the broker crashes", at) from None

        def place(message: str) -> ConfSyntaxError:
            return self.error(message + " (in an included file)", at)

        for token in _Scanner(inner, self.reader, self.depth + 1, place).tokens():
            yield _Token(token.kind, token.value, at, at)
        return name.end()


def _unescape(quoted: str) -> str:
    return quoted[1:].replace("\\", "")[:-1]


def _integer(digits: str) -> int:
    """What C's `atoll` makes of an integer."""
    magnitude = digits.lstrip("+-").lstrip("0") or "0"
    value = int(magnitude) if len(magnitude) < 20 else 2**63
    return min(max(-value if digits.startswith("-") else value, -(2**63)), 2**63 - 1)


# --- reading: grammar -------------------------------------------------------------------------------------------------


class _Object(list):
    """A block as it stands in the text: a list of _Member, with repetitions."""


@dataclass
class _Member:
    """A key and its value: _Object, list or _Leaf.

    start, end: where the value stands; in ``name { }`` all between the braces
    quoted: the name has a dot that does not part it
    """

    name: str
    value: object
    start: int
    end: int
    quoted: bool = False


@dataclass(frozen=True)
class _Leaf:
    value: object
    start: int
    end: int


class _Parser:
    """The broker's grammar, conflicts resolved as its parser generator does: a member goes on as long as it can."""

    def __init__(self, text: str, reader=None):
        self.scanner = _Scanner(text, reader)
        self.stream = self.scanner.tokens()
        self.size, self.end = len(text), 0
        self.here = self._next()
        self.after = self._next()

    def _next(self) -> _Token:
        return next(self.stream, None) or _Token("end", None, self.size, self.size)

    def advance(self) -> _Token:
        token, self.here, self.after = self.here, self.after, self._next()
        self.end = token.end
        return token

    def error(self, message: str) -> ConfSyntaxError:
        return self.scanner.error(message, self.here.start)

    def at(self, punct: str) -> bool:
        return self.here.kind == "punct" and self.here.value == punct

    def expect(self, punct: str) -> None:
        if not self.at(punct):
            raise self.error(f"syntax error: expected {punct}")
        self.advance()

    def document(self) -> _Object:
        if self.here.kind == "end":
            raise self.error("syntax error: nothing but blanks and comments")
        value = self.value(0)
        if self.here.kind != "end":
            raise self.error("syntax error: unexpected text")
        return value if isinstance(value, _Object) else _Object()  # the broker then starts with its defaults

    def value(self, depth: int):
        """_Object, list, _Leaf, or None for ``{}``."""
        if depth > _MAX_DEPTH:
            raise self.error("nested too deeply")
        if self.at("{"):
            self.advance()
            if self.at("}"):
                self.advance()
                return None
            members = self.members(depth)
            self.expect("}")
            return members
        if self.at("["):
            self.advance()
            if self.at("]"):
                raise self.error("empty array: the broker crashes")
            items = self.items(depth)
            self.expect("]")
            return items
        if self.starts_member():
            return self.members(depth)
        if self.here.kind in ("punct", "end"):
            raise self.error("syntax error: expected a value")
        token = self.advance()
        return _Leaf(token.value, token.start, token.end)

    def starts_member(self) -> bool:
        if self.after.kind != "punct":
            return False
        if self.here.kind == "word":
            return self.after.value in "={["
        return self.here.kind == "string" and self.after.value == "="

    def members(self, depth: int) -> _Object:
        members = _Object()
        while True:
            member = self.member(depth)
            if member.value is not None:
                members.append(member)
            if self.at(","):
                self.advance()
            elif self.here.kind not in ("string", "word"):
                return members

    def member(self, depth: int) -> _Member:
        if not self.starts_member():
            raise self.error("syntax error: expected a key and its value")
        token, opening = self.advance(), self.advance()
        start = self.here.start if opening.value == "=" else opening.end
        value = self.items(depth + 1) if opening.value == "[" else self.value(depth + 1)
        end = self.end
        if opening.value != "=":
            end = self.here.start
            self.expect("}" if opening.value == "{" else "]")
        return _Member(token.value, value, start, end, token.kind == "string" and "." in token.value)

    def items(self, depth: int) -> list:
        items = [self.value(depth + 1)]
        while not self.at("]"):
            if self.at(","):
                self.advance()
            items.append(self.value(depth + 1))
        return [item for item in items if item is not None]


# --- reading: meaning -------------------------------------------------------------------------------------------------


def _split_paths(value, fuel: list) -> None:
    """Turns ``a.b = 1`` into ``a { b = 1 }``, in the broker's own order of steps (and with its slips)."""
    if isinstance(value, list) and not isinstance(value, _Object):
        for item in value:
            _split_paths(item, fuel)
        return
    if not isinstance(value, _Object):
        return
    at = settled = 0
    while at < len(value):
        _burn(fuel)
        member = value[at]
        _split_paths(member.value, fuel)
        if member.quoted:
            member.quoted = False
            at += 1  # but `settled` stays behind: a later dotted key makes the broker come back here
        elif member.name.startswith('"'):
            member.name = _unescape(member.name)
            at += 1
        elif "." in member.name:
            _split_path(value, member.name)
            at = settled
        else:
            at += 1
            settled += 1


def _split_path(block: _Object, name: str) -> None:
    """Takes the first member of that name (in any case) apart, and puts it at the end."""
    index = next(i for i, member in enumerate(block) if member.name.lower() == name.lower())
    member = block.pop(index)
    first, *names = member.name.split(".")
    value = member.value
    for part in reversed(names):
        value = _Object([_Member(part, value, member.start, member.end)])
    block.append(_Member(first, value, member.start, member.end))


def _merge(value, fuel: list):
    """`value` with each name once: blocks are joined, the older one's values last, and of others the last one stays."""
    if not isinstance(value, _Object):
        return [_merge(item, fuel) for item in value] if isinstance(value, list) else value
    merged: dict = {}  # by identity: the broker may leave two of one name, see below
    latest: dict = {}
    for member in value:
        _burn(fuel, len(member.value) if isinstance(member.value, list) else 1)
        older = latest.pop(member.name, None)
        if older and isinstance(older.value, _Object) and isinstance(member.value, _Object):
            member.value = _Object([*member.value, *older.value])
            _burn(fuel, len(member.value) + len(merged))
            # The broker deletes the first of that name in any case, which need not be the one it joined.
            older = next(other for other in merged.values() if other.name.lower() == member.name.lower())
        if older:
            del merged[id(older)]
        member.value = _merge(member.value, fuel)
        merged[id(member)] = latest[member.name] = member
    return _Object(merged.values())


def _burn(fuel: list, amount: int = 1) -> None:
    """Bounds the work on a text that was made to be slow."""
    fuel[0] -= amount
    if fuel[0] < 0:
        raise ConfSyntaxError("too many repeated or dotted keys", 1, 1)


def _plain(node, value):
    """The Python value; names that the broker knows get the schema's case, and the first of them counts."""
    if isinstance(value, _Object):
        block: dict = {}
        for member in value:
            name = _fold(node, member.name, member.value)
            if name not in block:
                block[name] = _plain(node.child(name) if node else None, member.value)
        return block
    if isinstance(value, list):
        return [_plain(node.item if node else None, item) for item in value]
    return value.value


def _fold(node, name: str, value=None) -> str:
    if node is None or name in node.children or name.lower() not in node.children:
        return name
    if node.pattern == "auth.password" and isinstance(getattr(value, "value", None), str):
        return name  # a user of that name
    return name.lower()


def parse(text: str, reader=None) -> dict:
    """What the broker understands of a text.

    reader: called with the path of an included file, gives its text (OSError: unreadable). None: includes are refused.
    Values are bool, int, float, str, None (``null``), list and dict. Raises ConfSyntaxError and nothing else.
    """
    document = _Parser(text, reader).document()
    fuel = [100_000 + 20 * len(text)]
    _split_paths(document, fuel)
    return _plain(_schema.TREE, _merge(document, fuel))


# --- secrets ----------------------------------------------------------------------------------------------------------

_USERINFO = re.compile(r"(?<=://)[^/@\s\"]*:([^/@\s\"]*)@")
# What looks as if it assigned a secret, inside a comment or a string
_COMMENTED = re.compile(_schema._SECRET_NAME.pattern + r"[\w.\"' -]{0,40}[=:]\s*\S", re.I)


def _sensitive(members: _Object, path: tuple, node, zones: list):
    """(start, end, value) of every secret; `zones` collects (start, end) of the blocks that hold some by nature."""
    for member in members:
        names = [member.name] if member.quoted else member.name.split(".")
        below, inner = node, path
        for name in names:
            name = _fold(below, name, member.value)
            inner = (*inner, name)
            below = below.child(name) if below else None
        yield from _sensitive_value(member.value, member.start, member.end, inner, below, zones)


def _sensitive_value(value, start: int, end: int, path: tuple, node, zones: list):
    known = node is not None and (node.is_block or node.item is not None)
    if known and path[-1] in ("password", "headers"):
        zones.append((start, end))
    if not known and _schema.is_secret(path):
        yield start, end, value
    elif isinstance(value, _Object):
        yield from _sensitive(value, path, node, zones)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            below = node.item if node else None
            span = (item.start, item.end) if isinstance(item, _Leaf) else (start, end)
            yield from _sensitive_value(item, *span, (*path, index), below, zones)


def _leaves(value):
    if isinstance(value, _Leaf):
        yield value
    elif isinstance(value, _Object):
        for member in value:
            yield from _leaves(member.value)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _no_file(path: str) -> str:
    return ""


def redact(text: str) -> str:
    """The text with every secret replaced by ``"***"``, users' names kept. Never raises.

    A text that does not parse is not shown at all, since nobody can tell where its strings end. A string over several
    lines is masked as well: most likely a quote is missing, and it has swallowed more than it should.
    """
    try:
        parser = _Parser(text, _no_file)
        document = parser.document()
    except ConfSyntaxError as error:
        return f"(not shown: does not parse, line {error.line}, column {error.column})"
    if not document:
        return "(not shown: no key in it)"
    zones: list = []
    found = list(_sensitive(document, (), _schema.TREE, zones))
    cuts = [(start, end, quote(MASK)) for start, end, unused in found]
    cuts += [(start, end, MASK) for start, end in parser.scanner.dropped]
    for start, end in parser.scanner.strings:
        if "\n" in text[start:end] or _COMMENTED.search(text, start, end):
            cuts.append((start, end, quote(MASK)))
    values = [str(leaf.value) for unused, unused, value in found for leaf in _leaves(value)]
    for start, end in parser.scanner.comments:
        comment = text[start:end]
        in_zone = any(first <= start < last for first, last in zones) and re.search("[=:]", comment)
        if in_zone or _COMMENTED.search(comment) or any(len(v) > 3 and v in comment for v in values):
            cuts.append((start, end, "# " + MASK))
    cuts += [(leaf.start + m.start(), leaf.start + m.end(), MASK + "@") for leaf, m in _userinfo(text, document)]
    return _cut(text, cuts)


def _userinfo(text: str, document: _Object):
    for leaf in _leaves(document):
        for found in _USERINFO.finditer(text[leaf.start : leaf.end]):
            yield leaf, found


def hide_userinfo(text: str) -> str:
    """An address without the password in it."""
    return _USERINFO.sub(MASK + "@", text)


def _cut(text: str, cuts: list) -> str:
    """The text with (start, end, replacement) carried out; of overlapping ones the outermost."""
    done, at = [], 0
    for start, end, replacement in sorted(cuts, key=lambda cut: (cut[0], -cut[1])):
        if start >= at:
            done += [text[at:start], replacement]
            at = end
        at = max(at, end)
    return "".join(done) + text[at:]


def secrets(text: str) -> set:
    """The secret values in a text; of one that does not parse, every quoted string in it."""
    try:
        document = _Parser(text, _no_file).document()
    except ConfSyntaxError:
        return {_unescape(quoted) for quoted in re.findall(r'"(?:[^"\\]|\\.)*"', text, re.S)} - {""}
    found = {str(leaf.value) for item in _sensitive(document, (), _schema.TREE, []) for leaf in _leaves(item[2])}
    found |= {match.group(1) for unused, match in _userinfo(text, document)}
    return found - {""}
