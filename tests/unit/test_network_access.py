# SPDX-License-Identifier: Apache-2.0
"""The way out of a host: servers on loopback, a real apt, a real shell, a system of its own."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import ssl
import stat
import subprocess

import network_access
import network_servers as rig
import pytest
import yaml

from ansible.module_utils.firstlight import network_settings, site_hook, transaction

REPOSITORY = pathlib.Path(__file__).parents[2]
ENDPOINTS, HOOKS = (yaml.safe_load((REPOSITORY / "catalog" / name).read_text())
                    for name in ("network_endpoints.yml", "network_hooks.yml"))
SECONDS = 4
SECRET = "hunter2"
OS_RELEASE = 'ID=debian\nVERSION_CODENAME=bookworm\n'
SOURCES = """# The distribution's.
Types: deb
URIs: %(old)s/debian
Suites: bookworm bookworm-updates
Components: main
Enabled: yes

Types: deb
URIs: %(old)s/debian-security
Suites: bookworm-security
Components: main
"""
OTHERS = "deb [trusted=yes] %(others)s bookworm stable\n"


@pytest.fixture
def net(monkeypatch):
    for name in [*os.environ]:
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.delenv(name)
    with rig.network() as servers:
        yield servers


class Host:
    """A system of its own, and the module on it as root."""

    def __init__(self, folder, run_module):
        self.system, self.root, self._run = folder / "system", folder / "root", run_module
        (self.system / "etc").mkdir(parents=True)
        # As distributions have it.
        self.write("/usr/lib/os-release", OS_RELEASE)
        self.path("/etc/os-release").symlink_to("../usr/lib/os-release")

    def path(self, name):
        return self.system / name.lstrip("/")

    def write(self, name, text, mode=0o644):
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def run(self, **options):
        given = dict({"probe_s": SECONDS, "endpoints": ENDPOINTS, "hooks": HOOKS}, **options)
        return self._run(network_access.main, root=str(self.root), **given)

    def set(self, **options):
        """Set, and hold that the next run with the same question changes nothing."""
        told = self.run(check=True, diff=True, **options)
        assert told.get("failed") is None, told["msg"]
        result = self.run(**options)
        assert result["changed"] is told["changed"] is True
        before = self.disk()
        again = self.run(diff=True, **options)
        assert (again["changed"], again["actions"], again["probed"]) == (False, [], False), again
        assert again["hub"] == result["hub"]
        assert self.disk() == before
        return result

    def disk(self):
        found = {}
        for folder in (self.system, self.root):
            for path in sorted(folder.rglob("*")):
                if path.is_symlink():
                    found[str(path)] = os.readlink(path)
                elif path.is_file() and "/journal/" not in str(path):
                    found[str(path)] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        return found

    def system_files(self):
        return {path: one for path, one in self.disk().items() if path.startswith(str(self.system))
                and "/var/" not in path}

    def network(self, name):
        return self.root / "network" / name

    def variables(self):
        return network_settings.read(str(self.root))


@pytest.fixture
def host(tmp_path, run_module, monkeypatch):
    made = Host(tmp_path, run_module)
    monkeypatch.setattr(network_access, "SYSTEM_ROOT", str(made.system))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return made


def hubs(*urls):
    return [{"url": url} for url in urls]


def verdicts(result):
    return {one["url"]: one["verdict"] for one in result["measured"]}


def reason(result):
    return " ".join(result["reasons"])


# Candidates.


def test_the_quickest_hub_is_chosen_and_what_is_wrong_with_each_other_is_told(host, net):
    quick, slow = net.serve(rig.hub()), net.serve(rig.hub(pace_s=0.2))
    wall, down = net.serve(rig.portal), net.serve(rig.status(503))
    private = net.serve(rig.status(404, X_Error_Code="RepoNotFound"))
    dead, silent = net.nobody(), net.silent()
    urls = [dead, wall.url, slow.url, silent, down.url, private.url, quick.url]
    result = host.set(hub_endpoints=hubs(*urls))
    assert result["hub"] == {"kind": "huggingface", "url": quick.url, "trusted": False}
    assert verdicts(result) == {
        dead: "dead", wall.url: "wrong", slow.url: "slow", silent: "dead", down.url: "refused",
        private.url: "unmeasured", quick.url: "ok"}
    measured = {one["url"]: one for one in result["measured"]}
    assert measured[quick.url]["bytes_per_s"] > measured[slow.url]["bytes_per_s"] > 0
    assert measured[quick.url]["first_byte_s"] < SECONDS
    said = reason(result)
    for words in ("%s: it takes no connection" % dead, "X-Repo-Commit", "text/html",
                  "%s: no answer within %g s" % (silent, SECONDS), "HTTP 503", "RepoNotFound",
                  "not done within %g s" % SECONDS, "MB/s"):
        assert words in said
    assert host.variables() == {"HF_ENDPOINT": quick.url, "HF_HUB_DISABLE_XET": "1"}
    assert result["environment"] == host.variables()


def test_no_more_than_the_begin_of_a_file_is_read(host, net):
    server = net.serve(rig.hub(body=b"x" * (12 * 2**20)))
    result = host.set(hub_endpoints=hubs(server.url),
                      probe_model={"repo_id": "org/small", "path": "a/b.gguf"})
    path, headers = server.requests[0]
    assert path == "/org/small/resolve/main/a/b.gguf"
    assert headers["Range"] == "bytes=0-4194303"
    assert "Authorization" not in headers
    assert verdicts(result) == {server.url: "ok"}


def test_a_mirror_that_leads_elsewhere_is_told_by_where_it_leads(host, net):
    there = net.nobody()

    def away(handler):
        rig.send(handler, 302, X_Repo_Commit=rig.COMMIT, Location=there + "/large")
    mirror = net.serve(away)
    result = host.run(hub_endpoints=hubs(mirror.url))
    assert result["failed"] is True
    assert "leads to %s" % there.partition("//")[2] in result["msg"]
    for address, words in (("file:///etc/passwd", "is not a hub"),
                           ("ftp://127.0.0.1/x", "something else than HTTP")):
        other = net.serve(lambda handler, to=address: rig.send(handler, 302, Location=to))
        assert words in host.run(hub_endpoints=hubs(other.url))["msg"]


def test_modelscope_is_known_by_its_lists_and_no_hub_of_the_other_kind(host, net):
    scope, wall = net.serve(rig.modelscope()), net.serve(rig.portal)
    other = net.serve(rig.hub())
    result = host.set(hub_endpoints=[
        {"url": wall.url, "kind": "modelscope"}, {"url": other.url, "kind": "modelscope"},
        {"url": scope.url + "/", "kind": "modelscope"}])
    assert result["hub"] == {"kind": "modelscope", "url": scope.url, "trusted": False}
    assert verdicts(result) == {wall.url: "wrong", other.url: "wrong", scope.url: "ok"}
    assert host.variables() == {}, "no library of Hugging Face's can ask it"


def test_one_that_answers_and_gives_nothing_is_told_from_one_that_is_silent(host, net):
    def stuck(handler):
        handler.send_response(206)
        handler.send_header("X-Repo-Commit", rig.COMMIT)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.flush()
        handler.rfile.read(1)
    result = host.run(hub_endpoints=hubs(net.serve(stuck).url), probe_s=1)
    assert "it answers, and not enough of it came within 1 s" in result["msg"]


def test_words_of_a_server_move_no_cursor(host, net):
    evil = net.serve(rig.status(404, X_Error_Code="\x1b[2JGone"))
    good = net.serve(rig.hub())
    result = host.run(hub_endpoints=hubs(good.url, evil.url))
    assert "\\x1b[2JGone" in reason(result)
    assert "\x1b" not in reason(result)


def test_none_that_works_is_one_finding_that_lists_all_and_nothing_is_written(host, net):
    dead, wall = net.nobody(), net.serve(rig.portal)
    host.write("/etc/network_turbo", "export http_proxy=http://127.0.0.1:9\n")
    before = host.disk()
    result = host.run(hub_endpoints=hubs(dead, wall.url))
    assert result["failed"] is True
    assert [one["id"] for one in result["findings"]] == ["network-no-hub"]
    for words in (dead, wall.url, "X-Repo-Commit", "network_access_probe: never",
                  "network_access_hook: /etc/network_turbo"):
        assert words in result["msg"]
    assert host.disk() == before


def test_an_index_is_known_by_its_page_of_pip_and_measured_by_a_wheel(host, net):
    good, wall = net.serve(rig.index()), net.serve(rig.portal)
    broken = net.serve(rig.index(folder=net.nobody() + "/files"))
    result = host.set(pip_indexes=[wall.url + "/simple", broken.url + "/simple",
                                   good.url + "/simple"], probe="changed",
                      hub_endpoints=hubs(net.serve(rig.hub()).url))
    assert host.variables()["PIP_INDEX_URL"] == good.url + "/simple"
    # Without TLS pip takes it only when it is told to.
    assert host.variables()["PIP_TRUSTED_HOST"] == "127.0.0.1:%d" % good.port
    assert "page of wheels of pip" in reason(result)
    assert verdicts(result)[broken.url + "/simple"] == "dead"
    assert host.network("pip.conf").read_text() == (
        "[global]\nindex-url = %s/simple\ntrusted-host = 127.0.0.1:%d\n" % (good.url, good.port))


def test_registries_that_answer_are_given_in_their_order(host, net):
    first, second = net.serve(rig.registry()), net.serve(rig.registry(200))
    wall = net.serve(rig.portal)
    result = host.set(registry_mirrors=[wall.url, first.url, second.url],
                      hub_endpoints=hubs(net.serve(rig.hub()).url))
    assert sorted(result["registry_mirrors"]) == sorted([first.url, second.url])
    assert "/v2/ is not known" in reason(result)


def test_a_hub_that_nobody_asked_for_may_be_out_of_reach(host, net, monkeypatch):
    """Of the usual one it is told; it is asked again the next time."""
    proxy = net.nobody()
    result = host.run(proxy={"https": proxy})
    assert result["changed"] is True
    assert [one["severity"] for one in result["findings"]] == ["warning"]
    assert result["hub"]["url"] == "https://huggingface.co"
    again = host.run(proxy={"https": proxy})
    assert (again["changed"], again["probed"]) == (False, True)


# When candidates are asked.


def test_a_question_is_asked_once(host, net):
    one, two = net.serve(rig.hub()), net.serve(rig.hub())
    host.set(hub_endpoints=hubs(one.url, two.url))
    asked = len(one.requests)
    assert host.run(hub_endpoints=hubs(one.url, two.url))["probed"] is False
    assert len(one.requests) == asked
    assert host.run(hub_endpoints=hubs(two.url, one.url))["probed"] is True, "it is another"


def test_asked_at_each_run_the_same_choice_is_no_change(host, net):
    one, two = net.serve(rig.hub()), net.serve(rig.hub(pace_s=0.2))
    first = host.run(hub_endpoints=hubs(one.url, two.url), probe="always")
    before = host.disk()
    again = host.run(hub_endpoints=hubs(one.url, two.url), probe="always")
    assert (again["changed"], again["probed"]) == (False, True)
    assert again["hub"] == first["hub"]
    assert host.disk() == before


def test_asked_never_the_first_is_taken_and_asked_later_it_is_found_out(host, net):
    dead, good = net.nobody(), net.serve(rig.hub())
    result = host.set(hub_endpoints=hubs(dead, good.url), probe="never")
    assert (result["hub"]["url"], result["measured"]) == (dead, [])
    assert good.requests == []
    later = host.run(hub_endpoints=hubs(dead, good.url))
    assert (later["probed"], later["hub"]["url"]) == (True, good.url)


def test_offline_nothing_is_asked_and_nothing_but_that_is_set(host, net):
    hub, pip = net.serve(rig.hub()), net.serve(rig.index())
    host.write("/etc/apt/apt.conf.d/50other", "")
    options = {"hub_endpoints": hubs(hub.url), "pip_indexes": [pip.url + "/simple"],
               "proxy": {"http": "http://127.0.0.1:9"}, "hook": "/nowhere"}
    result = host.set(offline=True, **options)
    assert (result["offline"], result["probed"], result["measured"]) == (True, False, [])
    assert hub.requests == pip.requests == []
    assert host.variables() == {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    assert not host.path("/etc/apt/apt.conf.d/95firstlight").exists()
    said = subprocess.run(
        ["python3", "-c", "import json, os, sys; from huggingface_hub import constants\n"
         "print(json.dumps([constants.HF_HUB_OFFLINE, constants.is_offline_mode()]))"],
        env={**os.environ, **host.variables()}, stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(said) == [True, True]


# Secrets.


def test_a_password_is_in_files_of_their_owner_alone(host, net, capfd):
    hub = net.serve(rig.hub())
    login = "jo:" + SECRET
    way = net.serve(rig.proxy({"hub.example.org": hub.url}, login))
    index = net.serve(rig.index(login=login))
    proxy = "http://%s@127.0.0.1:%d" % (login, way.port)
    options = {"hub_endpoints": hubs("http://hub.example.org"), "proxy": {"http": proxy},
               "pip_indexes": ["http://%s@127.0.0.1:%d/simple" % (login, index.port)]}
    told = host.run(check=True, diff=True, **options)
    host.write("/etc/apt/apt.conf.d/50other", "")
    result = host.run(diff=True, **options)
    assert verdicts(result) == {"http://hub.example.org": "ok",
                                "http://127.0.0.1:%d/simple" % index.port: "ok"}
    assert SECRET not in json.dumps([told, result])
    assert host.variables()["http_proxy"] == host.variables()["HTTP_PROXY"] == proxy
    assert host.variables()["no_proxy"] == "localhost,127.0.0.1,::1"
    assert result["environment"]["http_proxy"] is None
    assert result["environment"]["PIP_INDEX_URL"] is None
    open_to_all = [path for path, one in host.disk().items()
                   if not isinstance(one, str) and SECRET.encode() in one[0] and one[1] != 0o600]
    assert open_to_all == []
    conf = host.path("/etc/apt/apt.conf.d/95firstlight-proxy")
    assert 'Acquire::http::Proxy "%s";' % proxy in conf.read_text()
    assert not host.path("/etc/apt/apt.conf.d/95firstlight").exists()
    sourced = subprocess.run(
        ["sh", "-c", '. "$1"; echo "${http_proxy-none} $PIP_CONFIG_FILE"', "sh",
         str(host.network("env.sh"))], stdout=subprocess.PIPE, text=True, check=True, env={}).stdout
    assert sourced.split() == ["none", str(host.network("pip.conf"))]

    other = "http://jo:other@127.0.0.1:%d" % way.port
    failed = host.run(**{**options, "proxy": {"http": other}})
    assert failed["failed"] is True, "another password is another question"
    assert "HTTP 407" in failed["msg"]
    assert "other@" not in json.dumps(failed)


@pytest.mark.parametrize(("options", "words"), [
    ({"hub_endpoints": [{"url": "https://jo:hunter2@hub.example.org"}]}, "with a login in it"),
    ({"hub_endpoints": [{"url": "http://hub.example.org", "trusted": True}]}, "in the clear"),
    ({"hub_endpoints": [{"url": "ftp://hub.example.org"}]}, "https://mirror.example.org"),
    ({"proxy": {"http": "http://jo:hunter2 @proxy.example.org"}}, "not shown"),
    ({"proxy": {"no_proxy": "a;b"}}, "commas"),
    ({"pip_indexes": ["https://jo:hunter2@index.example.org/'"]}, "pip_indexes[0]"),
    ({"registry_mirrors": ["https://mirror.example.org/path"]}, "without a path"),
    ({"apt_mirrors": ["https://mirror.example.org/$(id)"]}, "apt_mirrors[0]"),
    ({"hook": "turbo.sh"}, "network_access_hook"),
    ({"probe_s": 0, "offline": True}, "more than 0"),
    ({"probe_model": {"repo_id": "gpt2", "path": "../x"}, "offline": True}, "org/name"),
])
def test_what_is_wrong_with_a_question_is_told_before_anything_is_asked(host, options, words):
    result = host.run(**options)
    assert result["failed"] is True
    assert words in result["msg"]
    assert {one["id"] for one in result["findings"]} == {"network-bad-input"}
    assert SECRET not in json.dumps(result)
    assert not host.root.exists()


# Certificates.


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authority")
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
         str(folder / "key.pem"), "-out", str(folder / "ca.pem")],
        check=True, stderr=subprocess.DEVNULL)
    return folder


def test_a_bundle_of_certificates_is_what_servers_are_known_by(host, net, authority):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority / "ca.pem", authority / "key.pem")
    hub = net.serve(rig.hub(), tls=tls)
    failed = host.run(hub_endpoints=hubs(hub.url))
    assert "its certificate is not trusted" in failed["msg"]
    host.write("/etc/apt/apt.conf.d/50other", "")
    bundle = str(authority / "ca.pem")
    host.set(hub_endpoints=hubs(hub.url), ca_bundle=bundle)
    assert {host.variables()[name] for name in (
        "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")} == {bundle}
    assert 'Acquire::https::CAInfo "%s";' % bundle in host.path(
        "/etc/apt/apt.conf.d/95firstlight").read_text()


@pytest.mark.parametrize(("text", "words"), [
    (None, "no such file"), ("", "cannot be used"), ("-----BEGIN CERTIFICATE-----\nno\n", "cannot"),
    ("-----BEGIN PRIVATE KEY-----\n", "private key")])
def test_what_is_no_bundle_is_a_finding(host, tmp_path, text, words):
    path = tmp_path / "bundle.pem"
    if text is not None:
        path.write_text(text)
    result = host.run(ca_bundle=str(path), probe="never")
    assert [one["id"] for one in result["findings"]] == ["network-ca-bundle"]
    assert words in result["msg"]
    assert not host.root.exists()


# A site's hook.


@pytest.fixture
def hook(tmp_path):
    def written(text):
        path = tmp_path / "turbo"
        path.write_text(text)
        return str(path)

    return written


def test_what_a_hook_exports_is_taken_with_where_it_is_from(host, net, hook):
    hub = net.serve(rig.hub())
    way = net.serve(rig.proxy({"hub.example.org": hub.url}))
    path = hook("echo welcome\nexport http_proxy=%s; export PATH=/evil PIP_TARGET=/evil\n"
                "export HF_ENDPOINT=http://hub.example.org LD_PRELOAD=/evil.so\n" % way.url)
    checked = host.run(hook=path, check=True)
    assert "not sourced in check mode" in reason(checked)
    result = host.run(hook=path)
    assert result["hub"] == {"kind": "huggingface", "url": "http://hub.example.org",
                             "trusted": False}
    assert "%s exports HF_ENDPOINT, http_proxy." % path in result["reasons"]
    assert host.variables() == {
        "HF_ENDPOINT": "http://hub.example.org", "HF_HUB_DISABLE_XET": "1", "http_proxy": way.url,
        "no_proxy": "localhost,127.0.0.1,::1", "NO_PROXY": "localhost,127.0.0.1,::1"}
    assert host.run(hook=path)["changed"] is False
    hook("export http_proxy=%s HF_ENDPOINT=http://hub.example.org  # mended\n" % way.url)
    assert host.run(hook=path)["probed"] is True, "another script is another question"


def test_a_hook_that_was_asked_for_gives_way_to_what_is_asked_for(host, net, hook):
    good = net.serve(rig.hub())
    path = hook("export HF_ENDPOINT=http://127.0.0.1:9 no_proxy=127.0.0.1\n")
    result = host.run(hook=path, hub_endpoints=hubs(good.url))
    assert result["hub"]["url"] == host.variables()["HF_ENDPOINT"] == good.url


@pytest.mark.parametrize(("text", "id_", "words"), [
    ("sleep 60\n", "network-hook-late", "does not end"),
    ("echo no licence for jo:hunter2@proxy >&2; return 3\n", "network-hook-failed", "no licence"),
    ("exit 0\n", "network-hook-failed", "exit"),
    ("if\n", "network-hook-failed", "ends with"),
    ("export OTHER=1; false\n", "network-hook-failed", "ends with 1"),
    ("export HF_ENDPOINT=http://jo:hunter2@127.0.0.1:9\n", "network-hook-garbage", "HF_ENDPOINT"),
    ("export http_proxy='http://jo:hunter2@x;y z'\n", "network-hook-garbage", "http_proxy"),
    ("export SSL_CERT_FILE=/nowhere/ca.pem\n", "network-hook-garbage", "/nowhere/ca.pem")])
def test_a_hook_that_is_not_well_is_a_finding(host, hook, monkeypatch, text, id_, words):
    usual = site_hook.source
    monkeypatch.setattr(site_hook, "source", lambda path: usual(path, 1.0))
    result = host.run(hook=hook(text), probe="never")
    assert [one["id"] for one in result["findings"]] == [id_]
    assert words in result["msg"]
    assert SECRET not in json.dumps(result)
    assert not host.root.exists()


def test_a_hook_that_ends_with_another_status_and_has_exported_is_a_warning(host, hook):
    path = hook("export http_proxy=http://127.0.0.1:9\n[ -f /nowhere ] && export Y=1\n")
    result = host.run(hook=path, probe="never")
    assert [(one["id"], one["severity"]) for one in result["findings"]] == [
        ("network-hook-failed", "warning")]
    assert host.variables()["http_proxy"] == "http://127.0.0.1:9"


def test_a_hook_that_is_not_there_or_says_nothing_is_a_finding(host, hook):
    missing = host.run(hook="/nowhere/turbo", probe="never")
    assert [one["id"] for one in missing["findings"]] == ["network-hook-missing"]
    empty = host.run(hook=hook("export OTHER=1\n"), probe="never")
    assert [(one["id"], one["severity"]) for one in empty["findings"]] == [
        ("network-hook-empty", "warning")]


def test_a_program_that_a_hook_starts_keeps_nobody_waiting(host, hook, tmp_path):
    path = hook("sleep 30 & echo $! > %s/pid\nexport http_proxy=http://127.0.0.1:9\n" % tmp_path)
    found = site_hook.source(path, 10.0)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert found.problem is None
    assert found.variables["http_proxy"] == "http://127.0.0.1:9"


# apt.


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    for tool in ("apt-get", "dpkg-deb", "gpg"):
        if not shutil.which(tool):
            pytest.skip("no %s on this machine" % tool)
    folder = tmp_path_factory.mktemp("keys")
    rig.key(folder)
    return folder


@pytest.fixture
def apt(host, net, keys, tmp_path):
    """A host whose lists name a distribution and others, and mirrors to choose from."""
    mirror = rig.Mirror(tmp_path / "mirror", keys, "bookworm")
    mirror.add("debian", "bookworm").add("debian", "bookworm-updates")
    mirror.add("debian-security", "bookworm-security")
    other = rig.Mirror(tmp_path / "other", keys, "bookworm", "Other")
    other.add("linux/debian", "bookworm", "others")
    host.mirror, host.others = net.serve(rig.files(tmp_path / "mirror")), net.serve(
        rig.files(tmp_path / "other"))
    host.mirror_folder = tmp_path / "mirror"
    words = {"old": net.nobody(), "others": host.others.url + "/linux/debian"}
    host.write("/etc/apt/sources.list", "# nothing here\n")
    host.write("/etc/apt/sources.list.d/debian.sources", SOURCES % words)
    host.write("/etc/apt/sources.list.d/others.list", OTHERS % words, 0o600)
    host.write("/etc/apt/apt.conf.d/00system", 'APT::Sandbox::User "root";\n')
    for folder in ("/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial",
                   "/etc/apt/trusted.gpg.d", "/etc/apt/preferences.d"):
        host.path(folder).mkdir(parents=True)
    host.write("/var/lib/dpkg/status", "")
    shutil.copy(keys / "public.gpg", host.path("/etc/apt/trusted.gpg.d/key.gpg"))
    host.hub = hubs(net.serve(rig.hub()).url)
    return host


def asked_apt(host, *words, folder):
    conf = folder / "conf"
    conf.write_text('Dir "%s";\n' % host.system)
    return subprocess.run(["apt-get", *words], env=dict(os.environ, APT_CONFIG=str(conf)),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def test_a_mirror_takes_the_place_of_the_distributions_addresses_alone(apt, net, tmp_path):
    before = apt.system_files()
    wall = net.serve(rig.portal)
    result = apt.set(apt_mirrors=[wall.url + "/debian", apt.mirror.url + "/debian"],
                     hub_endpoints=apt.hub)
    assert verdicts(result)[wall.url + "/debian"] == "wrong"
    assert "no InRelease" in reason(result)
    # Nothing of the system's was changed but for one file of ours.
    ours = str(apt.path("/etc/apt/apt.conf.d/95firstlight"))
    assert {path: one for path, one in apt.system_files().items() if path != ours} == before
    copy = apt.network("apt")
    assert (copy / "sources.list.d/debian.sources").read_text() == SOURCES % {
        "old": apt.mirror.url}
    assert os.readlink(copy / "sources.list.d/others.list") == "/etc/apt/sources.list.d/others.list"
    assert os.readlink(copy / "sources.list") == "/etc/apt/sources.list"
    updated = asked_apt(apt, "update", "-q", folder=tmp_path)
    assert updated.returncode == 0, updated.stdout
    assert apt.mirror.url + "/debian bookworm" in updated.stdout
    found = asked_apt(apt, "install", "--print-uris", "--yes", "dear", folder=tmp_path)
    assert apt.mirror.url + "/debian/pool/dear_1.0_all.deb" in found.stdout

    back = apt.run(state="absent")
    assert back["changed"] is True
    assert apt.system_files() == before
    assert not apt.network("").exists()
    assert apt.run(state="absent", check=True)["changed"] is False


def test_a_mirror_without_what_is_old_there_is_told_and_that_stays(apt, tmp_path):
    shutil.rmtree(apt.mirror_folder / "debian-security")
    result = apt.run(apt_mirrors=[apt.mirror.url], hub_endpoints=apt.hub)
    # The address that stays does not answer, and is no reason to have no mirror.
    assert result["changed"] is True, result
    assert "debian-security stays: HTTP 404" in reason(result)
    text = (apt.network("apt") / "sources.list.d/debian.sources").read_text()
    assert text.count(apt.mirror.url) == 1


def test_a_mirror_that_apt_cannot_use_is_put_back(apt, tmp_path):
    before = apt.disk()
    listed = apt.mirror_folder / "debian/dists/bookworm/main/binary-amd64/Packages"
    for path in listed.parent.parent.glob("*/Packages*"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    result = apt.run(apt_mirrors=[apt.mirror.url], hub_endpoints=apt.hub)
    assert result["failed"] is True
    assert [one["id"] for one in result["findings"]] == ["network-apt-not-proven"]
    assert "Hash Sum mismatch" in result["msg"] or "unexpected size" in result["msg"]
    assert {path: one for path, one in apt.disk().items() if "/var/" not in path} == {
        path: one for path, one in before.items() if "/var/" not in path}


def test_lists_are_copied_anew_and_one_put_into_the_copy_goes_where_it_belongs(apt):
    options = {"apt_mirrors": [apt.mirror.url], "hub_endpoints": apt.hub}
    apt.set(**options)
    text = "deb [trusted=yes] %s/linux/debian bookworm main\n" % apt.others.url
    mine = apt.network("apt/sources.list.d/put.list")
    mine.write_text(text)
    new = apt.write("/etc/apt/sources.list.d/new.list", "# later\n")
    result = apt.run(**options)
    assert (result["changed"], result["probed"]) == (True, True), "there is another address of ours"
    theirs = apt.path("/etc/apt/sources.list.d/put.list")
    assert theirs.read_text() == text
    assert os.readlink(mine) == "/etc/apt/sources.list.d/put.list"
    assert os.readlink(apt.network("apt/sources.list.d/new.list")) == (
        "/etc/apt/sources.list.d/new.list")
    assert [one["id"] for one in result["findings"]] == ["network-file-moved"]
    new.unlink()
    assert apt.run(**options)["changed"] is True
    assert not apt.network("apt/sources.list.d/new.list").is_symlink()

    apt.network("apt/sources.list.d/last.list").write_text("# put too\n")
    apt.run(state="absent")
    assert theirs.read_text() == text
    assert apt.path("/etc/apt/sources.list.d/last.list").read_text() == "# put too\n"
    assert not apt.network("").exists()


def test_addresses_in_a_file_of_addresses_are_the_distributions_too(apt, net):
    apt.write("/etc/apt/mirrors/debian.list", "# first\n%s/debian\n" % net.nobody())
    apt.write("/etc/apt/sources.list.d/debian.sources", "Types: deb\n"
              "URIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\n"
              "Components: main\n")
    apt.run(apt_mirrors=[apt.mirror.url], hub_endpoints=apt.hub)
    assert "URIs: %s/debian\n" % apt.mirror.url in apt.network(
        "apt/sources.list.d/debian.sources").read_text()


def test_where_apt_has_nothing_of_the_distribution_or_is_not_there_it_is_told(host, net):
    options = {"apt_mirrors": ["http://mirror.example.org"], "probe": "never"}
    assert [one["id"] for one in host.run(check=True, **options)["findings"]] == [
        "network-apt-absent"]
    host.write("/etc/apt/sources.list", "deb http://192.0.2.1/linux bookworm stable\n")
    result = host.run(**options)
    assert [one["id"] for one in result["findings"]] == ["network-apt-unknown"]
    assert not host.path("/etc/apt/apt.conf.d").exists()


# Files.


def test_without_root_nothing_of_the_system_is_touched_and_that_is_told(
        host, net, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    host.write("/etc/apt/sources.list", "deb http://192.0.2.1/debian bookworm main\n")
    before = host.system_files()
    hub = net.serve(rig.hub())
    result = host.set(hub_endpoints=hubs(hub.url), apt_mirrors=["http://mirror.example.org"],
                      system_wide=True, proxy={"https": "http://127.0.0.1:9"})
    assert {one["id"]: (one["severity"], one["needs_root"]) for one in result["findings"]} == {
        "network-apt-not-root": ("warning", True),
        "network-system-wide-not-root": ("warning", True)}
    assert host.system_files() == before
    assert host.variables()["HF_ENDPOINT"] == hub.url


@pytest.mark.parametrize("text", [None, "", "A=1\n", "A=1", "A=1\n\n# no end"])
def test_everything_is_put_back_to_the_byte(host, net, text):
    host.write("/etc/apt/apt.conf.d/95firstlight", "// somebody's own\n", 0o640)
    if text is not None:
        host.write("/etc/environment", text, 0o640)
    before = host.system_files()
    hub = net.serve(rig.hub())
    host.set(hub_endpoints=hubs(hub.url), system_wide=True, proxy={
        "http": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"})
    block = host.path("/etc/environment").read_text()
    assert block.startswith(text or "")
    assert 'HF_ENDPOINT="%s"\n' % hub.url in block
    told = host.run(state="absent", check=True, diff=True)
    result = host.run(state="absent")
    assert told["actions"] == result["actions"]
    assert host.system_files() == before
    assert not host.network("").exists()
    assert host.run(state="absent")["changed"] is False


def test_what_is_no_longer_asked_for_is_taken_back(host, net):
    host.set(hub_endpoints=hubs(net.serve(rig.hub()).url), system_wide=True)
    result = host.run()
    assert (result["changed"], result["hub"]["url"]) == (True, "https://huggingface.co")
    assert not host.network("").exists()
    assert not host.path("/etc/environment").exists()
    assert host.run()["changed"] is False


def test_what_others_write_beside_our_block_stays(host, net):
    host.write("/etc/environment", "A=1\n")
    options = {"hub_endpoints": hubs(net.serve(rig.hub()).url), "system_wide": True}
    host.set(**options)
    path = host.path("/etc/environment")
    path.write_text(path.read_text() + "B=2\n")
    assert host.run(**options)["changed"] is False
    path.write_text(path.read_text().replace("HF_ENDPOINT=", "HF_TOKEN=mine\nHF_ENDPOINT="))
    result = host.run(**options)
    assert [one["id"] for one in result["findings"]] == ["network-file-changed"]
    assert "HF_TOKEN=mine" in host.network("kept/environment").read_text()
    host.run(state="absent")
    assert path.read_text() == "A=1\nB=2\n"
    assert "HF_TOKEN=mine" in host.network("kept/environment").read_text(), "it is not lost"


@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_file_that_somebody_has_changed_is_told_and_kept(host, net, state):
    options = {"hub_endpoints": hubs(net.serve(rig.hub()).url)}
    host.write("/etc/apt/apt.conf.d/50other", "")
    options["proxy"] = {"http": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    host.set(**options)
    conf = host.path("/etc/apt/apt.conf.d/95firstlight")
    script = host.network("env.sh")
    conf.write_text("// Written by Firstlight, and by me\n")
    script.write_text("export MINE=1\n")
    result = host.run(state=state, **options)
    assert sorted(one["subject"] for one in result["findings"]) == sorted([
        "/etc/apt/apt.conf.d/95firstlight", str(script)])
    assert {one["severity"] for one in result["findings"]} == {"warning"}
    kept = host.network("kept")
    assert (kept / "95firstlight").read_text() == "// Written by Firstlight, and by me\n"
    assert (kept / "env.sh").read_text() == "export MINE=1\n"
    assert conf.exists() is script.exists() is (state == "present")
    assert host.run(state=state, **options)["changed"] is False


def test_files_that_are_gone_come_back_without_a_question(host, net):
    hub = net.serve(rig.hub())
    host.set(hub_endpoints=hubs(hub.url))
    asked = len(hub.requests)
    host.network("environment").unlink()
    host.network("env.sh").chmod(0o600)
    result = host.run(hub_endpoints=hubs(hub.url), diff=True)
    assert result["actions"] == ["write %s" % host.network(name)
                                 for name in ("env.sh", "environment")]
    assert "HF_ENDPOINT=%s\n" % hub.url in result["diff"][1]["after"]
    assert len(hub.requests) == asked
    assert host.variables()["HF_ENDPOINT"] == hub.url


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"question": 5}'])
def test_a_decision_that_cannot_be_read_is_made_anew(host, net, text):
    options = {"hub_endpoints": hubs(net.serve(rig.hub()).url)}
    host.set(**options)
    host.network("decision.json").write_text(text)
    result = host.run(**options)
    assert (result["changed"], result["probed"]) == (True, True)
    assert host.run(**options)["changed"] is False


def test_a_change_that_was_killed_is_put_back_first(host, net):
    options = {"hub_endpoints": hubs(net.serve(rig.hub()).url)}
    pid = os.fork()
    if not pid:
        change = transaction.Transaction(str(host.root / "journal"), "network_access")
        change.__enter__()
        change.write(str(host.path("/etc/apt/apt.conf.d/95firstlight")), b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    assert host.run(check=True, **options)["changed"] is True
    assert host.run(**options)["recovered"] is True
    assert not host.path("/etc/apt/apt.conf.d/95firstlight").exists()
    assert host.run(**options)["changed"] is False


def test_two_runs_are_not_at_it_at_once(host, net, monkeypatch):
    monkeypatch.setattr(transaction.Transaction.__init__, "__defaults__",
                        (lambda: None, 0.1))
    with transaction.Transaction(str(host.root / "journal"), "network_access"):
        result = host.run(offline=True)
    assert result["failed"] is True
    assert "another run holds" in result["msg"]


def test_a_folder_that_cannot_be_written_is_named(host):
    host.root.write_text("a file where the folder should be")
    result = host.run(offline=True)
    assert result["failed"] is True
    assert str(host.root) in result["msg"]


def test_whoever_goes_out_gets_the_variables(host, monkeypatch):
    host.run(offline=True)
    monkeypatch.setattr(os, "environ", {"OTHER": "1"})
    network_settings.apply(str(host.root))
    assert os.environ == {"OTHER": "1", "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    assert network_settings.read("/nowhere") == {}
    assert network_settings.parse("# a=b\nname\nA=b=c\n\n") == {"A": "b=c"}
