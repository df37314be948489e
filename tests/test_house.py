"""The house: how much there is to read, how dense it is, and who may lean on whom.

Density is counted in nodes of the syntax tree a line of code, which are the same on every Python.
Comments, docstrings and layout are no code.
"""

import ast
import functools
import graphlib
import io
import re
import tokenize
from pathlib import Path

import pytest

from helpers import ROOT

# ---- the limits -----------------------------------------------------------------------------

ROOT_LINES = 1350  # of the files in the root
ALL_LINES = 7400  # of all that is no test, no measurement and no porting kit
NODES = 7.5  # a line of code, in the root and in report/
NODES_OF_MINIMAL = 11.2  # the whole method on a page
ROUNDING = 0.05
PARALLEL = 1  # assignments such as a, b = x, y in 100 lines of code
STARS = 2  # in 100 lines of code
STARS_OF_MINIMAL = 9
COMMENTS = 20  # in 100 lines of code, at least
COMMENTS_OF_MINIMAL = 15
LONGEST = 45  # lines of code of a function
SEE_ARGS = 10  # functions that get a parameter called args
IMPORTS_OF_MODEL = {"torch", "dataclasses", "math"}
PROGRAMS = {"train", "evaluate"}

# ---- what is measured -----------------------------------------------------------------------

