# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/reference are what specs and DOCUMENTATION say, and readable as Markdown."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ansible.release
import pytest
from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "docs" / "reference"
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir())


def _load():
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _load()


@pytest.fixture(scope="module")
def pages():
    """The pages as they are here: that they are fresh, the rule reference_is_fresh says."""
    return {file.name: file.read_text(encoding="utf-8") for file in REFERENCE.iterdir()}


def tables(text):
    """The cells of every table of a page, as a browser would show them, row by row."""
    rows, inside = [], False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        inside = token.type in ("td_open", "th_open") or inside and token.type == "inline"
        if inside and token.type == "inline":
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def headings(text):
    tokens = MarkdownIt("commonmark").parse(text)
    return [after.content for token, after in zip(tokens, tokens[1:])
            if token.type == "heading_open" and token.tag == "h2"]


def module_with(options=None, returned=None, **doc):
    doc = {"short_description": "Do", "description": ["Does."], "options": options or {}, **doc}
    return {"doc": doc, "examples": None, "return": returned}


# --- The pages that are in the repository ----------------------------------------------------


def test_every_role_module_filter_and_callback_has_a_section(pages):
    assert headings(pages["roles.md"]) == ROLES
    for page, places in (("modules.md", "library/*.py"), ("filters.md", "filter_plugins/*.yml"),
                         ("lookups.md", "lookup_plugins/*.py"),
                         ("callbacks.md", "callback_plugins/*.py")):
        assert headings(pages[page]) == sorted(path.stem for path in REPOSITORY.glob(places))


def test_the_pages_are_the_same_wherever_they_are_written(pages):
    for text in pages.values():
        assert str(REPOSITORY) not in text
        assert ansible.release.__version__ not in text
        assert text.endswith("\n") and not text.endswith("\n\n")


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_readme_ends_with_the_way_to_its_variables(role):
    last = (REPOSITORY / "roles" / role / "README.md").read_text().rstrip().splitlines()[-1]
    assert last == ("Variables: [reference](../../docs/reference/roles.md#%s), or "
                    "`ansible-doc -t role %s`." % (role, role))


def test_every_playbook_has_a_section_with_its_steps(pages):
    text = pages["playbooks.md"]
    assert headings(text) == sorted(path.stem for path in REPOSITORY.glob("playbooks/*.yml"))
    rows = tables(text)
    assert ["Prove every endpoint", "endpoint_smoke", "endpoint_smoke, verify"] in rows
    # Tags inside a role, each of which is safe alone.
    (row,) = [row for row in rows if row[0] == "Apply the other safe remedies"
              and "a part of it" in row[2] and "swap" in row[2]][:1]
    assert row[1] == "host_tuning"


# --- The generator ---------------------------------------------------------------------------


