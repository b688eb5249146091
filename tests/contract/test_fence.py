# SPDX-License-Identifier: Apache-2.0
"""This checkout breaks none of the rules; what each rule says is in its docstring."""

from __future__ import annotations

import pytest
from fence import RULES
from fence.tree import Tree


@pytest.mark.parametrize("rule", RULES)
def test_nothing_breaks_the_rule(rule, repository):
    broken = RULES[rule](Tree(repository))
    assert not broken, "%s\n%s" % (RULES[rule].__doc__, "\n".join(broken))
