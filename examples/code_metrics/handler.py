"""A function that measures one Python source text."""

import ast

BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.With,
    ast.AsyncWith,
    ast.BoolOp,
    ast.comprehension,
    ast.match_case,
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def handler(event, context=None):
    """Give lines, functions, classes, branches and the most complex function of `event["source"]`."""
    tree = ast.parse(event["source"])
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    ranked = sorted(((complexity(node), node.name) for node in functions), reverse=True)
    return {
        "path": event["path"],
        "lines": event["source"].count("\n"),
        "functions": len(functions),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "branches": sum(isinstance(node, BRANCHES) for node in nodes),
        "most_complex": {"name": ranked[0][1], "complexity": ranked[0][0]} if ranked else None,
    }


def complexity(function):
    """Count the ways through a function: one, and one more for each branch in it."""
    return 1 + sum(isinstance(node, BRANCHES) for node in ast.walk(function))


def stream_report(event, context):
    """Yield a report line by line, as a generator handler."""
    for row in event["rows"]:
        yield f"{row}\n"


def broken(event, context):
    """Fail as a bug would."""
    return handler({"path": "broken.py", "source": "def f(:\n"})


def endless(event, context):
    """Never return."""
    while True:
        pass
