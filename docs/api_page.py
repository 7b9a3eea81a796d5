"""The directive `{public}`: what a public name takes and gives, in the code's own words, read from its docments."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from docutils import nodes
from docutils.parsers.rst import directives
from fastai.callback.core import Callback
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import fastai_heads


class Param(NamedTuple):
    "A parameter as its source has it."

    name: str
    type: str
    default: str
    comment: str


class Call(NamedTuple):
    "How something is called."

    params: list[Param]
    returns: Param | None = None


def parse(thing: Any) -> tuple[Any, dict[int, str]]:  # the definition, and its comments by line
    "Read the source of a class or a function."
    source = textwrap.dedent(inspect.getsource(thing))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    return ast.parse(source).body[0], comments


def read_param(
    node: ast.arg | ast.AnnAssign,  # the parameter or the field
    default: ast.expr | None,  # as the source has it
    after: int,  # the line on which the next thing begins; the comments before it are this one's
    comments: dict[int, str],  # line → comment
    stars: str = "",  # before the name
) -> Param:
    "Read one parameter with its docment."
    name = node.target.id if isinstance(node, ast.AnnAssign) else node.arg
    said = " ".join(comments[line] for line in range(node.lineno, after) if line in comments)
    type_, value = (ast.unparse(part) if part else "" for part in (node.annotation, default))
    return Param(stars + name, type_, value, said)


def read_function(
    function: Any,  # or a method
    bound: bool = False,  # its first argument is the object before the dot, whatever its name
) -> Call:
    "Read the docments of a function or a method."
    node, comments = parse(inspect.unwrap(function))
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + given.defaults
    found = [(arg, value, "") for arg, value in zip(plain, defaults)]
    found += [(given.vararg, None, "*")] if given.vararg else []
    found += [(arg, value, "") for arg, value in zip(given.kwonlyargs, given.kw_defaults)]
    found += [(given.kwarg, None, "**")] if given.kwarg else []
    end = node.returns.lineno if node.returns else node.body[0].lineno
    ends = [arg.lineno for arg, _, _ in found[1:]] + [end]
    params = [read_param(arg, value, after, comments, stars) for (arg, value, stars), after in zip(found, ends)]
    returns = None
    if node.returns and ast.unparse(node.returns) != "None":
        said = [comments[line] for line in range(node.returns.end_lineno, node.body[0].lineno) if line in comments]
        returns = Param("", ast.unparse(node.returns), "", " ".join(said))
    return Call(params[bound:], returns)


def read_fields(cls: type) -> Call:
    "Read the docments of a dataclass. A field is as the last class has it that names it."
    known = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        node, comments = parse(base)
        ends = [item.lineno for item in node.body[1:]] + [node.end_lineno + 1]
        for item, after in zip(node.body, ends):
            if isinstance(item, ast.AnnAssign):
                param = read_param(item, item.value, after, comments)
                known[param.name] = param
    return Call([known[field.name] for field in dataclasses.fields(cls) if field.init])


def read_call(thing: Any) -> Call:
    "Read how a public name is called."
    if not inspect.isclass(thing):
        return read_function(thing)
    if dataclasses.is_dataclass(thing):
        return read_fields(thing)
    for base in thing.__mro__:
        for name in ("__init__", "__new__"):
            made = inspect.unwrap(getattr(vars(base).get(name), "__func__", vars(base).get(name)))
            if inspect.isfunction(made) and base.__module__.startswith("fast"):
                return Call(read_function(made, bound=True).params)
    return Call([])


def members_of(cls: type) -> Iterator[tuple[str, Any]]:  # its name, and what stands in the class under it
    "List the methods and properties that this package has written, in the order of the sources."
    seen = set()
    for base in (b for b in cls.__mro__ if b.__module__.startswith("fastai_heads")):
        for name, value in vars(base).items():
            function = getattr(value, "__func__", value)
            ours = isinstance(value, property) or inspect.isfunction(function)
            event = issubclass(cls, Callback) and hasattr(Callback, name)
            if ours and not event and not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, value


def cell(text: str) -> str:
    "Write text into a cell of a table."
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    "Write code into a cell of a table."
    return f"`{cell(text)}`" if text else ""


def table_of(call: Call) -> list[str]:
    "Write the parameters and what is returned as Markdown."
    lines = []
    if any(p.type or p.comment for p in call.params):  # else the signature says all
        lines += ["", "| parameter | type | default | |", "|---|---|---|---|"]
        lines += [f"| {code(p.name)} | {code(p.type)} | {code(p.default)} | {cell(p.comment)} |" for p in call.params]
    if call.returns:
        lines += ["", f"**Returns** {code(call.returns.type)} {cell(call.returns.comment)}".rstrip()]
    return lines


def signature_of(call: Call) -> str:
    "Write the names and defaults of a call on one line. Sphinx 8.1 reads no starred value; the table has it."
    defaults = ["..." if "*" in p.default else p.default for p in call.params]
    return ", ".join(p.name + (f"={value}" if value else "") for p, value in zip(call.params, defaults))


def write_member(name: str, member: Any) -> list[str]:
    "Write a method or a property as Markdown."
    if isinstance(member, property):
        head, rest = f":::{{py:property}} {name}", inspect.getdoc(member.fget) or ""
        return ["", head, "", rest, ":::"]
    function = getattr(member, "__func__", member)
    call = read_function(function, bound=not isinstance(member, staticmethod))
    head = f":::{{py:method}} {name}({signature_of(call)})"
    return ["", head, "", inspect.getdoc(function) or "", *table_of(call), "", ":::"]


def write_public(name: str, with_members: bool) -> list[str]:
    "Write a public name as Markdown."
    thing = getattr(fastai_heads, name)
    call = read_call(thing)
    kind = "class" if inspect.isclass(thing) else "function"
    lines = [f"::::{{py:{kind}}} {name}({signature_of(call)})", "", inspect.getdoc(thing) or "", *table_of(call)]
    if with_members:
        for member in members_of(thing):
            lines += write_member(*member)
    return [*lines, "", "::::"]


class Public(SphinxDirective):
    "`{public} name`: the name's description, parameters and what it returns; `:members:` adds its methods."

    required_arguments = 1
    option_spec = {"members": directives.flag}  # noqa: RUF012 as docutils has it

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        self.env.note_dependency(inspect.getsourcefile(getattr(fastai_heads, name)))
        return self.parse_text_to_nodes("\n".join(write_public(name, "members" in self.options)))


def setup(app: Sphinx) -> dict[str, bool]:
    "Add the directive to Sphinx."
    app.add_directive("public", Public)
    return {"parallel_read_safe": True}
