# SPDX-License-Identifier: Apache-2.0
"""The documents are read as a reader reads them, and what they show of YAML is what roles take."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess

import documents
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from markdown_it import MarkdownIt

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.planning import requests

ROOT = pathlib.Path(__file__).parents[2]
BLOCKS = documents.all_blocks(ROOT)
YAML = [block for block in BLOCKS if block.language == "yaml"]
# Of a host, not of Firstlight.
CONNECTION = re.compile(r"ansible_[a-z_]+")


def specified():
    """Every variable that a role takes, with its spec."""
    found = {}
    for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            for name, option in (entry.get("options") or {}).items():
                found[name] = plain(option)
    return found


def plain(option):
    """An option as ArgumentSpecValidator takes it: what a document leaves out is no matter."""
    kept = {key: option[key] for key in ("type", "elements", "choices") if key in option}
    if "options" in option:
        kept["options"] = {name: plain(one) for name, one in option["options"].items()}
    return kept


SPECS = specified()


def shared():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return set(module.SHARED)


def variables(content):
    """The variables of a piece of an inventory, of a file of variables, or of neither."""
    if not isinstance(content, dict):
        return
    if set(content) == {"all"}:
        yield from _of_group(content["all"])
    else:
        yield from content.items()


def _of_group(group):
    yield from (group.get("vars") or {}).items()
    for host in (group.get("hosts") or {}).values():
        yield from (host or {}).items()
    for child in (group.get("children") or {}).values():
        yield from _of_group(child or {})


def known(value):
    """A value in which what is a template stands as some text."""
    if isinstance(value, dict):
        return {name: known(one) for name, one in value.items()}
    if isinstance(value, list):
        return [known(one) for one in value]
    return "a-text-of-a-template" if isinstance(value, str) and "{{" in value else value


def wrong(name, value):
    """What is wrong with a variable, as a text; empty for none."""
    value = known(value)
    if name == "inference_endpoints":
        return findings.text(requests.normalise(value)[1])
    if name in SPECS:
        judged = ArgumentSpecValidator({name: SPECS[name]}).validate({name: value})
        return "; ".join(judged.error_messages)
    return "" if name in shared() or CONNECTION.fullmatch(name) else "%s: no role takes it" % name


# --- The documents ---------------------------------------------------------------------------


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.where)
def test_variables_that_are_shown_are_taken(block):
    told = [wrong(name, value) for name, value in variables(yaml.safe_load(block.text))]
    assert "".join(told) == ""


def test_blocks_say_what_they_are():
    known = {"console", "bash", "yaml", "text"}
    assert [block.where for block in BLOCKS if block.language not in known] == []


def test_every_key_of_an_endpoint_is_described():
    text = (ROOT / "docs/endpoints.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(re.findall("`([a-z_]+)`", " ".join(rows))) == set(requests.DEFAULTS)


def test_pictures_are_there():
    for page in documents.pages(ROOT):
        for token in MarkdownIt("commonmark").parse((ROOT / page).read_text()):
            for child in token.children or []:
                if child.type == "image":
                    assert (ROOT / page).parent.joinpath(child.attrs["src"]).exists(), page
                    assert child.content, "%s: a picture without words" % page


def test_every_page_is_in_the_index():
    text = (ROOT / "docs/README.md").read_text()
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("**/*.md")]
    assert [page for page in pages if page != "README.md" and "(%s)" % page not in text] == []


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_room_is_described():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    rooms = {line.split("/")[0] for line in listed.splitlines() if "/" in line}
    text = (ROOT / "docs/development.md").read_text()
    assert [room for room in sorted(rooms) if not room.startswith(".") and room != "requirements"
            and "`%s/" % room not in text] == []


# --- The parser ------------------------------------------------------------------------------

PAGE = """# A page

```console
$ make a    # why
it says 12.5 s
  and … more

$ run --with "two words" \\
    --more
```

- in a list:

  ```bash
  # a comment
  one
  two
  ```

```text
$ no command
```
"""


def parsed(text):
    return [command for block in documents.blocks("page.md", text)
            for command in documents.commands(block)]


def test_commands_have_their_place_their_words_and_what_they_print():
    made, run, one, two = parsed(PAGE)
    assert (made.where, made.key, made.output) == (
        "page.md:4", "make a", ("it says 12.5 s", "  and … more"))
    assert (run.where, run.key, run.output) == ("page.md:8", "run --with two words --more", ())
    assert (one.where, one.key, two.key) == ("page.md:16", "one", "two")


@pytest.mark.parametrize("text, told", [
    ("```console\nno prompt\n```", "page.md:2: nothing prints 'no prompt'"),
    ("```console\n$ a \\\n```", "page.md:2: the command does not end"),
    ("```bash\necho 'open\n```", "No closing quotation"),
])
def test_what_is_no_command_is_told(text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        parsed(text)


@pytest.mark.parametrize("expected, printed, exact, gone", [
    (["a 12 b"], "x\n  a   7.5  b\n", False, None),
    (["a 12 b"], "a 7 b", True, "a 12 b"),
    (["a 1,200 b"], "x a 1,200 b y", True, None),
    (["a … z"], "a anything at all z", True, None),
    (["b", "a"], "a\nb", False, None),
    (["a", "c"], "a\nb", False, "c"),
    (["a (b)"], "a b", False, "a (b)"),
    (["a1"], "a", False, "a1"),
])
def test_what_is_shown_is_looked_for_line_by_line(expected, printed, exact, gone):
    assert documents.missing(expected, printed, exact) == gone


@pytest.mark.parametrize("name, value, told", [
    ("network_access_offlin", True, "no role takes it"),
    ("network_access_probe", "sometimes", "value of network_access_probe must be one of"),
    ("network_access_hub_endpoints", [{"ulr": "https://hub.example.org"}], "ulr"),
    ("inference_endpoints", [{"name": "chat", "modle": "canary"}], "modle"),
])
def test_variables_that_are_none_are_told(name, value, told):
    assert told in wrong(name, value)


def test_variables_are_found_wherever_an_inventory_has_them():
    inventory = {"all": {"vars": {"a": 1}, "hosts": {"h": {"b": 2}, "i": None},
                         "children": {"g": {"vars": {"c": 3}}}}}
    assert dict(variables(inventory)) == {"a": 1, "b": 2, "c": 3}
    assert dict(variables({"a": 1})) == {"a": 1}
    assert dict(variables([{"a": 1}])) == {}
