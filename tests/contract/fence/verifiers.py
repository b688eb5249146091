# SPDX-License-Identifier: Apache-2.0
"""Tests that test: each asserts something that can be false, and each scenario plays it all."""

from __future__ import annotations

import ast

from .tree import BLOCKS, SECTIONS

SEQUENCE = ["check", "converge", "idempotence", "check", "verify"]


def verifiers_verify(tree):
    """Every test and every assert can fail."""
    wrong = []
    for file in tree.files("tests/**/*.py", "molecule/**/*.py"):
        module = ast.parse(tree.text(file))
        functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
        asserting = {function.name for function in functions if _asserts(function, set())}
        wrong += ["%s:%d: found %s, which asserts nothing, wanted an assert that can fail" % (
            file, function.lineno, function.name) for function in functions
            if function.name.startswith("test_") and not _asserts(function, asserting)]
        wrong += ["%s:%d: found `%s`, which is always true, wanted what can be false" % (
            file, node.lineno, ast.unparse(node)) for node in ast.walk(module)
            if isinstance(node, ast.Assert) and _always_true(node.test)]
        wrong += ["%s:%d: found a skip without reason, wanted one" % (file, node.lineno)
                  for node in ast.walk(module) if _bare_skip(node)]
    for task in tree.tasks():
        if task.is_a("assert") and isinstance(task.args, dict):
            said = task.args.get("that")
            claims = said if isinstance(said, list) else [said]
            wrong += ["%s: found assert that: %r, wanted what can be false" % (task.where, claim)
                      for claim in claims or [None]
                      if isinstance(claim, (bool, int, type(None)))
                      or str(claim).strip().lower() in ("true", "yes", "1", "1 == 1", "")]
    return wrong


def _asserts(function, helpers):
    """Whether a function holds an assert, expects an exception, or calls a helper that asserts."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not _always_true(node.test):
            return True
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(
                node.func, "id", "")
            if called in helpers or called in ("raises", "fail") or called.startswith("assert_"):
                return True
    return False


def _always_true(test):
    """Whether an expression cannot be false whatever the tested code does."""
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, (ast.Tuple, ast.List, ast.Dict, ast.Set)):
        return bool(getattr(test, "elts", None) or getattr(test, "keys", None))
    if isinstance(test, ast.BoolOp):
        choose = any if isinstance(test.op, ast.Or) else all
        return choose(_always_true(value) for value in test.values)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return isinstance(test.operand, ast.Constant) and not test.operand.value
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, (right,) = test.left, test.comparators
        if isinstance(test.ops[0], (ast.Eq, ast.Is, ast.LtE, ast.GtE)):
            # The same call twice may differ; the same name or constant cannot.
            called = any(isinstance(node, ast.Call) for node in ast.walk(left))
            if ast.dump(left) == ast.dump(right) and not called:
                return True
        return (isinstance(test.ops[0], ast.GtE) and ast.unparse(left).startswith("len(")
                and ast.unparse(right) == "0")
    return False


def _bare_skip(node):
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in ("pytest.skip", "pytest.mark.skip") and not (
            node.args or any(word.arg == "reason" for word in node.keywords))
    return False


def scenarios_play_everything(tree):
    """Every scenario checks, converges, converges again, checks again and verifies."""
    wrong = []
    for file in tree.files("molecule/*/molecule.yml"):
        if file.parts[1] == "default":
            continue  # it only brings the containers that the others play on
        sequence = (((tree.yaml(file) or {}).get("scenario")) or {}).get("test_sequence") or (
            (tree.yaml(".config/molecule/config.yml").get("scenario") or {})
            .get("test_sequence") or [])
        rest = iter(sequence)
        missing = [step for step in SEQUENCE if step not in rest]
        if missing:
            wrong.append("%s: found the test_sequence %s, wanted %s in it, in this order" % (
                file, ", ".join(sequence) or "molecule's own", ", ".join(SEQUENCE)))
        folder = "/".join(file.parts[:2])
        plays = [node for node in tree.nodes(folder + "/verify.yml")
                 if set(node) & {*SECTIONS, *BLOCKS, "hosts"}]
        if not tree.files(folder + "/tests/test_*.py") and not plays:
            wrong.append("%s: found no verifier, wanted tests/test_*.py or a verify.yml" % folder)
    return wrong
