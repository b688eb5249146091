#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: choose a host's way out by asking it, and set it for who goes out."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: network_access
short_description: Choose a host's way out among candidates, set it, and take it back
description:
  - Asks candidates of each kind (hubs of models, package indexes, apt mirrors, registry mirrors)
    all at once, each within a time and by a small download of the real kind, and chooses the best.
    An answer that is not what it should be, such as that of a captive portal, is told from none.
  - Writes what was chosen in one transaction - variables for processes of ours, a file without
    secrets to be sourced, settings of pip, and as root drop-ins for apt with a copy of its lists. A
    copy that C(apt-get update) cannot use is put back.
  - What was asked and chosen is kept. The same question is not asked again, and files that were
    changed are as they should be after the next run; what was in them is kept aside.
  - Secrets (a proxy with a password) are in files that their owner alone reads, and nowhere else.
options:
  root:
    description: C(firstlight_root) on this host; empty means the default of the user.
    type: path
    default: ""
  state:
    description:
      - C(present) sets what is asked for, and takes back what an earlier run set where nothing is.
        C(absent) takes it back.
    type: str
    choices: [present, absent]
    default: present
  offline:
    description: Whether nothing may go out. Then nothing is asked.
    type: bool
    default: false
  hub_endpoints:
    description: Hubs to choose from; empty means the usual one.
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: Its address.
        type: str
        required: true
      kind:
        description: Whose interface it has; by its host's row of O(endpoints), else C(huggingface).
        type: str
        choices: [huggingface, modelscope]
      trusted:
        description: Whether a token may be sent to it; by its host's row of O(endpoints), else no.
        type: bool
  pip_indexes:
    description: Package indexes to choose from.
    type: list
    elements: str
    default: []
  apt_mirrors:
    description: Mirrors of the distribution to choose from.
    type: list
    elements: str
    default: []
  registry_mirrors:
    description: Mirrors of the usual image registry to choose from.
    type: list
    elements: str
    default: []
  proxy:
    description: C(http) and C(https), addresses that may have a password, and C(no_proxy).
    type: dict
    suboptions:
      http:
        description: The proxy for HTTP.
        type: str
      https:
        description: The proxy for HTTPS.
        type: str
      no_proxy:
        description: Hosts that are reached without it, with commas between them.
        type: str
  hook:
    description: A script of the site to source; empty for none.
    type: str
    default: ""
  ca_bundle:
    description: A file of certificates (PEM) by which servers are known; empty for the system's.
    type: str
    default: ""
  probe_model:
    description: C(repo_id) and C(path) of a file that hubs are asked for; its begin is read.
    type: dict
    suboptions:
      repo_id:
        description: A public model.
        type: str
        required: true
      path:
        description: A file of it.
        type: str
        required: true
  probe_s:
    description: Seconds that each candidate has.
    type: float
    default: 5.0
  probe:
    description:
      - C(changed) asks candidates when the question has changed, C(always) at each run, C(never)
        takes the first of each list.
    type: str
    choices: [changed, always, never]
    default: changed
  system_wide:
    description: Whether C(/etc/environment) gets a block with the variables that hold no secret.
    type: bool
    default: false
  endpoints:
    description: Rows of C(catalog/network_endpoints.yml).
    type: list
    elements: dict
    default: []
  hooks:
    description: Rows of C(catalog/network_hooks.yml).
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    description: >-
      Asks the candidates and says what it would write. A hook that was not sourced before is not,
      and nothing is asked then.
    support: full
  diff_mode:
    description: Shows every file before and after, without secrets.
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Take models from whoever is quickest
  network_access:
    hub_endpoints:
      - url: https://huggingface.co
      - url: https://mirror.example.org/hf
    endpoints: "{{ lookup('file', 'catalog/network_endpoints.yml') | from_yaml }}"
"""

RETURN = r"""
hub:
  description: The hub that models come from.
  returned: success
  type: dict
  contains:
    kind:
      description: C(huggingface) or C(modelscope).
      type: str
    url:
      description: Its address.
      type: str
    trusted:
      description: Whether a token may be sent to it.
      type: bool
offline:
  description: Whether nothing may go out.
  returned: success
  type: bool
registry_mirrors:
  description: Registry mirrors that can be used, best first.
  returned: success
  type: list
  elements: str
