# SPDX-License-Identifier: Apache-2.0
"""The rules that keep the house in order, as functions: a tree in, what breaks the rule out.

Each rule takes a :class:`fence.tree.Tree` and gives a list of sentences, ``path[:line]: found …,
wanted …``; an empty list is a tree in order. ``test_fence.py`` holds this checkout against every
rule, ``test_planted.py`` shows for every rule a violation that it catches.
"""

from __future__ import annotations

import functools

from . import catalogs, filters, modules, production, project, roles, tasks, verifiers

# What a file of another shape than everybody expects makes of a rule.
ODD = (AttributeError, IndexError, KeyError, RecursionError, SyntaxError, TypeError, ValueError)


def _guarded(rule):
    """The rule; where it stumbles over a file, that is a sentence too."""

    @functools.wraps(rule)
    def held(tree):
        try:
            return rule(tree)
        except ODD as problem:
            return ["%s: found a shape that the rule %s does not know (%r), wanted that of its "
                    "neighbours" % (tree.last, rule.__name__, problem)]

    return held


RULES = {
    rule.__name__: _guarded(rule)
    for rule in (
        roles.entry_points_have_specs,
        roles.specs_are_typed,
        roles.defaults_equal_specs,
        roles.roles_have_readmes,
        roles.roles_have_scenarios,
        roles.plays_import_roles,
        roles.role_variables_are_options,
        tasks.assigned_names_are_private,
        tasks.our_modules_get_real_options,
        tasks.failures_are_not_ignored,
        modules.documentation_equals_spec,
        modules.examples_are_real,
        modules.returns_are_described,
        filters.filters_are_documented,
        production.production_knows_no_tests,
        production.files_carry_the_licence,
        production.yaml_is_named_yml,
        verifiers.verifiers_verify,
        verifiers.scenarios_play_everything,
        catalogs.catalogs_are_whole,
        project.jobs_are_the_parts_of_make_test,
        project.workflows_are_modest,
        project.changelog_code_has_two_backticks,
        project.contributing_is_true,
        project.links_lead_somewhere,
        project.reference_is_fresh,
    )
}
