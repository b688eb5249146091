# SPDX-License-Identifier: Apache-2.0
"""What a host's way out is: what is asked of it, what is chosen of what answers, what is set.

Nothing here asks the network or a file. Values are held to characters that need no quotes in any of
the files that they are written to.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..findings import Finding, finding
from . import apt_sources

PREFIX = "network_access_"
DEFAULT_HUBS = [{"url": "https://huggingface.co", "trusted": True}]
"""What ``network_access_hub_endpoints`` is where nobody sets it."""

OPTIONS: Dict[str, Any] = {
    "offline": False, "hub_endpoints": DEFAULT_HUBS, "pip_indexes": [], "apt_mirrors": [],
    "registry_mirrors": [], "proxy": {}, "hook": "", "ca_bundle": "",
    "probe_model": {"repo_id": "Qwen/Qwen2.5-0.5B-Instruct", "path": "model.safetensors"},
    "probe_s": 5.0, "probe": "changed", "system_wide": False}
"""The role's variables without their prefix, as they are where nobody sets them. The file is one of
those that a hub has elsewhere: its way is that of all large files, and only its begin is read."""

HUB_KINDS = ("huggingface", "modelscope")
KINDS = ("hub", "pip", "apt", "registry")
VARIABLES = {"hub": "hub_endpoints", "pip": "pip_indexes", "apt": "apt_mirrors",
             "registry": "registry_mirrors"}
CALLED = {"hub": "hub of models", "pip": "package index", "apt": "apt mirror",
          "registry": "registry mirror"}
USES = {"hub": "Models come from", "pip": "Python packages come from",
        "apt": "Packages of the distribution come from", "registry": "Images are asked for at"}

URL = re.compile(r"https?://[A-Za-z0-9._~:/@!&()*+,;=%\[\]-]+")
LOGIN = re.compile(r"(?<=://)[^/\s@]*@")
HOSTS = re.compile(r"[A-Za-z0-9.,:*/_\[\] -]*")
PATH = re.compile(r"/[A-Za-z0-9._~:/@+,=%-]+")
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./+-]*")
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Hosts that are never asked through a proxy: our endpoints are there."""

# What a download is judged by: seconds until this much is there.
TYPICAL_BYTES = 64 * 2**20
# Whoever takes at most this much longer than the quickest counts as quick as it: then the order of
# the list decides, and what was chosen before stays.
ALIKE, STAYS = 1.2, 2.0

BEST, SLOW, UNMEASURED = "ok", "slow", "unmeasured"
USABLE = (BEST, SLOW, UNMEASURED)
"""Verdicts with which a candidate can be used, best first; ``wrong``, ``refused``, ``dead`` not."""


class Question(NamedTuple):
    """What is asked, in one shape.

    :param hubs: ``{kind, url, trusted, xet}`` each, in the order of the user.
    :param hub_asked: whether they are others than the default.
    :param asked: whether anything is to be done on a host at all.
    """

    offline: bool
    hubs: List[Dict[str, Any]]
    hub_asked: bool
    urls: Dict[str, List[str]]
    proxy: Dict[str, str]
    hook: str
    ca_bundle: str
    probe_model: Dict[str, str]
    probe_s: float
    probe: str
    system_wide: bool
    asked: bool


class Measured(NamedTuple):
    """What a candidate was found to be.

    :param verdict: ``ok``, ``slow`` (right, and not done in its time), ``unmeasured`` (right, and
        without what was asked of it), ``wrong`` (answers, and is something else), ``refused`` (says
        no), ``dead``.
    :param why: a clause for a person; empty where it is well.
    :param first_byte_s: seconds until the first byte of the download.
    :param bytes_per_s: of the download after that.
    :param serves: for an apt mirror, where it has what an address of the host's sources has.
    """

    verdict: str
    why: str = ""
    first_byte_s: Optional[float] = None
    bytes_per_s: Optional[float] = None
    serves: Mapping[str, str] = {}


# What is asked.


