# SPDX-License-Identifier: Apache-2.0
"""What is asked of a way out, chosen and set: for any input, and as a shell and apt read it."""

from __future__ import annotations

import copy
import json
import pathlib
import subprocess

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible.module_utils.firstlight import findings, network_settings
from ansible.module_utils.firstlight.planning import apt_sources, network
from ansible.module_utils.firstlight.planning.network import Measured

REPOSITORY = pathlib.Path(__file__).parents[2]
ENDPOINTS = yaml.safe_load((REPOSITORY / "catalog/network_endpoints.yml").read_text())
DEFAULTS = yaml.safe_load((REPOSITORY / "roles/network_access/defaults/main.yml").read_text())
OFFICIAL = {"kind": "huggingface", "url": "https://huggingface.co", "trusted": True, "xet": True}
ROOT = "/var/lib/firstlight"
LIST = "/etc/apt/sources.list"
PLAIN = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
URLS = st.builds("http{}://{}{}.example.org:{}/{}".format, st.sampled_from(["", "s"]),
                 st.sampled_from(["", "jo:pw@"]), PLAIN, st.integers(1, 65535), PLAIN)
ANYTHING = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=6) | URLS,
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                            st.sampled_from(["url", "kind", "trusted", "http", "no_proxy", "path"]),
                            inner, max_size=3), max_leaves=6)
MEASURED = st.builds(Measured, st.sampled_from(
    [*network.USABLE, "wrong", "refused", "dead"]), st.just("why"),
    st.none() | st.floats(0.001, 5), st.none() | st.floats(1, 1e9))


def asked(**options):
    wanted, wrong = network.question(options, ENDPOINTS)
    assert wrong == []
    return wanted


def decided(wanted, hook=None, measured=None):
    found, wrong = network.decide(wanted, hook or {}, measured, {}, {}, [])
    assert wrong == []
    return found


def hubs(*urls):
    return [{"url": url} for url in urls]


# What is asked.


def test_what_the_role_has_where_nobody_sets_anything_asks_nothing_of_a_host():
    given_ = {name[len(network.PREFIX):]: value for name, value in DEFAULTS.items()}
    for name in ("root", "decided", "offline"):
        given_.pop(name)
    assert {name: network.OPTIONS[name] for name in given_} == given_
    told = network.unasked(given_, ENDPOINTS)
    assert (told["asked"], told["findings"]) == (False, [])
    assert told["decision"]["hub"] == network.shown_hub(OFFICIAL)
    assert set(told["decision"]["hub"]) == {"kind", "url", "trusted"}
    assert told["decision"]["environment"] == {}


@pytest.mark.parametrize("options", [
    {"offline": True}, {"hub_endpoints": hubs("https://hf-mirror.com")}, {"probe": "always"},
    {"hub_endpoints": [{"url": "https://huggingface.co", "trusted": False}]},
    {"pip_indexes": ["https://index.example.org/simple"]}, {"proxy": {"no_proxy": "example.org"}},
    {"registry_mirrors": ["https://mirror.example.org"]}, {"hook": "/etc/network_turbo"},
    {"apt_mirrors": ["https://mirror.example.org/debian"]}, {"ca_bundle": "/etc/ca.pem"}])
def test_what_differs_from_that_is_asked_of_a_host(options):
    assert network.unasked(options, ENDPOINTS)["asked"] is True