environment:
  description: Variables that processes get which go out; C(null) for a value with a secret.
  returned: success
  type: dict
  sample: {HF_ENDPOINT: https://mirror.example.org/hf, HF_HUB_DISABLE_XET: "1"}
measured:
  description: What each candidate was found to be, now or when the question was new.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: C(hub), C(pip), C(apt) or C(registry).
      type: str
    url:
      description: Its address.
      type: str
    verdict:
      description:
        - C(ok), C(slow), C(unmeasured) (right, without what was asked of it), C(wrong) (answers and
          is something else), C(refused) or C(dead).
      type: str
    why:
      description: Why it is not C(ok), or what is to be known of it.
      type: str
    first_byte_s:
      description: Seconds until the first byte; C(null) where there was none.
      type: float
    bytes_per_s:
      description: Bytes per second after that; C(null) where nothing was measured.
      type: float
probed:
  description: Whether candidates were asked in this run.
  returned: success
  type: bool
reasons:
  description: Why it is so, one line each.
  returned: success
  type: list
  elements: str
actions:
  description: What was done, or would be, one line each.
  returned: success
  type: list
  elements: str
findings:
  description: What is wrong, or could not be done.
  returned: always
  type: list
  elements: dict
recovered:
  description: Whether an earlier change was found half done and put back first.
  returned: success
  type: bool
"""

import contextlib
import hashlib
import json
import os
import ssl

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import findings, network_probe, paths, site_hook
from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.network_apt import HostApt, left
from ansible.module_utils.firstlight.network_files import OPEN, SECRET, Files, Item
from ansible.module_utils.firstlight.planning import network
from ansible.module_utils.firstlight.transaction import Busy, RollbackFailed

SYSTEM_ROOT = "/"
# What has a secret where it has a login; the values of others may be shown.
URLS = {"type": "list", "elements": "str", "default": [], "no_log": True}
SPEC = {
    "root": {"type": "path", "default": ""},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "offline": {"type": "bool", "default": False},
    "hub_endpoints": {"type": "list", "elements": "dict", "default": [], "no_log": True,
                      "options": {"url": {"type": "str", "required": True},
                                  "kind": {"type": "str", "choices": ["huggingface", "modelscope"]},
                                  "trusted": {"type": "bool"}}},
    "pip_indexes": URLS, "apt_mirrors": URLS, "registry_mirrors": URLS,
    "proxy": {"type": "dict", "no_log": True, "options": {
        "http": {"type": "str"}, "https": {"type": "str"}, "no_proxy": {"type": "str"}}},
    "hook": {"type": "str", "default": ""},
    "ca_bundle": {"type": "str", "default": ""},
    "probe_model": {"type": "dict", "options": {
        "repo_id": {"type": "str", "required": True}, "path": {"type": "str", "required": True}}},
    "probe_s": {"type": "float", "default": 5.0},
    "probe": {"type": "str", "choices": ["changed", "always", "never"], "default": "changed"},
    "system_wide": {"type": "bool", "default": False},
    "endpoints": {"type": "list", "elements": "dict", "default": []},
    "hooks": {"type": "list", "elements": "dict", "default": []},
}
CHOICE = ("hub", "pip", "apt_mirror", "apt", "registry", "hook")


class NotSet(Exception):
    """What is asked for cannot be; carries findings for the operator."""

    def __init__(self, wrong):
        super().__init__(findings.text(wrong))
        self.findings = wrong


class Host:
    """This host, as this module reads and changes it."""

    def __init__(self, params, system_root):
        self.params = params
        self.files = Files(paths.root(params["root"]), system_root)
        self.is_root = os.geteuid() == 0
        self.findings = []

    def question(self):
        """What is asked.

        :raises NotSet: with all that is wrong with it.
        """
        given = {name: self.params[name] for name in network.OPTIONS}
        # Ansible gives every option; those of a hub that nobody set are none.
        given["hub_endpoints"] = [{key: value for key, value in one.items() if value is not None}
                                  for one in given["hub_endpoints"]] or None
        given["proxy"] = {key: value for key, value in (given["proxy"] or {}).items() if value}
        wanted, wrong = network.question(given, self.params["endpoints"])
        if wrong:
            raise NotSet(wrong)
        return wanted

    def certificates(self, wanted):
        """Hold a bundle of certificates against what it should be.

        :raises NotSet: it is none.
        """
        if not wanted.ca_bundle or wanted.offline:
            return b""
        try:
            content = paths.read(wanted.ca_bundle)
            if content is None:
                raise ValueError("no such file")
            if b"PRIVATE KEY-----" in content:
                raise ValueError("it holds a private key, which nobody but its owner should have")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=content.decode("ascii", "ignore"))
            if not context.get_ca_certs():
                raise ValueError("no certificate of an authority is in it")
        except (OSError, ValueError) as problem:
            said = getattr(problem, "reason", None) or getattr(
                problem, "strerror", None) or str(problem)
            raise NotSet([finding(
                "network-ca-bundle", wanted.ca_bundle, "it cannot be used: %s" % said,
                "certificates as PEM (-----BEGIN CERTIFICATE-----), readable by everybody",
                "mend it, or change network_access_ca_bundle")]) from problem
        return content

    def hook(self, wanted):
        """What a site's hook exports.

        :raises NotSet: it is not there, fails, does not end, or exports what cannot be used.
        """
        sourced = site_hook.source(wanted.hook)
        said = [sourced.problem] if sourced.problem else []
        if findings.blocking(said):
            raise NotSet(said)
        taken, wrong = network.exported(wanted.hook, sourced.variables)
        wrong += said
        gone = sorted({taken[name] for name in network.TAKEN_PATHS
                       if name in taken and not os.path.isfile(taken[name])})
        if gone:
            wrong.append(finding(
                "network-hook-garbage", wanted.hook, "it names files that are not there: %s" %
                ", ".join(gone), "files of certificates", "mend %s" % wanted.hook))
        if findings.blocking(wrong):
            raise NotSet(wrong)
        self.findings += wrong
        return taken

    def ask(self, wanted, hook, apt):
        """What each candidate is, by kind and address, asked in the environment that is chosen."""
        decided, _ = network.decide(wanted, hook, None, {}, {}, [])
        variables = network.environment(wanted, decided)
        kinds = {one["url"]: one["kind"] for one in network.hubs_of(wanted, hook)}
        asked = [(kind, url) for kind, urls in network.candidates(wanted, hook).items()
                 for url in urls]
        with _environment(variables):
            found = network_probe.ask(
                [(kinds[url] if kind == "hub" else kind, url) for kind, url in asked],
                network_probe.Wanted(
                    wanted.probe_s, wanted.probe_model["repo_id"], wanted.probe_model["path"],
                    variables.get("SSL_CERT_FILE", ""), apt))
        measured = {}
        for (kind, url), one in zip(asked, found):
            measured.setdefault(kind, {})[url] = one
        return measured

    def items(self, wanted, decided, apt):
        """Every file as it should be, by path, and the block for all processes."""
        variables = network.environment(wanted, decided)
        pip, pip_path = network.pip_file(variables), os.path.join(self.files.folder, "pip.conf")
        found = {
            os.path.join(self.files.folder, "environment"):
                Item(network.environment_file(variables).encode(), SECRET),
            os.path.join(self.files.folder, "env.sh"):
                Item(network.shell_file(variables, self.files.root, pip_path).encode(), OPEN)}
        if pip:
            found[pip_path] = Item(pip.encode(), SECRET)
        if self.is_root and apt.there and not wanted.offline:
            found.update(apt.items(variables, decided["apt"]))
        whole = wanted.system_wide and self.is_root
        return found, network.block(variables, self.files.root) if whole else ""


@contextlib.contextmanager
def _environment(variables):
    """The process with these variables, and as it was after that."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Seen:
    """What an earlier run left, what the question is now, and what apt has."""

    def __init__(self, host, wanted):
        self.state = host.files.state()
        self.apt = HostApt(host.files, self.state)
        self.sources = self.apt.wanted()
        if wanted.urls["apt"] and not wanted.offline:
            against = self.apt.against(self.sources, host.is_root)
            if against:
                host.findings.append(against)
                wanted = wanted._replace(urls={**wanted.urls, "apt": []})
        self.wanted = wanted
        script = b""
        if wanted.hook and not wanted.offline:
            with contextlib.suppress(OSError):
                script = paths.read(wanted.hook) or b""
        # With the secrets: another password is another question. Its file is its owner's alone.
        asked = wanted._replace(probe="", probe_s=0, system_wide=False)
        text = json.dumps([asked, *(hashlib.sha256(content).hexdigest() for content in (
            script, host.certificates(wanted))),
            sorted(self.sources.uris.items()) if wanted.urls["apt"] else []], sort_keys=True)
        self.question = hashlib.sha256(text.encode()).hexdigest()
        self.known = self.state.question == self.question and all(
            key in self.state.decision for key in (*CHOICE, "reasons", "measured"))


def plan(host, seen, check):
    """The decision, whether it was asked for now, and whether it holds until the next question.

    :raises NotSet: nothing can be used of a kind that is asked for.
    """
    state, wanted = seen.state, seen.wanted
    settled = seen.known and (state.settled or wanted.probe == "never" or wanted.offline)
    if settled and wanted.probe != "always":
        return state.decision, False, state.settled
    hook = {}
    if wanted.hook and not wanted.offline:
        if check and not seen.known:
            decided, _ = network.decide(wanted, {}, None, {}, {}, [])
            decided["reasons"] = ["%s is not sourced in check mode, so nothing was asked." %
                                  wanted.hook]
            return decided, False, False
        hook = state.decision["hook"] if check else host.hook(wanted)
    asks = not wanted.offline and wanted.probe != "never"
    decided, wrong = network.decide(
        wanted, hook, host.ask(wanted, hook, seen.sources) if asks else None,
        state.decision if seen.known else {},
        {uri: plain for uri, (plain, _) in seen.sources.uris.items()},
        [row["path"] for row in host.params["hooks"]
         if os.path.isfile(host.files.at(row["path"]))])
    if findings.blocking(wrong):
        raise NotSet(wrong + host.findings)
    host.findings += wrong
    # Where the usual hub does not answer, it is asked again next time.
    return decided, asks, (asks and not wrong) or (seen.known and state.settled and not asks)


def steps(host, seen, decided, settled):
    """What leads to what was decided."""
    state = host.files.state()
    items, block = host.items(seen.wanted, decided, HostApt(host.files, state))
    found = host.files.plan(state, items, block)
    found.adopt(HostApt(host.files, state).put_here(state), host.files)
    # Other figures for the same choice are no change.
    keep = seen.known and state.question == seen.question and state.settled == settled and all(
        state.decision[key] == decided[key] for key in CHOICE)
    host.files.with_state(found, seen.question, settled, state.decision if keep else decided)
    return found


def revert(host):
    """What takes everything back; lists that were put into our copy go where they belong."""
    state = host.files.state()
    found = host.files.plan(state, {}, "")
    found.adopt(HostApt(host.files, state).put_here(state), host.files)
    host.files.without_state(found)
    return found


def apply(host, make, mirrored):
    """Take the steps.

    :param make: gives the steps; asked once nobody else is at work.
    :param mirrored: addresses that apt has to show that it can use; else all is put back.
    :raises NotSet: it cannot.
    """
    with host.files.transaction() as change:
        found = make()
        host.files.apply(change, found)
        if mirrored and found.touches(host.files.sources):
            against = HostApt(host.files, host.files.state()).prove(mirrored)
            if against:
                raise NotSet([against])
    host.files.clear()
    return found, change.recovered


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    # Only what has a login is a secret: the rest is to be read in findings and reasons.
    module.no_log_values.difference_update(
        [value for value in module.no_log_values if not network.has_login(str(value))])
    host = Host(module.params, SYSTEM_ROOT)
    wrong = []
    try:
        result = _run(module, host)
    except NotSet as problem:
        said, wrong = str(problem), problem.findings
    except Busy as problem:
        said = "%s; nothing was changed. Run again when it has ended." % problem
    except RollbackFailed as problem:
        said = str(problem)
    except OSError as problem:
        said = "%s: %s. Everything is as it was before." % (
            problem.filename or host.files.folder, problem.strerror or problem)
    else:
        module.exit_json(**result)
    module.fail_json(msg=said, findings=wrong)


def _run(module, host):
    wanted = host.question()
    present = module.params["state"] == "present" and wanted.asked
    if present:
        seen = Seen(host, wanted)
        decided, probed, settled = plan(host, seen, module.check_mode)
        variables = network.environment(seen.wanted, decided)

        def make():
            return steps(host, seen, decided, settled)
        if wanted.system_wide and not host.is_root:
            host.findings.append(left(
                "network-system-wide-not-root", "network_access_system_wide",
                "not set: /etc/environment is root's", "root", "run it as root (become: true)",
                True))
    else:
        decided, probed, variables = network.nothing(wanted), False, {}

        def make():
            return revert(host)
    found, recovered = make(), False
    result = {"changed": found.any or host.files.transaction().half_done}
    if module._diff and result["changed"]:
        result["diff"] = host.files.difference(found)
    if result["changed"] and not module.check_mode:
        found, recovered = apply(host, make, sorted(set(decided["apt"].values())))
    return {
        **result, "hub": network.shown_hub(decided["hub"]), "offline": present and wanted.offline,
        "registry_mirrors": decided["registry"], "environment": network.public(variables),
        "measured": decided["measured"], "probed": probed, "reasons": decided["reasons"],
        "actions": found.lines(), "findings": host.findings + found.findings,
        "recovered": recovered}


if __name__ == "__main__":
    main()
