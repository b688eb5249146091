# SPDX-License-Identifier: Apache-2.0
"""Tests that test: each asserts something that can be false, and each scenario plays it all."""

from __future__ import annotations

import ast
import functools

from .tree import decided

SEQUENCE = ["check", "converge", "idempotence", "check", "verify"]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Calls that fail a test by themselves: of pytest, and of the rig's counter of remote calls.
FAILING = {"pytest.raises", "pytest.warns", "pytest.fail", "remote_calls.expect"}
SWALLOWED = {"AssertionError", "Exception", "BaseException"}


def verifiers_verify(tree):
    """Every test and every assert can fail."""
    wrong = []
    for file in tree.files("tests/**/*.py", "molecule/**/*.py"):
        wrong += ["%s:%d: %s" % (file, line, said) for line, said in _of_tests(tree.text(file))]
    for task in tree.tasks():
        if task.is_a("assert"):
            said = task.args.get("that") if isinstance(task.args, dict) else None
            wrong += ["%s: found assert that: %s, wanted what can be false" % (task.where, claim)
                      for claim in (said if isinstance(said, list) and said else [said])
                      if decided(claim) is not None]
    return wrong


@functools.cache
def _of_tests(text):
    """The lines of a file of tests that are wrong, and what is wrong with each."""
    nodes = list(ast.walk(ast.parse(text)))
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    asserting = _asserting(functions)
    wrong = [(function.lineno, "found %s, which asserts nothing, wanted an assert that can fail"
              % function.name) for function in functions
             if function.name.startswith("test_") and (
                 function not in asserting or isinstance(function, ast.AsyncFunctionDef))]
    wrong += [(node.lineno, "found `%s`, which is always true, wanted what can be false"
               % ast.unparse(node)) for node in nodes
              if isinstance(node, ast.Assert) and _always_true(node.test)]
    wrong += [(node.lineno, "found `%s` without reason, wanted one" % ast.unparse(node))
              for node in _bare_skips(nodes)]
    return wrong


def _asserting(functions):
    """The functions that can fail a test: by an assert, or by another of them that they call."""
    found = []
    while True:
        helpers = {function.name for function in found}
        more = [function for function in functions
                if function not in found and _asserts(function.body, helpers)]
        if not more:
            return found
        found += more


def _asserts(nodes, helpers):
    """Whether one of these nodes, outside functions that they only define, can fail a test."""
    for node in nodes:
        if isinstance(node, ast.Assert) and not _always_true(node.test):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FAILING or called.rpartition(".")[2] in helpers:
                return True
        inner = [] if isinstance(node, (*FUNCTIONS, ast.Lambda)) else ast.iter_child_nodes(node)
        if not _swallows(node) and _asserts(inner, helpers):
            return True
    return False


def _swallows(node):
    """Whether a block keeps a failed assert to itself."""
    if isinstance(node, ast.With):
        return any(isinstance(item.context_expr, ast.Call)
                   and ast.unparse(item.context_expr.func).endswith("suppress")
                   and SWALLOWED & {ast.unparse(one) for one in item.context_expr.args}
                   for item in node.items)
    if isinstance(node, ast.Try):
        return any(handler.type is None or SWALLOWED & {
            inner.id for inner in ast.walk(handler.type) if isinstance(inner, ast.Name)}
            for handler in node.handlers if not any(
                isinstance(inner, (ast.Raise, ast.Assert)) for inner in ast.walk(handler)))
    return False


def _always_true(test):
    """Whether an expression cannot be false whatever the tested code does."""
    if isinstance(test, (ast.Lambda, ast.GeneratorExp, ast.JoinedStr)):
        return True
    if isinstance(test, (ast.Tuple, ast.List, ast.Dict, ast.Set)):
        return bool(getattr(test, "elts", None) or getattr(test, "keys", None))
    if isinstance(test, ast.BoolOp):
        choose = any if isinstance(test.op, ast.Or) else all
        return choose(_always_true(value) for value in test.values)
    if isinstance(test, ast.Compare):
        sides = [test.left, *test.comparators]
        # The same call twice may differ; the same name cannot.
        called = any(isinstance(node, ast.Call) for node in ast.walk(test))
        same = len({ast.dump(side) for side in sides}) == 1
        if same and not called and all(
                isinstance(op, (ast.Eq, ast.Is, ast.LtE, ast.GtE)) for op in test.ops):
            return True
        written = ast.unparse(test)
        if "len(" in written and written.endswith((") >= 0", ") > -1")) or (
                written.startswith(("0 <= len(", "-1 < len("))):
            return True
    # What has no name in it asks nothing of anybody; were it false, it would fail today.
    return not any(isinstance(node, ast.Name) for node in ast.walk(test)) and not (
        isinstance(test, ast.Constant) and not test.value)


def _bare_skips(nodes):
    """Every skip and xfail that does not say why."""
    called = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "pytest.skip", "pytest.mark.skip", "pytest.mark.xfail"):
            call = called.get(id(node))
            reasons = [] if call is None else [*call.args, *(
                word.value for word in call.keywords if word.arg == "reason")]
            if not any(not isinstance(one, ast.Constant) or one.value for one in reasons):
                yield call or node


def scenarios_play_everything(tree):
    """Every scenario checks, converges, converges again, checks again and verifies."""
    wrong = []
    usual = (tree.yaml(".config/molecule/config.yml") or {}).get("scenario") or {}
    for file in tree.files("molecule/*/molecule.yml"):
        folder = "/".join(file.parts[:2])
        if file.parts[1] == "default":
            continue  # it only brings the containers that the others play on
        own = (tree.yaml(file) or {}).get("scenario") or {}
        sequence = own.get("test_sequence") or usual.get("test_sequence") or []
        rest = iter(sequence)
        if [step for step in SEQUENCE if step not in rest]:
            wrong.append("%s: found the test_sequence %s, wanted %s in it, in this order" % (
                file, ", ".join(sequence) or "molecule's own", ", ".join(SEQUENCE)))
        tests = [node for test in tree.files(folder + "/tests/test_*.py")
                 for node in ast.walk(ast.parse(tree.text(test)))
                 if isinstance(node, FUNCTIONS) and node.name.startswith("test_")]
        tasks = [task for task in tree.tasks(folder + "/verify.yml")
                 if task.is_a("assert", "fail") or "failed_when" in task.content]
        if not tests and not tasks:
            wrong.append("%s: found nothing that verifies, wanted a test in tests/test_*.py, or a "
                         "task of verify.yml that asserts" % folder)
    return wrong