def test_a_hub_is_what_is_known_of_its_host_unless_the_user_says_otherwise():
    wanted = asked(hub_endpoints=[
        {"url": "https://hf-mirror.com/"}, {"url": "https://huggingface.co"},
        {"url": "https://www.modelscope.cn"},
        {"url": "https://mirror.example.org", "trusted": True},
        {"url": "https://other.example.org", "kind": "modelscope"},
        {"url": "https://hf-mirror.com"}])
    assert [tuple(one.values()) for one in wanted.hubs] == [
        ("huggingface", "https://hf-mirror.com", False, False),
        ("huggingface", "https://huggingface.co", True, True),
        ("modelscope", "https://www.modelscope.cn", False, False),
        ("huggingface", "https://mirror.example.org", True, False),
        ("modelscope", "https://other.example.org", False, False)]


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*network.OPTIONS, "other"]), ANYTHING, max_size=6))
def test_any_question_is_judged_and_no_password_is_told(options):
    before = repr(options)
    wanted, wrong = network.question(options, ENDPOINTS)
    assert repr(options) == before
    assert repr(network.question(copy.deepcopy(options), ENDPOINTS)) == repr((wanted, wrong))
    assert wanted.hubs
    for one in wrong:
        assert (one["id"], one["severity"]) == ("network-bad-input", "error")
        assert "jo:pw@" not in findings.text([one])
    if not wrong:
        found, _ = network.decide(wanted, {}, None, {}, {}, [])
        variables = network.environment(wanted, found)
        assert "pw@" not in json.dumps(network.public(variables))
        assert network_settings.parse(network.environment_file(variables)) == variables


# What is chosen.


@given(st.lists(st.tuples(PLAIN, MEASURED), min_size=1, max_size=6, unique_by=lambda one: one[0]),
       st.data())
def test_all_that_can_be_used_are_ranked_and_no_others(pairs, data):
    urls, measured = [url for url, _ in pairs], dict(pairs)
    before = data.draw(st.sampled_from(["", *urls]))
    ranked = network.order(urls, measured, before)
    usable = {url for url in urls if measured[url].verdict in network.USABLE}
    assert set(ranked) == usable
    assert len(ranked) == len(usable)
    ranks = [network.USABLE.index(measured[url].verdict) for url in ranked]
    assert ranks == sorted(ranks)
    # Who was chosen is chosen again: a second look changes nothing.
    assert ranked == [] or network.order(urls, measured, ranked[0])[0] == ranked[0]


def test_among_those_that_are_about_as_quick_the_order_of_the_user_decides():
    quick, close, slow = (Measured("ok", "", 0.1, speed) for speed in (10e6, 9e6, 2e6))
    measured = {"slow": slow, "close": close, "quick": quick}
    assert network.order(["slow", "close", "quick"], measured) == ["close", "quick", "slow"]
    assert network.order(["quick", "close", "slow"], measured)[0] == "quick"
    assert network.order(["quick", "close", "slow"], measured, "close")[0] == "close"
    assert network.order(["quick", "close", "slow"], measured, "slow")[0] == "quick"
    late = dict(measured, quick=quick._replace(first_byte_s=60.0))
    assert network.order(["quick", "close"], late)[0] == "close"


def test_a_mirror_goes_without_xet_and_a_usual_hub_with_it():
    mirror = asked(hub_endpoints=hubs("https://hf-mirror.com"))
    assert network.environment(mirror, decided(mirror)) == {
        "HF_ENDPOINT": "https://hf-mirror.com", "HF_HUB_DISABLE_XET": "1"}
    usual = asked(hub_endpoints=hubs("https://huggingface.co", "https://hf-mirror.com"))
    assert network.environment(usual, decided(usual)) == {"HF_ENDPOINT": "https://huggingface.co"}
    scope = asked(hub_endpoints=hubs("https://modelscope.cn"))
    assert network.environment(scope, decided(scope, {"HF_ENDPOINT": "http://x.example.org"})) == {}