@pytest.mark.parametrize("text, shown", [
    ("plain words, 100 % of them.", "plain words, 100 % of them."),
    ("a gpu_facts and a _private_ name", "a gpu_facts and a _private_ name"),
    ("<host> & *.yml [x](y) `tick` ~~no~~ a\\b", "<host> & *.yml [x](y) `tick` ~~no~~ a\\b"),
    ("# no heading", "# no heading"),
    ("- no list", "- no list"),
    ("1. no list", "1. no list"),
    ("C(a|b) of C(<file>) and C(x`y)", "a|b of <file> and x`y"),
    ("O(state=present), V(none), RV(removed), E(HOME)", "state=present, none, removed, HOME"),
    ("B(bold) I(slanted) M(ansible.builtin.file)", "bold slanted ansible.builtin.file"),
    ("L(text,https://example.org/a_b) U(https://example.org)", "text https://example.org"),
])
def test_a_reader_sees_the_words_and_none_of_the_markup(text, shown):
    tokens = MarkdownIt("commonmark").enable("strikethrough").parse(generate.markdown(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[1].children
                   if child.type != "html_inline") == shown


def test_pipes_and_paragraphs_stay_in_their_cell():
    page = generate.page("module", {"m": module_with({"o": {
        "description": ["Either C(a|b) or | a bar.", "And\nmore."], "type": "str",
        "default": "x | y", "choices": ["x | y", "z"]}})})
    assert tables(page)[1] == [
        "o", "str", "x | y", "x | y, z", "Either a|b or | a bar.<br>And more."]


def test_values_are_shown_as_they_are_written():
    shown = [generate.code(value) for value in ("text", "", None, True, 8, [], {"a": 1}, "a\nb")]
    assert shown == ["`text`", '`""`', "`null`", "`true`", "`8`", "`[]`", '`{"a": 1}`', '`"a\\nb"`']


def test_what_is_nested_follows_what_it_is_in():
    inner = {"type": "int", "description": "A part.", "required": True}
    option = {"type": "list", "elements": "dict", "description": "All.", "aliases": ["many"]}
    role = {"entry_points": {"main": {
        "short_description": "Do", "options": {"r_x": dict(option, options={"part": inner})}}}}
    module = module_with({"x": dict(option, suboptions={"part": inner})}, {
        "y": {"type": "list", "elements": "dict", "returned": "always", "description": "Made.",
              "contains": {"part": {"type": "int", "description": "One.", "sample": 3}}}})
    assert tables(generate.page("role", {"r": role}))[1:] == [
        ["r_x", "list of dict", "", "All. Also called many."],
        ["r_x.part", "int", "required", "A part."]]
    page = generate.page("module", {"m": module})
    rows = tables(page)
    assert ["x.part", "int", "required", "A part."] in rows
    assert ["y", "list of dict", "always", "Made."] in rows
    assert ["y.part", "int", "", "One."] in rows
    assert "\ny:\n- {part: 3}\n" in page


def test_a_callbacks_option_says_where_it_is_set():
    page = generate.page("callback", {"c": module_with({"o": {
        "description": "One.", "type": "int", "default": 3, "env": [{"name": "C_O"}],
        "ini": [{"section": "callback_c", "key": "o"}], "vars": [{"name": "c_o"}]}})})
    assert tables(page)[1] == [
        "o", "int", "3", "One.<br>Environment: C_O<br>Configuration: [callback_c] o"
        "<br>Variable: c_o"]


def test_what_no_template_prints_is_not_lost_in_silence():
    shown = module_with({"o": {"description": "One.", "colour": "red"}}, seealso=[])
    wrong = generate.complaints("module", "m", shown)
    assert [line.split(";")[0] for line in wrong] == [
        "module m: no template prints the key seealso of its plugin",
        "module m: no template prints the key colour of its option"]


def test_markup_that_is_wrong_stops_the_generator():
    with pytest.raises(ValueError, match="gpu_facts"):
        generate.markdown("See M(gpu_facts).")


@pytest.fixture
def one_playbook(tmp_path, monkeypatch):
    """A checkout with one playbook and one role, and a function that writes the playbook."""
    role = tmp_path / "roles" / "r"
    for name, text in (("tasks/main.yml", """
- name: Do
  tags: [part]
  block:
    - ansible.builtin.import_tasks: more.yml
"""), ("tasks/more.yml", "- {name: More, tags: deep, ansible.builtin.ping: }\n"),
            ("defaults/main.yml", "r_root: \"{{ firstlight_root }}\"\n")):
        (role / name).parent.mkdir(parents=True, exist_ok=True)
        (role / name).write_text(text)
    (tmp_path / "playbooks").mkdir()
    monkeypatch.setattr(generate, "ROOT", tmp_path)

    def write(about="# Does.\n# And more.\n", more=""):
        (tmp_path / "playbooks" / "p.yml").write_text("---\n" + about + """\
- hosts: all
  tasks:
    - name: Role
      ansible.builtin.import_role: {name: r}
      tags: [outer]
""" + more)
        return generate.playbooks()
    return write


def test_a_playbook_says_what_it_does_and_which_tags_it_has(one_playbook):
    (made,) = one_playbook().values()
    assert (made["about"], made["hosts"]) == ("Does. And more.", ["all"])
    (step,) = made["steps"]
    assert (step["role"], step["tags"], step["alone"]) == ("r", ["outer"], ["deep", "part"])
    assert made["variables"] == {"firstlight_root"}


def test_a_playbook_without_a_word_about_it_stops_the_generator(one_playbook):
    with pytest.raises(ValueError, match=r"playbooks/p.yml: it begins with no comment"):
        one_playbook(about="")


def test_a_shared_variable_that_nobody_described_stops_the_generator(one_playbook):
    with pytest.raises(ValueError, match="it does not say what firstlight_new is"):
        one_playbook(more='  serial: "{{ firstlight_new }}"\n')
