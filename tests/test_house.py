"""How much there is to read, and who may lean on whom, so that the code can be read from leaf to root."""

import ast
import graphlib
import sys
import tokenize

import pytest
from checkpoints import TINY

ROOT, CORE = TINY.parent.parent, {"model", "data", "train", "evaluate"}
AWAY = ("tests", "porting", "bench", "runs", "build")
PATHS = [path for path in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")) if path.parent.name not in AWAY]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text("utf-8") for path in PATHS}
LAYOUT = [getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")]
BARRED = dict.fromkeys("minimal support model data".split(), {*CORE, "report"}) | {"evaluate": {"report", "train"}, "report": {"train"}}


def measure(text):
    """(tokens, lines of code, those of the longest function); comments, docstrings and layout are none."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    words = {line for n in nodes if ast.get_docstring(n) for line in range(n.body[0].lineno, n.body[0].end_lineno + 1)}
    stream = tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__)
    tokens = [token for token in stream if token.type not in LAYOUT and token.start[0] not in words]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    functions = [range(node.lineno, node.end_lineno + 1) for node in nodes if isinstance(node, ast.FunctionDef)]
    return len(tokens), len(code), max((len(code.intersection(lines)) for lines in functions), default=0)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="an f-string is several tokens from Python 3.12 on")
def test_there_is_no_more_to_read_than_agreed():
    counted = [text for name, text in MODULES.items() if name != "minimal"]  # a page to itself: see test_minimal.py
    (tokens, lines, longest), core = zip(*map(measure, counted)), [MODULES[name] for name in CORE]
    assert max(longest) <= 45 and sum(text.count("# fmt: ") for text in MODULES.values()) <= 12
    assert sum(len(text.splitlines()) for text in core) <= 1100 and sum(measure(text)[0] for text in core) <= 8500
    assert sum(tokens) <= 10.5 * sum(lines) and sum(tokens) <= 20_000


def test_imports_go_one_way_and_in_no_circle():
    """At the top; what stands in a function counts in support alone, which knows nothing of prompts."""
    graph = {name: set() for name in MODULES}
    for name, todo in [(name, [ast.parse(text)]) for name, text in MODULES.items()]:
        for node in todo:  # which grows
            todo += [its for its in ast.iter_child_nodes(node) if "." in name or not isinstance(its, ast.FunctionDef)]
            names = [its.name for its in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None)
            graph[name] |= {module, *(f"{module}.{its}" if module else its for its in names)}
        assert not graph[name] & BARRED.get(name.split(".")[0], set()), name
    assert graph["evaluate"] > {"model", "data", "support.run"} and graph["support.run"] > {"support.machine"}
    graphlib.TopologicalSorter(graph).prepare()  # or CycleError