def test_none_that_works_stops_where_it_is_asked_for_and_is_told_where_it_is_not():
    dead = Measured("dead", "no answer within 5 s")
    usual = asked(probe="always")
    found, wrong = network.decide(
        usual, {}, {"hub": {OFFICIAL["url"]: dead}}, {}, {}, ["/etc/network_turbo"])
    assert (wrong[0]["severity"], found["hub"]) == ("warning", OFFICIAL)
    assert "network_access_hook: /etc/network_turbo" in wrong[0]["remedy"]
    two = asked(hub_endpoints=hubs("https://a.example.org", "https://b.example.org"),
                pip_indexes=["https://jo:pw@index.example.org/simple"])
    measured = {"hub": dict.fromkeys(["https://a.example.org", "https://b.example.org"], dead),
                "pip": {"https://jo:pw@index.example.org/simple": dead}}
    _, wrong = network.decide(two, {}, measured, {}, {}, [])
    assert [(one["id"], one["severity"]) for one in wrong] == [
        ("network-no-hub", "error"), ("network-no-pip", "error")]
    assert "https://a.example.org: no answer" in wrong[0]["found"]
    assert "https://b.example.org: no answer" in wrong[0]["found"]
    assert "jo:pw" not in findings.text(wrong)


# What a hook exports.


@given(st.dictionaries(st.sampled_from(["PATH", "LD_PRELOAD", "PIP_TARGET", *network.TAKEN]),
                       st.text(max_size=12) | URLS | st.just("/etc/ssl/ca.pem"), max_size=6))
def test_of_a_hook_known_variables_alone_are_taken_and_no_value_needs_quotes(exports):
    taken, wrong = network.exported("/etc/turbo", exports)
    assert set(taken) <= set(network.TAKEN)
    assert not (taken and wrong)
    for value in taken.values():
        assert not set(value) & set("'\"\\`$\n#")
    for one in wrong:
        assert "jo:pw" not in findings.text([one])
        assert one["id"] in ("network-hook-garbage", "network-hook-empty")


@pytest.mark.parametrize(("name", "value", "right"), [
    ("http_proxy", "http://10.0.0.1:3128", True), ("https_proxy", "10.0.0.1:3128", True),
    ("ALL_PROXY", "socks5h://127.0.0.1:1080", True), ("PIP_INDEX_URL", "socks5://x:1", False),
    ("http_proxy", "$(id)", False), ("no_proxy", "localhost,127.0.0.1, .example.org", True),
    ("SSL_CERT_FILE", "ca.pem", False), ("REQUESTS_CA_BUNDLE", "/etc/ssl/ca.pem", True),
    ("PIP_TIMEOUT", "x", False), ("PIP_RETRIES", "3", True), ("HF_ENDPOINT", "http://[::1", False),
    ("HF_ENDPOINT", "http://jo:pw@x.example.org", False), ("HF_ENDPOINT", "jo:pw@x", False),
    ("HF_ENDPOINT", "https://x.example.org", True)])
def test_a_value_is_of_its_kind(name, value, right):
    taken, wrong = network.exported("/etc/turbo", {name: value})
    assert (taken == {name: value}) is right
    assert bool(wrong) is not right


def test_what_is_asked_for_goes_before_what_a_hook_says():
    hook = {"http_proxy": "http://10.0.0.1:1", "HTTP_PROXY": "http://10.0.0.1:1",
            "SSL_CERT_FILE": "/hook.pem", "PIP_INDEX_URL": "http://10.0.0.1/simple",
            "PIP_TRUSTED_HOST": "10.0.0.1", "HF_ENDPOINT": "http://10.0.0.1"}
    wanted = asked(proxy={"http": "http://10.0.0.2:1", "no_proxy": "a.example.org"},
                   ca_bundle="/mine.pem", pip_indexes=["https://index.example.org/simple"],
                   hub_endpoints=hubs("https://mirror.example.org"))
    variables = network.environment(wanted, decided(wanted, hook))
    assert "10.0.0.1" not in json.dumps(variables).replace("127.0.0.1", "")
    assert variables["no_proxy"] == "a.example.org,localhost,127.0.0.1,::1"
    assert variables["SSL_CERT_FILE"] == "/mine.pem"
    assert "PIP_TRUSTED_HOST" not in variables
    alone = asked(hook="/etc/turbo")
    found = decided(alone, hook)
    assert found["hub"] == {"kind": "huggingface", "url": "http://10.0.0.1", "trusted": False,
                            "xet": False}
    assert network.environment(alone, found)["PIP_INDEX_URL"] == "http://10.0.0.1/simple"


