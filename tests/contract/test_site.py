# SPDX-License-Identifier: Apache-2.0
"""The play of site.yml, and the options of roles that it gives."""

from __future__ import annotations

import yaml


def test_the_site_names_every_option_that_it_gives(repository):
    """What is not named there is judged before it can be known, where an inventory has it too."""
    options = {name for path in repository.glob("roles/*/meta/argument_specs.yml")
               for entry in yaml.safe_load(path.read_text())["argument_specs"].values()
               for name in entry.get("options") or {}}
    (play,) = yaml.safe_load((repository / "playbooks/site.yml").read_text())
    given = list(play["vars"])
    assert given.pop(0) == "host_state_given"
    assert play["vars"]["host_state_given"] == [name for name in given if name in options]
