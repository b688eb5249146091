# SPDX-License-Identifier: Apache-2.0
"""Every rule of the fence catches what it is there for: violations planted in a copy."""

from __future__ import annotations

import checkout
import pytest
from fence import RULES
from fence.tree import Tree, decided

TOOLBELT = "roles/toolbelt/"
SMOKE = "library/smoke_inference.py"
CATALOG = "catalog/engine_releases.yml"
SCENARIO = "molecule/inference_endpoint/"
WORKFLOW = ".github/workflows/test.yml"
ROW = """
- {engine: llama_cpp, version: "%s", runtime: native, package: p, lock: l, launcher: s, dialect: d,
   devices: [cpu], formats: [gguf], architectures: [x86_64], minimum_python: "3.10", libraries: [],
   extra_flags: [], source: "%s"}
"""


def change(file, old, new, every=False):
    """Replace the first ``old``, or every one; it must be there."""
    def plant(root):
        text = (root / file).read_text()
        assert old in text, "%s has no %r any more: plant something else" % (file, old)
        (root / file).write_text(text.replace(old, new, -1 if every else 1))
    return plant


def add(file, text):
    """Write ``text`` at the end of a file, a new one where there is none."""
    def plant(root):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + text)
    return plant


def remove(file):
    """Remove a file."""
    return lambda root: (root / file).unlink()