# What is written.


VALUES = st.text(st.sampled_from("abcXYZ019._~:/@!&()*+,;=%[]-"), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(network.TAKEN), VALUES, max_size=5))
def test_a_shell_that_sources_it_has_every_variable_but_the_secrets(variables):
    text = network.shell_file(variables, ROOT, ROOT + "/network/pip.conf")
    said = subprocess.run(["env", "-i", "sh", "-c", text + "exec env -0"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    there = dict(one.partition("=")[::2] for one in said.split("\0") if one)
    public = {name: value for name, value in network.public(variables).items() if value is not None}
    assert {name: there.get(name) for name in public} == public
    secrets = set(variables) - set(public)
    assert not secrets & set(there)
    assert ("PIP_CONFIG_FILE" in there) is ("PIP_INDEX_URL" in secrets)
    assert all(variables[name] not in text for name in secrets if len(variables[name]) > 12)


LINES = st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n"), max_size=8),
                 max_size=4).map("\n".join)


@given(LINES, st.booleans(), LINES, st.dictionaries(st.sampled_from(network.TAKEN), VALUES))
def test_a_block_goes_without_a_trace(before, ended, after, variables):
    text = before + ("\n" if ended else "")
    newline = not text or text.endswith("\n")
    block = network.block(variables, ROOT)
    there = network.with_block(text, block, ROOT)
    assert network.with_block(there, block, ROOT) == there
    assert network.without_block(there, ROOT, newline) == text
    # What others write behind it stays.
    assert network.without_block(there + after, ROOT, True).endswith(after)
    other = network.with_block(there, network.block({}, "/other"), "/other")
    assert network.without_block(other, "/other", True) == there
    assert network.without_block("", ROOT, True) == ""


def test_apt_gets_proxies_apart_where_they_have_a_password():
    wanted = asked(proxy={"http": "http://10.0.0.1:3128", "https": "http://jo:pw@10.0.0.1:3128",
                          "no_proxy": "a.example.org,*.example.net"}, ca_bundle="/etc/ca.pem")
    variables = network.environment(wanted, decided(wanted))
    texts = network.apt_files(variables, "/etc/ca.pem", ROOT + "/network/apt")
    assert set(texts) == {"", "-proxy"}
    assert "jo:pw" not in texts[""]
    assert 'Acquire::https::CAInfo "/etc/ca.pem";' in texts[""]
    assert 'Dir::Etc::SourceParts "%s/network/apt/sources.list.d";' % ROOT in texts[""]
    assert 'Acquire::https::Proxy "http://jo:pw@10.0.0.1:3128";' in texts["-proxy"]
    assert 'Acquire::http::Proxy::a.example.org "DIRECT";' in texts["-proxy"]
    assert "*" not in texts["-proxy"]
    assert network.apt_files({}, "", "") == {}
    assert list(network.apt_files({"http_proxy": "10.0.0.1:3128"}, "", "")) == [""]


@given(st.sampled_from(["http_proxy=", '"', " ", ""]), URLS)
def test_what_is_shown_has_no_login(before, url):
    shown = network.masked("%s%s rest" % (before, url))
    assert "pw@" not in shown
    assert shown.endswith(url.rpartition("@")[2].partition("//")[2] + " rest")


# apt's lists.


SOURCES = """Types: deb deb-src
URIs: http://one.example.org/debian/
# http://commented.example.org
 http://two.example.org/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

# Another's, of the same name.
Types: deb
URIs: http://docker.example.org/linux/debian
Suites: bookworm
Components: stable

Types: deb
URIs: http://vendor.example.org/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg

Enabled: no
Types: deb
URIs: http://off.example.org/debian
Suites: bookworm
Components: main
"""
LINES_OF_APT = """# deb http://commented.example.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
http://one.example.org/debian bookworm main # why
deb-src http://one.example.org/debian bookworm-updates main
deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example.org bookworm main
deb http://security.example.org/debian-security bookworm-security/updates main
deb http://security.example.org/debian-security bookworm-security main contrib
deb http://dev.example.org/apt bookworm-pgdg main
deb cdrom:[Debian]/ bookworm main
deb http://flat.example.org/ ./
"""


def test_addresses_of_the_distribution_are_told_from_those_of_others():
    assert apt_sources.of_distribution({"a.sources": SOURCES}, "debian", "bookworm") == {
        "http://one.example.org/debian/": ("bookworm", "bookworm-updates"),
        "http://two.example.org/debian": ("bookworm", "bookworm-updates")}
    found = apt_sources.of_distribution({LIST: LINES_OF_APT}, "debian", "bookworm")
    assert found["http://one.example.org/debian"] == ("bookworm", "bookworm-updates")
    assert found["http://security.example.org/debian-security"] == ("bookworm-security",)
    assert set(found) - {"cdrom:[Debian]/"} == {
        "http://one.example.org/debian", "http://security.example.org/debian-security"}
    assert apt_sources.of_distribution({LIST: LINES_OF_APT}, "debian", "") == {}
    assert apt_sources.of_distribution({LIST: LINES_OF_APT}, "debian", "trixie") == {}


@pytest.mark.parametrize(("name", "text", "old"), [
    ("a.sources", SOURCES, "http://two.example.org/debian"),
    ("a.list", LINES_OF_APT, "http://one.example.org/debian")])
def test_an_address_is_replaced_and_nothing_else(name, text, old):
    new = apt_sources.with_others(name, text, {old: "https://mirror.example.org/debian"})
    assert new != text
    assert new.replace("https://mirror.example.org/debian", old) == text
    assert apt_sources.with_others(name, text, {}) == text
    only = apt_sources.only(name, new, ["https://mirror.example.org/debian"])
    assert {one.uri for one in apt_sources.sources(name, only)} == {
        "https://mirror.example.org/debian"}
    assert "example.org/linux" not in only


@settings(max_examples=200)
@given(st.sampled_from(["a.list", "a.sources"]), st.lists(st.sampled_from(
    [*SOURCES.splitlines(True), *LINES_OF_APT.splitlines(True), "\n", "x", ":\n", " \t"]),
    max_size=12).map("".join) | st.text(max_size=60))
def test_any_list_can_be_read_and_stays_where_nothing_is_replaced(name, text):
    found = apt_sources.sources(name, text)
    assert apt_sources.with_others(name, text, {"http://none.example.org": "x"}) == text
    assert apt_sources.only(name, text, ["http://none.example.org"]) == ""
    others = {one.uri: "http://mirror.example.org" for one in found}
    again = apt_sources.sources(name, apt_sources.with_others(name, text, others))
    assert {one.uri for one in again} <= {"http://mirror.example.org"}
    assert [one.suites for one in again] == [one.suites for one in found]


@pytest.mark.parametrize(("mirror", "uri", "there"), [
    ("https://m.example.org/debian", "http://d.example.org/debian/", "/debian"),
    ("https://m.example.org/debian", "http://d.example.org/debian-security", "/debian-security"),
    ("https://m.example.org", "http://d.example.org/debian-security/", "/debian-security"),
    ("https://m.example.org/pub/debian", "http://d.example.org/debian", "/pub/debian")])
def test_a_mirror_keeps_the_paths_of_the_distribution(mirror, uri, there):
    uris = ["http://d.example.org/debian", "http://d.example.org/debian-security/"]
    assert apt_sources.beside(mirror, uri, uris) == "https://m.example.org" + there


@given(st.text(max_size=200))
def test_any_answer_is_an_inrelease_or_is_not(text):
    assert apt_sources.release(text) is None
    head = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n"
    found = apt_sources.release(head + "Codename: bookworm\nOrigin: Debian\n" + text)
    assert found is not None
    assert apt_sources.not_ours(None, "debian", "bookworm")
    assert apt_sources.not_ours(found, "debian", "trixie")
    assert apt_sources.not_ours(found, "ubuntu", "bookworm")