ELSEWHERE = {"tests", "runs", "build", "docs", "bench", "porting", "ports"}
LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
MARKS = (ast.expr_context, ast.operator, ast.boolop, ast.unaryop, ast.cmpop)  # no nodes to a reader
SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def python_files(away):
    """The paths, from the root, of our files; away: names of folders whose files are left out."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        near = path.relative_to(ROOT)
        folders = near.parts[:-1]
        hidden = any(name.startswith(".") for name in folders)
        if not hidden and not away & set(folders):
            found.append(near)
    return found


FILES = python_files(ELSEWHERE)
IN_ROOT = [path for path in FILES if path.parent == Path(".")]
READ_CLOSELY = IN_ROOT + [path for path in FILES if path.parts[0] == "report"]


class Source:
    """A file: its text, its tree, the numbers of its lines of code, and how many comments."""

    def __init__(self, text):
        self.text = text
        self.tree = ast.parse(text)
        docstrings = [docstring_of(node) for node in ast.walk(self.tree)]
        docstrings = [node for node in docstrings if node is not None]
        words = set()  # the lines of docstrings
        leave_out = set()
        for node in docstrings:
            words |= lines_of(node)
            leave_out |= {node, node.value}
        self.nodes = []
        for node in ast.walk(self.tree):
            if node not in leave_out and not isinstance(node, MARKS):
                self.nodes.append(node)
        self.code = set()
        self.comments = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                self.comments += 1
            if token.type not in LAYOUT and token.start[0] not in words:
                self.code |= set(range(token.start[0], token.end[0] + 1))

    def in_100_lines(self, count):
        return 100 * count / len(self.code)

    def functions(self):
        return [node for node in self.nodes if isinstance(node, FUNCTIONS)]


def docstring_of(node):
    """The statement that is the docstring of a module, class or function; else None"""
    if isinstance(node, SCOPES) and ast.get_docstring(node) is not None:
        return node.body[0]
    return None


def lines_of(node):
    return set(range(node.lineno, node.end_lineno + 1))


@functools.cache
def read(path):
    """The Source in a file, by its path from the root"""
    return Source((ROOT / path).read_text(encoding="utf-8"))


def is_parallel(node):
    """Whether this is an assignment such as a, b = x, y"""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def module_of(path):
    """The name under which a file is imported"""
    return ".".join(path.with_suffix("").parts)


def imports(node):
    """The dotted names that an import statement can mean; none of any other node"""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def imported(source):
    """All dotted names that a file imports, also within functions"""
    names = set()
    for node in source.nodes:
        names |= imports(node)
    return names


MODULES = {module_of(path) for path in FILES}


def closely(test):
    """A test of each file of the root and of report/ that is more than a few lines long."""
    paths = [path for path in READ_CLOSELY if len(read(path).code) > 10]
    return pytest.mark.parametrize("path", paths, ids=str)(test)


def each_file(test):
    return pytest.mark.parametrize("path", FILES, ids=str)(test)


# ---- how much there is, and how dense it is -------------------------------------------------


def test_there_is_no_more_to_read_than_agreed():
    assert sum(len(read(path).text.splitlines()) for path in IN_ROOT) <= ROOT_LINES
    assert sum(len(read(path).text.splitlines()) for path in FILES) <= ALL_LINES


@closely
def test_a_line_holds_one_thought(path):
    source = read(path)
    limit = NODES_OF_MINIMAL if path.name == "minimal.py" else NODES
    assert len(source.nodes) / len(source.code) <= limit + ROUNDING


@closely
def test_one_assignment_a_line(path):
    source = read(path)
    parallel = [node.lineno for node in source.nodes if is_parallel(node)]
    assert source.in_100_lines(len(parallel)) <= PARALLEL + ROUNDING, parallel


@closely
def test_stars_are_rare(path):
    source = read(path)
    stars = [node.lineno for node in source.nodes if isinstance(node, ast.Starred)]
    limit = STARS_OF_MINIMAL if path.name == "minimal.py" else STARS
    assert source.in_100_lines(len(stars)) <= limit + ROUNDING, stars


@pytest.mark.parametrize("path", IN_ROOT, ids=str)
def test_comments_say_why(path):
    source = read(path)
    limit = COMMENTS_OF_MINIMAL if path.name == "minimal.py" else COMMENTS
    assert source.in_100_lines(source.comments) >= limit


@each_file
def test_no_function_is_too_long(path):
    source = read(path)
    for function in source.functions():
        assert len(source.code & lines_of(function)) <= LONGEST, function.name


def test_few_functions_see_a_namespace_of_flags():
    see = []
    for path in FILES:
        for function in read(path).functions():
            names = [argument.arg for argument in function.args.args]
            if "args" in names:
                see.append(f"{path} {function.name}")
    assert len(see) <= SEE_ARGS, see


@pytest.mark.parametrize("path", python_files({"runs", "build"}), ids=str)
def test_no_line_is_kept_from_the_formatter(path):
    assert "# " + "fmt:" not in read(path).text


# Written so that these lines are not found by it.
PICKLE = r"[i]mport pickle|[p]ickle\.\w+\(|allow_[p]ickle=T|(?<!safetensors\.)torch\.load\("
TO_PICKLE = r"(?<!safetensors\.)torch\.save\("  # in tests alone, as other people's files


@pytest.mark.parametrize("path", python_files({"runs", "build"}), ids=str)
def test_no_pickle_anywhere(path):
    """A file that is unpickled may do anything."""
    source = read(path)
    assert not re.search(PICKLE, source.text)
    assert path.parts[0] == "tests" or not re.search(TO_PICKLE, source.text)


# ---- who leans on whom ----------------------------------------------------------------------


@each_file
def test_no_import_of_ours_stands_in_a_function(path):
    for function in read(path).functions():
        for node in ast.walk(function):
            assert not imports(node) & MODULES, f"{function.name}, line {node.lineno}"


def test_imports_go_in_no_circle():
    graph = {}
    for path in FILES:
        graph[module_of(path)] = imported(read(path)) & MODULES
    graphlib.TopologicalSorter(graph).prepare()  # or CycleError


@each_file
def test_nobody_imports_a_program(path):
    assert not imported(read(path)) & PROGRAMS


def test_model_imports_torch_alone():
    names = imported(read(Path("model.py")))
    assert {name.split(".")[0] for name in names} <= IMPORTS_OF_MODEL


def test_minimal_imports_nothing_of_ours():
    assert not imported(read(Path("minimal.py"))) & MODULES


# ---- the measure itself ---------------------------------------------------------------------

SAMPLE = '''"""A module."""

# A comment.
a, b = 1, 2


def f(args):
    """A docstring
    of two lines."""
    return g(*args)  # another
'''


def test_the_measure_counts_what_it_says():
    source = Source(SAMPLE)
    assert source.code == {4, 7, 10}
    assert source.comments == 2
    # Module, Assign, Tuple, Name, Name, Tuple, Constant, Constant = 8;
    # FunctionDef, arguments, arg, Return, Call, Name, Starred, Name = 8.
    assert len(source.nodes) == 16
    assert [is_parallel(node) for node in source.tree.body] == [False, True, False]
    assert len(source.code & lines_of(source.functions()[0])) == 2
    assert imports(ast.parse("from a.b import c").body[0]) == {"a.b", "a.b.c"}
    assert imports(ast.parse("import a.b").body[0]) == {"a.b"}