# Rule, what is planted, and words of the sentence that must name it.
PLANTS = [
    ("entry_points_have_specs", change(TOOLBELT + "meta/argument_specs.yml", "  main:", "  more:"),
     "entry point main of toolbelt without a spec"),
    ("entry_points_have_specs", change(TOOLBELT + "meta/argument_specs.yml", "  main:", "  more:"),
     "found a spec of more, wanted the tasks file"),
    ("entry_points_have_specs", change("playbooks/teardown.yml", "teardown\n", "teardown_shared\n"),
     "playbooks/teardown.yml:7: found the entry point teardown_shared"),
    ("specs_are_typed", change(TOOLBELT + "meta/argument_specs.yml", "        type: bool\n", ""),
     "found toolbelt_venv_missing without type"),
    ("specs_are_typed", change("roles/endpoint_smoke/meta/argument_specs.yml",
                               "        elements: str\n", ""),
     "found the list endpoint_smoke_pending without elements"),
    ("specs_are_typed", change(TOOLBELT + "meta/argument_specs.yml", "toolbelt_root", "root"),
     "found the option root, wanted a name that begins with toolbelt_"),
    ("specs_are_typed", change("roles/deployment_plan/meta/argument_specs.yml", "judged by", "of"),
     "found deployment_plan_endpoints of type raw"),
    ("specs_are_typed", change("roles/endpoint_smoke/meta/argument_specs.yml",
                               "        type: str\n        required: true",
                               "        type: str\n        required: true\n        default: x"),
     "found endpoint_smoke_root both required and with a default"),
    ("defaults_equal_specs", change(TOOLBELT + "defaults/main.yml", "python3-venv", "venv"),
     "found toolbelt_venv_package: 'venv', wanted 'python3-venv'"),
    ("defaults_equal_specs",
     change("roles/inference_endpoint/defaults/main.yml", ": 120", ": '120'"),
     "found inference_endpoint_request_timeout_s: '120', wanted 120"),
    ("defaults_equal_specs", add(TOOLBELT + "defaults/main.yml", "toolbelt_more: 1\n"),
     "found toolbelt_more, wanted it in"),
    ("defaults_equal_specs", change(TOOLBELT + "defaults/main.yml", "toolbelt_venv_package:", "#"),
     "found a default of toolbelt_venv_package, wanted it in"),
    ("defaults_equal_specs", change(TOOLBELT + "defaults/main.yml", "# toolbelt_root:", "# root:"),
     "found nothing of toolbelt_root, wanted the comment"),
    ("defaults_equal_specs",
     change("roles/endpoint_smoke/meta/argument_specs.yml", "endpoint_smoke_timeout_s",
            "endpoint_smoke_pending:\n        description: The same.\n        type: list\n"
            "        elements: str\n        default: []\n      endpoint_smoke_timeout_s"),
     "found the order"),
    ("roles_have_readmes", remove(TOOLBELT + "README.md"), "toolbelt/README.md: found no README"),
    ("roles_have_readmes", change(TOOLBELT + "README.md", "# toolbelt", "# tools"),
     "found '# tools', wanted the title `# toolbelt`"),
    ("roles_have_scenarios",
     change("molecule/covered_by.yml", "endpoint_benchmark:", "benchmarks:"),
     "molecule/endpoint_benchmark: found no scenario"),
    ("roles_have_scenarios",
     change("molecule/covered_by.yml", "endpoint_benchmark:", "benchmarks:"),
     "found benchmarks, wanted the name of a role"),
    ("roles_have_scenarios", change("molecule/covered_by.yml", "scenario: e", "scenario: un"),
     "found endpoint_benchmark covered by unndpoint_profile, wanted a scenario that plays it"),
    ("roles_have_scenarios",
     change("playbooks/benchmark.yml", "name: endpoint_benchmark", "name: toolbelt"),
     "found endpoint_benchmark covered by endpoint_profile, wanted a scenario that plays it"),
    ("roles_have_scenarios",
     change("molecule/covered_by.yml", "reason: It loads an", "reason: None. #"),
     "found no reason why endpoint_benchmark"),
    ("role_variables_are_options", change("playbooks/site.yml", "toolbelt_root:", "toolbelt_rot:"),
     "found toolbelt_rot, wanted an option of the role toolbelt"),
    ("role_variables_are_options",
     add("inventories/example/group_vars/all.yml", "inference_endpoint_timeout: 5\n"),
     "all.yml: found inference_endpoint_timeout, wanted an option"),
    ("role_variables_are_options",
     add("inventories/example/more.yml", "all:\n  children:\n    gpu:\n      vars:\n"
                                         "        host_report_dir: /x\n"),
     "more.yml: found host_report_dir, wanted an option"),
    ("assigned_names_are_private",
     change("roles/endpoint_smoke/tasks/main.yml", "register: __endpoint_smoke", "register: smoke"),
     "roles/endpoint_smoke/tasks/main.yml:2: found smoke_checks assigned by register"),
    ("assigned_names_are_private",
     change("roles/deployment_plan/tasks/decide.yml", "    __deployment_plan:", "    plan_of_all:"),
     "found plan_of_all assigned by set_fact"),
    ("assigned_names_are_private",
     change("roles/inference_endpoint/tasks/switch.yml", "loop_var: __inference", "loop_var: _the"),
     "found _the_endpoint_name assigned by loop_var"),
    ("assigned_names_are_private",
     change("roles/inference_endpoint/tasks/switch.yml", "    loop_var:", "    label:"),
     "found item assigned by loop"),
    ("assigned_names_are_private",
     change("roles/host_health/vars/main.yml", "__host_health", "host_health"),
     "found host_health_catalog assigned by a role variable"),
    ("assigned_names_are_private",
     change("roles/endpoint_smoke/tasks/main.yml", "    __endpoint_smoke_findings: >-",
            "    endpoint_smoke_plans: >-"), "found endpoint_smoke_plans assigned by vars"),
    ("our_modules_get_real_options",
     change("roles/host_health/tasks/look.yml", "    root:", "    rot:"),
     "look.yml:2: gpu_facts: found the option rot, wanted one of jetson_chips, jetson_releases"),
    ("our_modules_get_real_options",
     change("roles/endpoint_smoke/tasks/main.yml", "    endpoints:", "    #"),
     "smoke_inference: found no endpoints, wanted this required option"),
    ("our_modules_get_real_options",
     change("roles/inference_endpoint/tasks/teardown.yml", "state: absent", "state: gone"),
     "value of state must be one of: present, absent, trial, previous, got: gone"),
    ("our_modules_get_real_options",
     change("playbooks/teardown.yml", "  tasks:",
            "  module_defaults:\n    gpu_facts: {rot: /x}\n  tasks:"),
     "module_defaults of gpu_facts: found rot"),
    ("failures_are_not_ignored",
     change(TOOLBELT + "tasks/main.yml", "  when:", "  ignore_errors: true\n  when:"),
     "tasks/main.yml:7: found `ignore_errors: true`"),
    ("failures_are_not_ignored",
     change(SCENARIO + "cleanup.yml", "        state: absent",
            "        state: absent\n      failed_when: false"), "found failed_when: False"),
    ("failures_are_not_ignored",
     change(TOOLBELT + "tasks/main.yml", "  when:", "  failed_when: 'not true'\n  when:"),
     "found failed_when: not true"),
    ("failures_are_not_ignored",
     change(TOOLBELT + "tasks/main.yml", "  when:", "  failed_when: ['{{ false }}']\n  when:"),
     "found failed_when: ['{{ false }}']"),
    ("failures_are_not_ignored",
     change(TOOLBELT + "tasks/main.yml", "  when:", "  ignore_unreachable: true\n  when:"),
     "found `ignore_unreachable: true`"),
    ("documentation_equals_spec",
     change(SMOKE, "default: 120.0\n", "default: 60.0\n"),
     "found default of timeout_s documented as 60.0, wanted 120.0"),
    ("documentation_equals_spec", change(SMOKE, "        type: dict\n", "        type: str\n"),
     "found type of endpoints.oracle documented as 'str', wanted 'dict'"),
    ("documentation_equals_spec", change(SMOKE, '    "record": {"type": "path"},\n', ""),
     "found endpoints.record in DOCUMENTATION, wanted an option of the argument spec"),
    ("documentation_equals_spec",
     change(SMOKE, '"record": {"type": "path"}', '"record": {"type": "path"}, "more": {}'),
     "found the option endpoints.more undocumented"),
    ("documentation_equals_spec",
     change("library/state_root.py", "choices: [absent", "choices: [absent, gone"),
     "found choices of state documented as"),
    ("documentation_equals_spec",
     change(SMOKE, "supports_check_mode=True", "supports_check_mode=False"),
     "found check_mode support: full"),
    ("documentation_equals_spec", change(SMOKE, "  diff_mode:", "  other_mode:"),
     "found attributes.diff_mode"),
    ("examples_are_real", change(SMOKE, "- url: http", "- uri: http"),
     "EXAMPLES: found the option endpoints.uri"),
    ("examples_are_real", change(SMOKE, "- url: http://127.0.0.1:8000\n        ", "- "),
     "EXAMPLES: missing required arguments: url found in endpoints"),
    ("examples_are_real", change(SMOKE, "  smoke_inference:\n    end", "  smoke:\n    end"),
     "found no task of smoke_inference in EXAMPLES"),
    ("examples_are_real", change(SMOKE, "- name: Prove the endpoint", "- name: [Prove"),
     "found EXAMPLES that are no YAML"),
    ("returns_are_described",
     change(SMOKE, "      description: The endpoint that was asked.\n", ""),
     "RETURN: found verdicts.url without description"),
    ("returns_are_described",
     change(SMOKE, "      type: list\n      elements: dict\n      sample", "      sample"),
     "found verdicts.checks of type None"),
    ("filters_are_documented", remove("filter_plugins/findings_text.yml"),
     "found the filter findings_text without a page"),
    ("filters_are_documented",
     change("filter_plugins/deployment_plan.yml", "positional: facts, ", "positional: "),
     "found positional: models, state, catalog"),
    ("filters_are_documented",
     change("filter_plugins/deployment_plan.yml", "    facts:\n", "    fact:\n"),
     "found the options fact, models, state, catalog"),
    ("filters_are_documented", add("filter_plugins/more.yml", "---\nDOCUMENTATION: {}\n"),
     "more.yml: found a page of no filter"),
    ("filters_are_documented",
     change("filter_plugins/findings_text.yml", "| findings_text }}", "}}"),
     "found no use of findings_text in EXAMPLES"),
    ("production_knows_no_tests",
     change("module_utils/firstlight/runner.py", "import os\n",
            "import os\nTESTED = 'PYTEST_CURRENT_TEST' in os.environ  # pytest\n"),
     "runner.py:8: found `PYTEST`"),
    ("production_knows_no_tests",
     add("roles/toolbelt/tasks/main.yml", "  when: not molecule_yml is defined\n"), "molecule"),
    ("production_knows_no_tests",
     add("roles/toolbelt/vars/main.yml", "---\n__toolbelt_in_test: false\n"), "found `in_test`"),
    ("production_knows_no_tests",
     add("inventories/local/group_vars/all.yml", "x: \"{{ lookup('file', 'tests/x') }}\"\n"),
     "found `tests/`"),
    ("files_carry_the_licence", add("library/more_info.py", '"""A module."""\n'),
     "library/more_info.py: found no licence"),
    ("verifiers_verify", add("tests/unit/test_more.py", "def test_it():\n    print(1)\n"),
     "test_more.py:1: found test_it, which asserts nothing"),
    ("verifiers_verify", add("tests/unit/test_more.py", "def test_it(x):\n    assert True\n"),
     "found `assert True`, which is always true"),
    ("verifiers_verify", add("tests/unit/test_more.py", "def test_it(x):\n    assert x == x\n"),
     "found `assert x == x`"),
    ("verifiers_verify", add("tests/unit/test_more.py", "def test_it(x):\n    assert x or True\n"),
     "found `assert x or True`"),
    ("verifiers_verify",
     add("tests/unit/test_more.py", "def test_it(x):\n    assert (x, 'is wrong')\n"),
     "found `assert (x, 'is wrong')`"),
    ("verifiers_verify",
     add("tests/unit/test_more.py", "def test_it(x):\n    assert len(x) >= 0\n"),
     "found `assert len(x) >= 0`"),
    *[("verifiers_verify",
       add("tests/unit/test_more.py", "def test_it(x):\n    %s\n" % line), named)
      for line, named in (
          ("pytest.skip()", "found `pytest.skip()` without reason"),
          ("pytest.skip(reason='')", "found `pytest.skip(reason='')` without reason"),
          ("assert f'{x}'", "which is always true"),
          ("assert lambda: x", "which is always true"),
          ("assert (one for one in x)", "which is always true"),
          ("assert len(x) > -1", "which is always true"),
          ("assert 0 <= len(x)", "which is always true"),
          ("assert x == x == x", "which is always true"),
          ("assert not []", "which is always true"),
          ("assert 1 < 2", "which is always true"),
          ("x.fail()", "asserts nothing"),
          ("def never():\n        assert x", "asserts nothing"),
          ("with contextlib.suppress(AssertionError):\n        assert x", "asserts nothing"),
          ("try:\n        assert x\n    except AssertionError:\n        pass", "asserts nothing"),
      )],
    ("verifiers_verify", add("tests/unit/test_more.py", "async def test_it(x):\n    assert x\n"),
     "asserts nothing"),
    ("verifiers_verify",
     add("tests/unit/test_more.py", "@pytest.mark.xfail\ndef test_it(x):\n    assert x\n"),
     "found `pytest.mark.xfail` without reason"),
    *[("verifiers_verify",
       add(SCENARIO + "verify.yml", "---\n- name: Verify\n  hosts: all\n  tasks:\n"
           "    - name: It works\n      ansible.builtin.assert:\n        that: %s\n" % claim),
       "verify.yml:5: found assert that")
      for claim in ('"{{ true }}"', "[x is defined or true]", "\"'a' == 'a'\"", "[]", "1 == 1")],
    ("verifiers_verify",
     add(SCENARIO + "verify.yml", "---\n- name: Verify\n  hosts: all\n  tasks:\n"
         "    - name: It works\n      ansible.builtin.assert:\n        that: true\n"),
     "verify.yml:5: found assert that: True"),
    ("scenarios_play_everything",
     change(SCENARIO + "molecule.yml", "converge, idempotence, check,", "converge, check,"),
     "wanted check, converge, idempotence, check, verify in it, in this order"),
    ("scenarios_play_everything", remove(SCENARIO + "tests/test_endpoint.py"),
     "found nothing that verifies"),
    ("scenarios_play_everything",
     change(SCENARIO + "tests/test_endpoint.py", "def test_", "def tried_", every=True),
     "found nothing that verifies"),
    ("catalogs_are_whole", add(CATALOG, ROW % ("2025.1", "Tried on Debian 12 with this wheel.")),
     "found a row out of order or twice"),
    ("catalogs_are_whole", add(CATALOG, ROW % ("2026.10.11549", "Tried on Debian 12 with it.")),
     "found a row out of order or twice"),
    ("catalogs_are_whole", add(CATALOG, ROW % ("2027.1", "Somebody said so in a forum post.")),
     "found source: 'Somebody said so"),
    ("catalogs_are_whole", change(CATALOG, "# Sorted by: engine", "# Sorted so: engine"),
     "found no order, wanted the comment"),
    ("catalogs_are_whole",
     add(CATALOG, ROW.replace("package: p, ", "") % ("2027.1", "Tried on Debian 12 with it.")),
     "found a row without batch_defaults"),
    ("catalogs_are_whole", change(CATALOG, "  package: xllamacpp", "  package: null"),
     "found package: null"),
    ("catalogs_are_whole", change(CATALOG, "by: engine, ", "by: name, "),
     "found the order name, version, runtime, variant, wanted keys of the rows"),
    ("catalogs_are_whole",
     add(CATALOG, (ROW + ROW) % ("2027.1", "https://example.org/a",
                                 "2027.1rc1", "https://example.org/b")),
     "found a row out of order or twice"),
    ("yaml_is_named_yml", add("roles/toolbelt/tasks/more.yaml", "---\n"),
     "more.yaml: found the ending .yaml"),
    ("plays_import_roles",
     change("playbooks/teardown.yml", "  tasks:", "  roles: [toolbelt]\n  tasks:"),
     "playbooks/teardown.yml:3: found `roles:`"),
    ("assigned_names_are_private",
     change("roles/inference_endpoint/tasks/switch.yml",
            "  loop_control:\n    loop_var: __inference_endpoint_name\n", "  with_items: [a]\n"),
     "found item assigned by loop"),
    ("assigned_names_are_private",
     change("playbooks/teardown.yml", "  tasks:", "  vars:\n    plan_of_all: 1\n  tasks:"),
     "found plan_of_all assigned by vars"),
    ("assigned_names_are_private",
     add("roles/toolbelt/tasks/main.yml", "\n- name: Read\n  ansible.builtin.include_vars:\n"
         "    file: catalog/engine_releases.yml\n    name: __toolbelt_catalog\n"),
     "found what is in catalog/engine_releases.yml"),
    ("our_modules_get_real_options",
     change("roles/inference_endpoint/tasks/teardown.yml", "    state: absent", "    #"),
     "state is present but all of the following are missing: definition, plan"),
    ("defaults_equal_specs", add("roles/toolbelt/defaults/other.yml", "---\ntoolbelt_x: 1\n"),
     "found a second file of defaults"),
    ("jobs_are_the_parts_of_make_test", change(WORKFLOW, "test-unit, ", ""),
     "found jobs for lint, molecule, test-browser, test-contract, test-e2e"),
    ("workflows_are_modest", change(WORKFLOW, "@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7"),
     "found `- uses: actions/checkout@v7"),
    ("workflows_are_modest", change(WORKFLOW, "contents: read", "contents: write"),
     "found permissions {'contents': 'write'}"),
    ("workflows_are_modest", change(WORKFLOW, "    timeout-minutes: 30\n", ""),
     "found no timeout-minutes of the job make"),
    ("workflows_are_modest", change(WORKFLOW, "          persist-credentials: false\n", ""),
     "found a checkout that keeps the token"),
    ("workflows_are_modest",
     change(WORKFLOW, "run: make ${{ matrix.target", "run: make ${{ github.ref"),
     "found ${{ github.ref }} in a shell"),
    ("workflows_are_modest", change(WORKFLOW, "concurrency:", "more:"), "found no concurrency"),
    ("changelog_code_has_two_backticks",
     add("changelogs/fragments/more.yml", "---\nbugfixes:\n  - Of `make test`.\n"),
     "more.yml:3: found"),
    ("contributing_is_true", change("CONTRIBUTING.md", "library/state_root.py", "library/root.py"),
     "found library/root.py, wanted a path"),
    ("contributing_is_true", change("CONTRIBUTING.md", "`make docs`", "`make pages`"),
     "found `make pages`"),
    ("contributing_is_true", add("CONTRIBUTING.md", "More.\n" * 40), "wanted a page"),
    ("links_lead_somewhere", change("README.md", "(docs/reference/", "(docs/"),
     "README.md: found a link to docs/roles.md"),
    ("links_lead_somewhere", change(TOOLBELT + "README.md", "roles.md#toolbelt", "roles.md#tools"),
     "found a link to ../../docs/reference/roles.md#tools"),
    ("reference_is_fresh",
     change(TOOLBELT + "meta/argument_specs.yml", "default: python3-venv", "default: venv"),
     "docs/reference/roles.md: found a stale page"),
]