def question(options: Mapping[str, Any],
             endpoints: Sequence[Mapping[str, Any]]) -> Tuple[Question, List[Finding]]:
    """Judge the variables and put them into one shape.

    :param options: by the names of :data:`OPTIONS`; what is left out is as there.
    :param endpoints: rows of ``catalog/network_endpoints.yml``.
    :returns: what is asked, and everything that is wrong with it. Nothing is raised.
    """
    given = {**OPTIONS, **{key: value for key, value in options.items() if value is not None}}
    wrong: List[Finding] = []
    hubs = _hubs(given["hub_endpoints"], endpoints, wrong)
    urls = {kind: _urls(kind, given[VARIABLES[kind]], wrong) for kind in KINDS[1:]}
    proxy = _proxy(given["proxy"], wrong)
    model = given["probe_model"]
    if not (isinstance(model, dict) and REPO.fullmatch(str(model.get("repo_id")))
            and FILE.fullmatch(str(model.get("path")))):
        wrong.append(_bad("probe_model", _shown(model), "repo_id: org/name and path: a file of it"))
        model = OPTIONS["probe_model"]
    for name in ("hook", "ca_bundle"):
        if given[name] and not PATH.fullmatch(str(given[name])):
            wrong.append(_bad(name, _shown(given[name]), "the absolute path of a file on the host, "
                              "of letters, digits and ._~:/@+,=%-"))
    seconds = given["probe_s"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= 600:
        wrong.append(_bad("probe_s", _shown(seconds), "seconds, more than 0 and at most 600"))
        seconds = OPTIONS["probe_s"]
    if given["probe"] not in ("changed", "always", "never"):
        wrong.append(_bad("probe", _shown(given["probe"]), "changed, always or never"))
    default, _ = _in_one_shape(DEFAULT_HUBS[0], endpoints)
    hub_asked = bool(hubs) and hubs != [default]
    asked = bool(given["offline"] or hub_asked or any(urls.values()) or proxy or given["hook"]
                 or given["ca_bundle"] or given["probe"] == "always")
    return Question(
        offline=bool(given["offline"]), hubs=hubs or [default], hub_asked=hub_asked, urls=urls,
        proxy=proxy, hook=str(given["hook"]), ca_bundle=str(given["ca_bundle"]),
        probe_model={key: str(model[key]) for key in ("repo_id", "path")},
        probe_s=float(seconds), probe=str(given["probe"]), system_wide=bool(given["system_wide"]),
        asked=asked), wrong


def unasked(options: Mapping[str, Any], endpoints: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """What can be said without a host: ``{asked, findings, decision}``.

    :param options: as for :func:`question`.
    :returns: ``decision`` is what holds where nothing is asked and nothing was set before.
    """
    wanted, wrong = question(options, endpoints)
    return {"asked": wanted.asked, "findings": wrong, "decision": {
        "hub": shown_hub(wanted.hubs[0]), "offline": wanted.offline, "registry_mirrors": [],
        "environment": {}, "reasons": [], "findings": []}}


def _bad(name: str, found: str, wanted: str) -> Finding:
    return finding("network-bad-input", PREFIX + name, found, wanted,
                   "change %s%s" % (PREFIX, name.partition("[")[0].partition(".")[0]))


def _shown(value: Any) -> str:
    """A value of the user for a message: no login, no end."""
    return without_login(repr(value))[:200]


def _url(name: str, value: Any, login: bool, wrong: List[Finding]) -> str:
    """An address without a slash at its end; empty, with a finding, where it is none."""
    wanted = "an address such as https://mirror.example.org/path"
    if not isinstance(value, str) or not URL.fullmatch(value):
        wrong.append(_bad(name, "%s" % _shown(value), wanted + ", other characters as %XX"))
        return ""
    try:
        parts = urllib.parse.urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urllib.parse.SplitResult("", "", "", "", "")
    if not host or value.count("@") > 1 or "@" in parts.path:
        wrong.append(_bad(name, _shown(value), wanted))
        return ""
    if "@" in parts.netloc and not login:
        wrong.append(_bad(name, "%s, with a login in it" % _shown(value),
                          wanted + " without a login: it would be shown"))
        return ""
    return value.rstrip("/")


def _urls(kind: str, given: Any, wrong: List[Finding]) -> List[str]:
    name = VARIABLES[kind]
    if not isinstance(given, (list, tuple)):
        wrong.append(_bad(name, _shown(given), "a list of addresses"))
        return []
    found = []
    for index, value in enumerate(given):
        where = "%s[%d]" % (name, index)
        url = _url(where, value, kind == "pip", wrong)
        if url and kind == "registry" and urllib.parse.urlsplit(url).path:
            wrong.append(_bad(where, url, "an address without a path: Docker takes no other"))
            url = ""
        if url and url not in found:
            found.append(url)
    return found


def _hubs(given: Any, endpoints: Sequence[Mapping[str, Any]],
          wrong: List[Finding]) -> List[Dict[str, Any]]:
    if not isinstance(given, (list, tuple)):
        wrong.append(_bad("hub_endpoints", _shown(given), "a list of {url, kind, trusted}"))
        return []
    found: List[Dict[str, Any]] = []
    for index, one in enumerate(given):
        name = "hub_endpoints[%d]" % index
        if not isinstance(one, dict) or "url" not in one:
            wrong.append(_bad(name, _shown(one), "a mapping with url, and kind and trusted if you "
                              "want"))
            continue
        url = _url(name + ".url", one["url"], False, wrong)
        hub, bad = _in_one_shape(dict(one, url=url), endpoints)
        wrong += [_bad(name + "." + key, _shown(one[key]), words) for key, words in bad]
        if url and not bad and url not in [other["url"] for other in found]:
            found.append(hub)
    return found


def _in_one_shape(given: Mapping[str, Any], endpoints: Sequence[Mapping[str, Any]]
                  ) -> Tuple[Dict[str, Any], List[Tuple[str, str]]]:
    """``{kind, url, trusted, xet}``, and what is wrong with it by key."""
    url = str(given["url"]).rstrip("/")
    host = host_of(url)
    row: Mapping[str, Any] = next((one for one in endpoints if one["host"] == host), {})
    kind = given.get("kind") or row.get("kind", "huggingface")
    trusted = given.get("trusted")
    if trusted is None:
        trusted = row.get("trusted", False)
    bad = []
    if kind not in HUB_KINDS:
        bad.append(("kind", "one of " + ", ".join(HUB_KINDS)))
    if not isinstance(trusted, bool):
        bad.append(("trusted", "true or false"))
    # A token must not travel where everybody can read it.
    if trusted is True and url.startswith("http:") and host not in LOCAL:
        bad.append(("trusted", "false for an address without TLS: the token would be sent there in "
                    "the clear"))
    return {"kind": kind, "url": url, "trusted": trusted, "xet": bool(row.get("xet"))}, bad


def _proxy(given: Any, wrong: List[Finding]) -> Dict[str, str]:
    found: Dict[str, str] = {}
    if not isinstance(given, dict):
        wrong.append(_bad("proxy", "something else", "a mapping with http, https and no_proxy"))
        return found
    for name in sorted(set(map(str, given)) - {"http", "https", "no_proxy"}):
        wrong.append(_bad("proxy", "the key %s" % _shown(name), "http, https and no_proxy"))
    for name in ("http", "https"):
        if given.get(name):
            # What is wrong with it is told without it: there may be a password in it.
            bad: List[Finding] = []
            url = _url("proxy." + name, given[name], True, bad)
            if bad:
                wrong.append(_bad("proxy." + name, "no address (not shown: it may have a password)",
                                  "http://name:password@proxy.example.org:3128, other characters "
                                  "as %XX"))
            elif url:
                found[name] = url
    hosts = given.get("no_proxy")
    if hosts and not (isinstance(hosts, str) and HOSTS.fullmatch(hosts)):
        wrong.append(_bad("proxy.no_proxy", _shown(hosts), "hosts with commas between them"))
    elif hosts:
        found["no_proxy"] = ",".join(filter(None, re.split("[, ]+", hosts)))
    return found


def shown_hub(hub: Mapping[str, Any]) -> Dict[str, Any]:
    """``{kind, url, trusted}`` of a hub, as it is given to others: Xet is a variable's to say."""
    return {key: hub[key] for key in ("kind", "url", "trusted")}


def host_of(url: str) -> str:
    """The host of an address, without its port; empty where there is none."""
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def without_login(text: str) -> str:
    """A text in which no address has a name and a password."""
    return LOGIN.sub("", text)


def masked(text: str) -> str:
    """A text of settings without names and passwords, to be shown."""
    return re.sub(r"[^\s=\"'/@]+@", "***@", LOGIN.sub("***@", text))


def has_login(value: str) -> bool:
    """Whether a value has one, and is to be kept from everybody else."""
    # A proxy may be written without a scheme; a path is no address.
    return "@" in value and not value.startswith("/")


# What a site's hook exports.

PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy")
TAKEN_URLS = ("HF_ENDPOINT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_PROXY")
TAKEN_PATHS = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
TAKEN_HOSTS = ("no_proxy", "NO_PROXY", "PIP_TRUSTED_HOST")
TAKEN_NUMBERS = ("PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT", "PIP_RETRIES")
TAKEN = (*PROXIES, *(name.upper() for name in PROXIES), *TAKEN_URLS, *TAKEN_PATHS,
         "PIP_TRUSTED_HOST", *TAKEN_NUMBERS)
"""What is taken of a hook. Of pip's variables only those on the way, not those on the place."""

SOCKS = re.compile(r"socks[45][ah]?://[A-Za-z0-9._~:@%\[\]-]+")


def exported(hook: str, variables: Mapping[str, str]) -> Tuple[Dict[str, str], List[Finding]]:
    """What is taken of the variables that a hook exported, and what is wrong with them.

    :param hook: its path.
    :param variables: all that it exported.
    """
    found: Dict[str, str] = {}
    bad: List[str] = []
    for name in TAKEN:
        if not variables.get(name):
            continue
        value = variables[name].strip()
        if not _right(name, value):
            bad.append(name)
        else:
            found[name] = value
    wrong = []
    if bad:
        wrong.append(finding(
            "network-hook-garbage", hook, "it exports what cannot be used as %s (not shown: there "
            "may be a password in it)" % ", ".join(bad),
            "addresses as http://host:port, HF_ENDPOINT without a login (it would be shown), paths "
            "of files, and hosts with commas between them",
            "mend %s, or set the proxy with network_access_proxy" % hook))
    elif not found:
        wrong.append(finding(
            "network-hook-empty", hook, "it exports nothing of %s" % ", ".join(
                ("*_proxy", *TAKEN_URLS, *TAKEN_PATHS)),
            "variables that change the way out", "remove network_access_hook, or have %s export "
            "them (export NAME=value)" % hook, severity="warning"))
    return ({}, wrong) if bad else (found, wrong)


def _right(name: str, value: str) -> bool:
    if name in TAKEN_PATHS:
        return bool(PATH.fullmatch(value))
    if name in TAKEN_HOSTS:
        return bool(HOSTS.fullmatch(value))
    if name in TAKEN_NUMBERS:
        return value.isdigit()
    # What the hub is everybody may see.
    if name == "HF_ENDPOINT" and has_login(value):
        return False
    # A proxy without a scheme is one of HTTP to every program that reads these.
    scheme = value if "://" in value else "http://" + value
    return bool(URL.fullmatch(scheme) and host_of(scheme)) or (
        name.lower().endswith("_proxy") and bool(SOCKS.fullmatch(value)))


# What is chosen.


def hubs_of(wanted: Question, hook: Mapping[str, str]) -> List[Dict[str, Any]]:
    """The hubs to choose from: what is asked for, else what a hook names, else the default."""
    if wanted.hub_asked or "HF_ENDPOINT" not in hook:
        return wanted.hubs
    url = hook["HF_ENDPOINT"].rstrip("/")
    if url == wanted.hubs[0]["url"]:
        return wanted.hubs
    return [{"kind": "huggingface", "url": url, "trusted": False, "xet": False}]


def candidates(wanted: Question, hook: Mapping[str, str]) -> Dict[str, List[str]]:
    """What there is to choose from, addresses by kind; nothing where nothing may go out."""
    if wanted.offline:
        return {}
    return {"hub": [one["url"] for one in hubs_of(wanted, hook)],
            **{kind: urls for kind, urls in wanted.urls.items() if urls}}


def order(urls: Sequence[str], measured: Mapping[str, Measured], before: str = "") -> List[str]:
    """Those that can be used, best first.

    :param urls: in the order of the user.
    :param before: the one that was chosen before: it stays while it is about as good.
    """
    usable = [url for url in urls if measured[url].verdict in USABLE]
    if not usable:
        return []
    cost = {url: _cost(measured[url]) for url in usable}
    ranked = sorted(usable, key=lambda url: (cost[url], urls.index(url)))
    first = ranked[0]
    if before in usable and _alike(cost[before], cost[first], STAYS):
        first = before
    else:
        first = next(url for url in usable if _alike(cost[url], cost[first], ALIKE))
    return [first, *(url for url in ranked if url != first)]


def _cost(one: Measured) -> Tuple[int, float]:
    """What a typical download would take, after how it did at all."""
    rank = USABLE.index(one.verdict)
    if not one.bytes_per_s:
        return rank, one.first_byte_s or 0.0
    return rank, (one.first_byte_s or 0.0) + TYPICAL_BYTES / one.bytes_per_s


def _alike(one: Tuple[int, float], best: Tuple[int, float], factor: float) -> bool:
    # What was not measured says nothing of its speed.
    return one[0] == best[0] and (one[0] == USABLE.index(UNMEASURED)
                                  or one[1] <= best[1] * factor)


def decide(wanted: Question, hook: Mapping[str, str],
           measured: Optional[Mapping[str, Mapping[str, Measured]]],
           before: Mapping[str, Any], sources: Mapping[str, str],
           hooks_there: Sequence[str]) -> Tuple[Dict[str, Any], List[Finding]]:
    """Choose of each kind.

    :param hook: what a site's hook exported.
    :param measured: by kind and address; ``None`` where nothing was asked: the first are taken.
    :param before: the decision before this one; empty for none.
    :param sources: addresses of the distribution in the host's own lists of apt, each with the one
        of HTTP that it stands for.
    :param hooks_there: known hooks that lie on the host and are not used.
    :returns: ``{hub, pip, apt_mirror, apt, registry, hook, reasons, measured}`` as plain data, and
        a finding for each kind of which nothing works. ``apt``: other addresses for those of
        ``sources`` that the mirror stands in for.
    """
    decided: Dict[str, Any] = {"hub": wanted.hubs[0], "pip": "", "apt": {}, "apt_mirror": "",
                               "registry": [], "hook": dict(hook), "reasons": [], "measured": []}
    if wanted.offline:
        decided["hook"] = {}
        decided["reasons"] = ["network_access_offline: nothing was asked, and nothing goes out."]
        return decided, []
    if hook:
        decided["reasons"].append("%s exports %s." % (wanted.hook, ", ".join(sorted(hook))))
    wrong = []
    hubs = {one["url"]: one for one in hubs_of(wanted, hook)}
    decided["hub"] = next(iter(hubs.values()))
    for kind, urls in candidates(wanted, hook).items():
        if measured is None:
            ranked, told = list(urls), "%s %s: the first of the list, nothing was asked." % (
                USES[kind], without_login(urls[0]))
            if kind == "hub" and not wanted.hub_asked and "HF_ENDPOINT" not in hook:
                told = ""
        else:
            found = measured[kind]
            decided["measured"] += [_as_data(kind, url, found[url]) for url in urls]
            ranked = order(urls, found, _chosen(kind, before))
            told = _reason(kind, urls, ranked, found)
        decided["reasons"] += [told] if told else []
        if not ranked:
            asked = kind != "hub" or wanted.hub_asked
            wrong.append(_none(kind, urls, found, asked, wanted, hooks_there))
        elif kind == "hub":
            decided["hub"] = hubs[ranked[0]]
        elif kind == "pip":
            decided["pip"] = ranked[0]
        elif kind == "registry":
            decided["registry"] = ranked
        else:
            decided["apt_mirror"] = ranked[0]
            decided["apt"] = dict(measured["apt"][ranked[0]].serves) if measured is not None else {
                uri: apt_sources.beside(ranked[0], plain, list(sources.values()))
                for uri, plain in sources.items()}
    return decided, wrong


def nothing(wanted: Question) -> Dict[str, Any]:
    """The decision where nothing is set."""
    decided, _ = decide(wanted._replace(offline=True), {}, None, {}, {}, [])
    return {**decided, "reasons": []}


def _chosen(kind: str, before: Mapping[str, Any]) -> str:
    if kind == "hub":
        return str((before.get("hub") or {}).get("url", ""))
    if kind == "registry":
        return str((before.get("registry") or [""])[0])
    return str(before.get("apt_mirror" if kind == "apt" else kind, ""))


def _as_data(kind: str, url: str, one: Measured) -> Dict[str, Any]:
    return {"kind": kind, "url": without_login(url), "verdict": one.verdict, "why": one.why,
            "first_byte_s": one.first_byte_s, "bytes_per_s": one.bytes_per_s}


def speed(one: Measured) -> str:
    """What was measured, in words; empty where nothing was."""
    words = []
    if one.bytes_per_s:
        rate = one.bytes_per_s / 1e6
        words.append(("%.0f MB/s" if rate >= 100 else "%.3g MB/s") % rate)
    if one.first_byte_s is not None:
        words.append("first byte after %.3g s" % one.first_byte_s)
    return ", ".join(words)


def _told(url: str, one: Measured) -> str:
    return "%s: %s" % (without_login(url), "; ".join(filter(None, (
        one.why, speed(one)))) or one.verdict)


def _reason(kind: str, urls: Sequence[str], ranked: Sequence[str],
            found: Mapping[str, Measured]) -> str:
    if not ranked:
        return ""
    first = found[ranked[0]]
    others = [_told(url, found[url]) for url in (*ranked[1:], *(
        url for url in urls if url not in ranked))]
    return "%s %s (%s)%s" % (
        USES[kind], without_login(ranked[0]), "; ".join(filter(None, (first.why, speed(first))))
        or "it answers", ". " + ". ".join(others) + "." if others else ".")


def _none(kind: str, urls: Sequence[str], found: Mapping[str, Measured], asked: bool,
          wanted: Question, hooks_there: Sequence[str]) -> Finding:
    name = PREFIX + VARIABLES[kind]
    remedy = "correct %s; set network_access_proxy or network_access_ca_bundle if the way out " \
        "needs them; network_access_probe: never takes the first as it is, and " \
        "network_access_offline: true stays inside" % name
    if hooks_there and not wanted.hook:
        remedy = "this machine has %s: set network_access_hook: %s. Else %s" % (
            ", ".join(hooks_there), hooks_there[0], remedy)
    return finding(
        "network-no-" + kind, name,
        "no %s can be used. %s" % (CALLED[kind], ". ".join(_told(url, found[url]) for url in urls)),
        "one that answers as a %s within %g s" % (CALLED[kind], wanted.probe_s), remedy,
        severity="error" if asked else "warning")


# What is set.


def environment(wanted: Question, decided: Mapping[str, Any]) -> Dict[str, str]:
    """Every variable that a process which goes out gets, secrets included."""
    if wanted.offline:
        # transformers has no variable of its own: it asks huggingface_hub.
        return {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    found = dict(decided["hook"])
    for name in ("http", "https"):
        if name in wanted.proxy:
            found["%s_proxy" % name] = found["%s_PROXY" % name.upper()] = wanted.proxy[name]
    _no_proxy(found, wanted.proxy.get("no_proxy", ""))
    if wanted.ca_bundle:
        found.update(dict.fromkeys(TAKEN_PATHS, wanted.ca_bundle))
    hub = decided["hub"]
    # A hook's is in what was chosen from, or gave way to what is asked for.
    named = found.pop("HF_ENDPOINT", None) is not None or wanted.hub_asked
    if named and hub["kind"] == "huggingface":
        found["HF_ENDPOINT"] = hub["url"]
        if not hub["xet"]:
            found["HF_HUB_DISABLE_XET"] = "1"
    if decided["pip"]:
        found["PIP_INDEX_URL"] = decided["pip"]
        found.pop("PIP_TRUSTED_HOST", None)
        trusted = _without_tls(decided["pip"])
        if trusted:
            found["PIP_TRUSTED_HOST"] = trusted
    return found


def _no_proxy(found: Dict[str, str], asked: str) -> None:
    proxied = [name for name in found if name.lower().endswith("_proxy")
               and name.lower() != "no_proxy"]
    if not proxied:
        return
    hosts = [one for one in re.split("[, ]+", asked or found.get("no_proxy")
                                     or found.get("NO_PROXY", "")) if one]
    hosts += [one for one in LOCAL if one not in hosts]
    found["no_proxy"] = found["NO_PROXY"] = ",".join(hosts)


def _without_tls(url: str) -> str:
    """The host that pip would take nothing from unless told: one without TLS."""
    parts = urllib.parse.urlsplit(url)
    return parts.netloc.rpartition("@")[2] if parts.scheme == "http" else ""


def public(variables: Mapping[str, str]) -> Dict[str, Optional[str]]:
    """The variables as they may be shown: those with a secret by name alone."""
    return {name: None if has_login(value) else value for name, value in sorted(variables.items())}


def environment_file(variables: Mapping[str, str]) -> str:
    """For the processes of ours; it may hold secrets."""
    return "".join("%s=%s\n" % pair for pair in sorted(variables.items()))


def shell_file(variables: Mapping[str, str], root: str, pip: str) -> str:
    """To be sourced by whoever works on the host; without secrets.

    :param pip: the path of pip's own file, which has the index where that has a secret.
    """
    lines = ["# Written by Firstlight (roles/network_access): . %s/network/env.sh" % root]
    for name, value in sorted(variables.items()):
        if not has_login(value):
            lines.append("export %s='%s'" % (name, value))
        elif name == "PIP_INDEX_URL":
            lines.append("export PIP_CONFIG_FILE='%s'" % pip)
        else:
            lines.append("# %s has a password: it is in %s/network/environment." % (name, root))
    return "\n".join(lines) + "\n"


def pip_file(variables: Mapping[str, str]) -> str:
    """pip's settings; empty where it has none."""
    keys = {"PIP_INDEX_URL": "index-url", "PIP_TRUSTED_HOST": "trusted-host", "PIP_CERT": "cert"}
    lines = ["%s = %s" % (key, variables[name]) for name, key in keys.items() if name in variables]
    return "\n".join(["[global]", *lines]) + "\n" if "PIP_INDEX_URL" in variables else ""


def proxies_of(variables: Mapping[str, str]) -> Dict[str, str]:
    """The proxies by scheme, and ``no_proxy``, of what is set."""
    found = {}
    for name in ("http", "https", "no_proxy"):
        key = name if name == "no_proxy" else name + "_proxy"
        value = variables.get(key) or variables.get(key.upper())
        if value:
            found[name] = value
    return found


def apt_files(variables: Mapping[str, str], ca_bundle: str, sources: str) -> Dict[str, str]:
    """Texts for apt by the end of their names: ``""`` for everybody, ``-proxy`` with secrets.

    :param sources: the folder of our copy of its sources; empty where they stay as they are.
    """
    proxies = proxies_of(variables)
    way = ['Acquire::%s::Proxy "%s";' % (name, _with_scheme(proxies[name]))
           for name in ("http", "https") if name in proxies]
    direct = [host for host in proxies.get("no_proxy", "").split(",")
              if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", host)] if way else []
    way += ['Acquire::%s::Proxy::%s "DIRECT";' % (name, host)
            for name in ("http", "https") for host in direct]
    rest = []
    if ca_bundle:
        rest.append('Acquire::https::CAInfo "%s";' % ca_bundle)
    if sources:
        rest += ['Dir::Etc::SourceList "%s/sources.list";' % sources,
                 'Dir::Etc::SourceParts "%s/sources.list.d";' % sources]
    secret = any(has_login(line) for line in way)
    texts = {"": rest + ([] if secret else way), "-proxy": way if secret else []}
    return {end: "// Written by Firstlight (roles/network_access).\n" + "".join(
        line + "\n" for line in lines) for end, lines in texts.items() if lines}


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else "http://" + proxy


# A block in a file of the system's.


def marks(root: str) -> Tuple[str, str]:
    """The first and the last line of our block."""
    return ("# BEGIN Firstlight network_access %s" % root,
            "# END Firstlight network_access %s" % root)


def block(variables: Mapping[str, str], root: str) -> str:
    """Our block for ``/etc/environment``; without secrets."""
    first, last = marks(root)
    lines = ['%s="%s"' % (name, value) for name, value in sorted(variables.items())
             if not has_login(value)]
    return "\n".join([first, *lines, last]) + "\n"


def split_block(text: str, root: str) -> Tuple[str, str, str]:
    """What is before our block, the block, and what is after it; all is before it without one."""
    first, last = (re.escape(mark) for mark in marks(root))
    found = re.search("^%s$.*?^%s$\n?" % (first, last), text, re.MULTILINE | re.DOTALL)
    if not found:
        return text, "", ""
    return text[:found.start()], found.group(0), text[found.end():]


def with_block(text: str, ours: str, root: str) -> str:
    """A text with our block in the place of the one that it has, else at its end."""
    before, there, after = split_block(text, root)
    if not there and before and not before.endswith("\n"):
        before += "\n"
    return before + ours + after


def without_block(text: str, root: str, newline_was_there: bool) -> str:
    """A text as it was before our block.

    :param newline_was_there: whether its last line had an end of its own.
    """
    before, there, after = split_block(text, root)
    if there and not after and not newline_was_there and before.endswith("\n"):
        before = before[:-1]
    return before + after