@pytest.mark.parametrize(("condition", "is_always"), [
    (True, True), (None, False), ([], False), ("", False), ("yes", True), ("off", False),
    ("{{ true }}", True), ("'a' == 'a'", True), ("not true", False), ("1 > 2", False),
    ("x or true", True), ("x or 1 == 1", True), ("x or not false", True), ("x and false", False),
    ("x", None), ("x is defined", None), ("not ansible_check_mode", None), ("x or false", None),
    ("x and true", None), ("(x.rc or 0) != 0", None), ("x | default('') or y", None),
    ("lookup('env', 'HOME')", None), ("{{ x }} and {{ y }}", None), ("x ==", None),
    ("y in (x or [])", None), ("d == 'Debian' and (v or '0') is version('12', '>=')", None),
])
def test_a_condition_that_asks_nothing_is_known(condition, is_always):
    assert decided(condition) is is_always


@pytest.mark.parametrize(("rule", "file", "text"), [
    ("specs_are_typed", TOOLBELT + "meta/argument_specs.yml", "argument_specs: [main]\n"),
    ("defaults_equal_specs", TOOLBELT + "defaults/main.yml", "- a\n"),
    ("roles_have_scenarios", "molecule/covered_by.yml", "model_info: text\n"),
    ("our_modules_get_real_options", TOOLBELT + "tasks/main.yml",
     "- name: X\n  gpu_facts:\n  args: [a]\n"),
    ("catalogs_are_whole", CATALOG, "# Sorted by: a.\n- text\n"),
    ("workflows_are_modest", WORKFLOW, "---\n"),
    ("verifiers_verify", "tests/unit/test_plan.py", "def test_(:\n"),
    ("assigned_names_are_private", TOOLBELT + "vars/main.yml", "a: [\n"),
])
def test_a_file_of_an_odd_shape_is_named(rule, file, text, tree):
    (tree / file).parent.mkdir(exist_ok=True)
    (tree / file).write_text(text)
    assert [sentence for sentence in RULES[rule](Tree(tree)) if file in sentence]


def test_every_rule_has_something_planted():
    assert {rule for rule, _, _ in PLANTS} == set(RULES)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A copy of the checkout that plants are put into, and taken out of again."""
    return checkout.copy(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def tree(clean):
    """The copy, restored after the test."""
    before = {path: path.read_bytes() for path in clean.rglob("*")
              if path.is_file() and "__pycache__" not in path.parts}
    yield clean
    for path in [path for path in clean.rglob("*") if path.is_file()]:
        if path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


@pytest.mark.parametrize(("rule", "plant", "named"), PLANTS, ids=lambda value: (
    value if isinstance(value, str) else ""))
def test_a_planted_violation_is_caught_and_named(rule, plant, named, tree):
    plant(tree)
    assert [sentence for sentence in RULES[rule](Tree(tree)) if named in sentence], (
        "\n".join(RULES[rule](Tree(tree))) or "the rule found nothing")
