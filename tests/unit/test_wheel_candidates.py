# SPDX-License-Identifier: Apache-2.0
"""Sources are asked in order, who is silent is told of, and nobody learns another's password."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import urllib.request

import pytest
from wheels import builder, index

from ansible.module_utils.firstlight.wheels import candidates as asking
from ansible.module_utils.firstlight.wheels import pip_settings
from ansible.module_utils.firstlight.wheels.house import House, HouseProblem, sha256_of

LOCAL = "cu12torch2.8cxx11abiTRUE"
TAGS = "cp312-cp312-linux_x86_64"
USER = "me:s3cret"


@pytest.fixture
def folder(tmp_path):
    """Wheels of two versions, an sdist, and one of another package."""
    made = tmp_path / "offered"
    builder.wheel(made, "flash-attn", "2.8.2", local=LOCAL, tags=TAGS)
    builder.wheel(made, "flash-attn", "2.8.3", local=LOCAL, tags=TAGS, requires_python=">=3.9")
    builder.wheel(made, "other", "1.0", tags="py3-none-any")
    builder.sdist(made, "flash-attn", "2.8.3")
    return made


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """Nothing of this machine's own pip and proxies; pauses that take no time are noted."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    made = []
    monkeypatch.setattr(asking, "_wait", made.append)
    return made


@pytest.fixture
def served(folder):
    with index.Index(folder, about={
            _name(folder, "2.8.2*.whl"): {"yanked": "wrong results"},
            _name(folder, "2.8.3*.whl"): {"requires_python": ">=3.9"}}) as one:
        yield one


def _name(folder, pattern):
    return next(pathlib.Path(folder).glob("flash_attn-" + pattern)).name


def find(*sources, version="", **more):
    return asking.find("Flash_Attn", version, list(sources), **more)


def files(found):
    return [one["file"] for one in found]


def ids(findings):
    return [(one["id"], one["severity"]) for one in findings]


def all_of(folder):
    return sorted(path.name for path in pathlib.Path(folder).glob("flash*"))


def as_told(folder, name):
    path = folder / name
    return sha256_of(str(path)), path.stat().st_size


@pytest.mark.parametrize("html", [False, True])
def test_an_index_tells_its_files(served, folder, html):
    if html:
        served.faults["*"] = {"html": True}
    found, findings = find({"index": served.simple + "/"})
    assert findings == []
    assert sorted(files(found)) == all_of(folder)
    for one in found:
        digest, size = as_told(folder, one["file"])
        assert (one["sha256"], one["size"]) == (digest, None if html else size)
        assert one["url"] == "%s/files/%s" % (served.url, one["file"].replace("+", "%2B"))
        assert one["source"] == "index %s/" % served.simple
    told = {one["file"]: (one["yanked"], one["requires_python"]) for one in found}
    assert told[_name(folder, "2.8.2*.whl")] == ("wrong results", "")
    assert told[_name(folder, "2.8.3*.whl")] == ("", ">=3.9")


def test_the_rigs_index_is_one_to_pip(served, tmp_path):
    """So what is held against it here is held against an index."""
    out = tmp_path / "out"
    for name in ("json", "html"):
        served.faults["*"] = {"html": name == "html"}
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest",
             str(out / name), "--index-url", served.simple, "other==1.0"],
            capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (out / name).iterdir()] == ["other-1.0-py3-none-any.whl"]


def test_a_page_of_links_is_a_source(served, folder):
    served.faults["*"] = {"charset": "utf-16"}
    found, findings = find({"page": served.flat})
    assert (sorted(files(found)), findings) == (all_of(folder), [])


def test_links_are_relative_to_the_base_of_the_page(served, folder):
    served.faults["/simple/*"] = {"html": True, "base": served.cdn_url + "/files/"}
    found, _ = find({"index": served.simple})
    assert {one["url"].rpartition("/")[0] for one in found} == {served.cdn_url + "/files"}


def test_links_are_relative_to_where_a_page_really_is(served):
    served.faults["/simple/*"] = {"redirect": True}
    found, findings = find({"index": served.simple})
    assert findings == []
    assert {one["url"].rpartition("/")[0] for one in found} == {served.cdn_url + "/cdn/files"}


@pytest.mark.parametrize("version", ["2.8.3", "==2.8.3", " == 2.8.3 ", "2.8.3+cu12"])
def test_an_exact_version_asks_for_one_release(served, folder, version):
    found, findings = find({"release": "some-one/flash-attention", "tag": "v{version}"},
                           version=version, release_api=served.url + "/")
    assert findings == []
    assert sorted(files(found)) == [one for one in all_of(folder) if "2.8.3" in one]
    assert [one.path for one in served.done()] == [
        "/repos/some-one/flash-attention/releases/tags/v2.8.3"]
    digest, size = as_told(folder, found[0]["file"])
    assert (found[0]["sha256"], found[0]["size"]) == (digest, size)


@pytest.mark.parametrize("version", ["", ">=2.8,<3", "==2.8.*"])
def test_any_other_version_asks_for_all_releases(served, folder, version):
    served.faults["/repos/*"] = {"page": 1}
    found, findings = find({"release": "o/n", "tag": "v{version}"}, version=version,
                           release_api=served.url)
    assert (sorted(files(found)), findings) == (all_of(folder), [])
    assert len(served.done()) == 3  # 2.8.3, 2.8.2, 1.0: page after page


def test_a_page_of_releases_is_a_small_one(tmp_path):
    # Each of them may have hundreds of files, and the limit of a page is one of time and size.
    for number in range(31):
        (tmp_path / ("flash_attn-2.%d-py3-none-any.whl" % number)).write_bytes(b"")
    with index.Index(tmp_path) as served:
        found, _ = find({"release": "o/n"}, release_api=served.url)
        assert len(served.done()) == 2
    assert len(found) == 31


def test_a_list_of_releases_that_leads_elsewhere_is_not_followed(served):
    served.faults["/repos/*"] = {"page": 1}
    here, there = served.url, served.cdn_url
    own = index._Indexed.own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index._Indexed, "own", lambda self, path: own(self, path).replace(
            here, there) if "releases" in path else own(self, path))
        find({"release": "o/n"}, release_api=served.url)
    assert {one.host for one in served.done()} == {"hub"}
    assert len(served.done()) == 1


def test_a_list_of_releases_without_an_end_is_left_and_told(served, monkeypatch):
    monkeypatch.setattr(asking, "PAGES", 2)
    served.faults["/repos/*"] = {"page": 1}
    found, findings = find({"release": "o/n"}, release_api=served.url)
    assert found
    assert ids(findings) == [("wheel-source-down", "warning")]
    assert "more than 2 pages" in findings[0]["found"]


def test_a_release_that_is_not_there_has_nothing(served):
    found, findings = find({"release": "o/n", "tag": "v{version}"}, version="9.9",
                           release_api=served.url)
    assert (found, ids(findings)) == ([], [("wheel-source-empty", "info")])
    assert "release o/n v9.9" in findings[0]["subject"]


def test_a_limit_of_requests_is_said_as_one(served):
    served.faults["/repos/*"] = {"status": 403, "headers": {
        "X-RateLimit-Remaining": "0", "X-RateLimit-Limit": "60", "X-RateLimit-Reset": "1700000000"}}
    _, findings = find({"release": "o/n"}, release_api=served.url)
    assert ids(findings) == [("wheel-rate-limit", "error")]
    assert "60 requests an hour is used up until 22:13 UTC" in findings[0]["found"]
    assert len(served.done()) == 1


def test_a_folder_without_a_manifest_is_taken_as_it_is(folder):
    found, findings = find({"folder": str(folder)})
    assert (sorted(files(found)), findings) == (all_of(folder), [])
    for one in found:
        assert (one["sha256"], one["size"]) == as_told(folder, one["file"])
        assert (one["path"], one["url"]) == (str(folder / one["file"]), "")


def test_a_folder_that_is_not_there_is_told(tmp_path):
    found, findings = find({"folder": str(tmp_path / "none")})
    assert (found, ids(findings)) == ([], [("wheel-not-read", "error")])


def test_a_file_is_a_source(served, folder):
    name = _name(folder, "2.8.3*.whl")
    digest, _ = as_told(folder, name)
    url = "%s/files/%s" % (served.url, name.replace("+", "%2B"))
    found, findings = find({"file": url, "sha256": digest.upper()}, {"file": url})
    assert findings == []
    assert [(one["file"], one["url"], one["sha256"], one["size"]) for one in found] == [
        (name, url, digest, None), (name, url, "", None)]
    for source in (str(folder / name), (folder / name).as_uri()):
        found, _ = find({"file": source}, offline=True)
        assert [(one["path"], one["url"], one["sha256"]) for one in found] == [
            (str(folder / name), "", digest)]
    assert served.done() == []


@pytest.mark.parametrize("source", [
    {}, {"index": ""}, {"index": "x", "page": "y"}, {"index": 5}, {"else": "x"},
    {"release": "no-repository"}, {"release": "../../user"}, {"file": "https://example.org/x"},
    {"file": "ftp://example.org/flash_attn-1-a-b-c.whl"}])
def test_a_source_that_is_none_is_told(source):
    found, findings = find(source)
    assert (found, ids(findings)) == ([], [("wheel-bad-source", "error")])


def test_sources_come_in_their_order_after_the_wheelhouse(served, folder, tmp_path):
    name = _name(folder, "2.8.3*.whl")
    house = House(str(tmp_path / "house"))
    house.add(str(folder / name), name, built_for={"torch": "2.8"})
    found, findings = find({"page": served.flat}, {"folder": str(folder)}, house=house)
    assert findings == []
    assert found[0]["path"] == str(tmp_path / "house" / name)
    assert found[0]["built_for"] == {"torch": "2.8"}
    assert [one["source"].partition(" ")[0] for one in found] == (
        ["wheelhouse"] + ["page"] * 3 + ["folder"] * 3)


# Who gives no answer.


def _nobody():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return "http://127.0.0.1:%d/simple" % one.getsockname()[1]


def test_a_source_that_is_down_matters_when_there_is_nothing_else(folder):
    down = {"index": _nobody()}
    found, findings = find(down, {"folder": str(folder)})
    assert found
    assert ids(findings) == [("wheel-source-down", "warning")]
    found, findings = find(down)
    assert found == []
    assert ids(findings) == [("wheel-source-down", "error")]
    assert "network_access_proxy" in findings[0]["remedy"]


def test_trouble_that_passes_is_waited_for(served, folder, quiet):
    served.faults["/simple/*"] = {"status": 500, "times": 2}
    found, findings = find({"index": served.simple})
    assert (sorted(files(found)), findings) == (all_of(folder), [])
    assert quiet == list(asking.PAUSES_S)


def test_trouble_that_does_not_pass_is_told(served):
    served.faults["/simple/*"] = {"status": 503}
    found, findings = find({"index": served.simple})
    assert (found, ids(findings)) == ([], [("wheel-source-down", "error")])
    assert "HTTP 503" in findings[0]["found"]
    assert len(served.done()) == 3


def test_a_page_that_is_cut_is_asked_for_again(served, folder):
    served.faults["/simple/*"] = {"cut_after": 100, "times": 1}
    found, findings = find({"index": served.simple})
    assert (sorted(files(found)), findings) == (all_of(folder), [])


def test_no_part_of_a_page_is_taken_for_the_whole(served):
    served.faults["/simple/*"] = {"cut_after": 400, "html": True}
    found, findings = find({"index": served.simple})
    assert (found, ids(findings)) == ([], [("wheel-source-down", "error")])


def test_a_page_that_drips_is_given_up(served, monkeypatch):
    monkeypatch.setattr(asking, "TIMEOUT_S", 1.5)
    served.faults["/simple/*"] = {"slow": 10}
    found, findings = find({"index": served.simple})
    assert (found, ids(findings)) == ([], [("wheel-source-down", "error")])
    assert "timed out" in findings[0]["found"]
    assert len(served.requests) == 1


def test_a_server_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(asking, "TIMEOUT_S", 0.3)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        _, findings = find({"index": "http://127.0.0.1:%d/simple" % one.getsockname()[1]})
    assert "timed out" in findings[0]["found"]


def test_a_huge_page_is_not_read(served, monkeypatch):
    monkeypatch.setattr(asking, "MAX_PAGE", 2**20)
    served.faults["/simple/*"] = {"huge": 64 * 2**20}
    found, findings = find({"index": served.simple})
    assert (found, ids(findings)) == ([], [("wheel-bad-page", "error")])
    assert "more than 1 MiB" in findings[0]["found"]
    assert served.done()[0].bytes < 64 * 2**20


@pytest.mark.parametrize(("fault", "id_"), [
    ({"garbage": True}, "wheel-bad-page"), ({"garbage": True, "html": True}, "wheel-source-empty"),
    ({"kind": "application/octet-stream"}, "wheel-bad-page"), ({"kind": "x\x1b"}, "wheel-bad-page"),
    ({"status": 404}, "wheel-source-empty"), ({"status": 401}, "wheel-source-denied"),
    ({"status": 403}, "wheel-source-denied"), ({"status": 302}, "wheel-source-down"),
    ({"redirect": "file:///etc/passwd"}, "wheel-source-down")])
def test_what_is_no_page_is_told(served, fault, id_):
    served.faults["/simple/*"] = fault
    found, findings = find({"index": served.simple})
    assert found == []
    assert [one["id"] for one in findings] == [id_]


@pytest.mark.parametrize("url", ["gopher://x/simple", "https://", "http://[", "simple", "https:x"])
def test_an_address_that_is_none_is_told(url):
    found, findings = find({"index": url})
    assert (found, ids(findings)) == ([], [("wheel-source-down", "error")])


def test_a_page_that_is_not_there_is_a_wrong_address(served):
    _, findings = find({"page": served.url + "/other.html"})
    assert ids(findings) == [("wheel-source-down", "error")]
    assert "correct its address" in findings[0]["remedy"]


def test_a_source_with_nothing_of_the_package_says_so(served, folder):
    for path in folder.glob("flash*"):
        path.unlink()
    found, findings = find({"page": served.flat}, {"index": served.simple})
    assert (found, ids(findings)) == ([], [("wheel-source-empty", "info")] * 2)
    assert "none of its 1 links" in findings[0]["found"]
    assert "404" in findings[1]["found"]


@pytest.mark.parametrize("html", [False, True])
def test_names_that_leave_the_folder_are_left_out_and_told(served, folder, html):
    served.faults["/simple/*"] = {"html": html, "links": [
        "..%2F..%2Fflash_attn-9-py3-none-any.whl", "file:///etc/flash_attn-9-a-b-c.whl"]}
    found, findings = find({"index": served.simple})
    assert sorted(files(found)) == all_of(folder)
    assert ids(findings) == [("wheel-bad-link", "warning")]
    assert "../../flash_attn-9" in findings[0]["found"]


# pip's own index.


def test_pips_index_is_the_one_that_the_host_was_given(served, folder):
    found, findings = find({"index": "pip"}, env={"PIP_INDEX_URL": served.simple})
    assert (sorted(files(found)), findings) == (all_of(folder), [])
    assert found[0]["source"] == "pip's index " + served.simple


def test_pips_settings_are_asked_of_pip(served, folder, tmp_path, monkeypatch):
    python = str(builder.environment(tmp_path / "env"))
    page = tmp_path / "links.html"
    page.write_text('<a href="offered/%s">' % _name(folder, "2.8.2*.whl").replace("+", "%2B"))
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = %s\n[install]\nindex_url = %s\nextra-index-url =\n  %s\n  %s\n"
        "find-links = %s\n  %s\n" % (
            _nobody(), served.simple, served.cdn_url + "/cdn/simple", served.simple, folder, page))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    found, findings = find({"index": "pip"}, pythons=[str(tmp_path / "no-python"), python])
    assert findings == []
    assert sorted({one["source"] for one in found}) == sorted([
        "pip's index " + served.simple, "pip's index %s/cdn/simple" % served.cdn_url,
        "folder %s" % folder, "page %s" % page])
    # What the host was given goes before.
    _, findings = find({"index": "pip"}, pythons=[python], env={"PIP_INDEX_URL": _nobody()})
    assert ("wheel-source-down", "warning") in ids(findings)


def test_pips_built_in_index_is_told_by_pip(tmp_path):
    python = str(builder.environment(tmp_path / "env"))
    told = pip_settings.read(pythons=[python])
    shown = subprocess.run([python, "-m", "pip", "install", "--help"], capture_output=True,
                           text=True, check=True).stdout
    index_url, = told.indexes
    assert "(default%s)" % index_url in "".join(shown.split())
    assert pip_settings.read(pythons=[python], default=False).indexes == []


def test_without_pip_and_variables_no_index_is_known(tmp_path, monkeypatch):
    bare = str(builder.environment(tmp_path / "env", with_pip=False))
    monkeypatch.setattr(sys, "executable", bare)
    found, findings = find({"index": "pip"}, pythons=[bare])
    assert (found, ids(findings)) == ([], [("wheel-no-index", "error")])
    assert "no pip in" in findings[0]["found"]
    assert "network_access_pip_indexes" in findings[0]["remedy"]


def test_pip_told_to_use_no_index_is_obeyed(served, folder):
    env = {"PIP_INDEX_URL": served.simple, "PIP_NO_INDEX": "1"}
    found, findings = find({"index": "pip"}, env=env)
    assert (found, ids(findings)) == ([], [("wheel-no-index", "error")])
    found, findings = find({"index": "pip"}, env=dict(env, PIP_FIND_LINKS=str(folder)))
    assert (sorted(files(found)), findings) == (all_of(folder), [])
    assert served.done() == []


def test_an_index_of_the_disk_is_one(folder, tmp_path):
    page = tmp_path / "simple" / "flash-attn" / "index.html"
    page.parent.mkdir(parents=True)
    name = _name(folder, "2.8.3*.whl")
    page.write_text('<a href="../../offered/%s"><a href="../../offered/flash_attn-9-a-b-c.whl">'
                    % name.replace("+", "%2B"))
    url = (tmp_path / "simple").as_uri()
    for source, offline in (({"index": url}, True), ({"index": url}, False)):
        found, findings = find(source, offline=offline)
        assert findings == []
        assert [(one["file"], one["path"], one["sha256"], one["size"]) for one in found] == [
            (name, str(folder / name), *as_told(folder, name))]
    found, findings = asking.find("other", "", [{"index": url}])
    assert (found, ids(findings)) == ([], [("wheel-source-empty", "info")])


# Within.


def test_offline_nothing_but_the_disk_is_asked(served, folder):
    found, findings = find(
        {"index": served.simple}, {"index": "pip"}, {"page": served.flat}, {"release": "o/n"},
        {"file": served.url + "/files/flash_attn-1-a-b-c.whl"}, {"folder": str(folder)},
        offline=True, release_api=served.url, env={"PIP_INDEX_URL": served.simple})
    assert sorted(files(found)) == all_of(folder)
    assert ids(findings) == [("wheel-offline", "info")]
    for name in ("index %s" % served.simple, "pip's index", "page ", "release o/n", "file "):
        assert name in findings[0]["found"]
    assert served.done() == []


# Secrets.


def no_secret(*told):
    text = json.dumps(told)
    assert "s3cret" not in text
    assert "me:" not in text


@pytest.mark.parametrize("where", ["source", "pip", "page"])
def test_a_login_opens_its_own_host_and_is_told_to_nobody(served, folder, where):
    served.faults["*"] = {"auth": USER}
    user = "me:s%33cret"
    source, env = {
        "source": ({"index": served.named(user)}, {}),
        "pip": ({"index": "pip"}, {"PIP_INDEX_URL": served.named(user)}),
        "page": ({"page": served.named(user, served.flat)}, {})}[where]
    found, findings = find(source, env=env)
    assert (sorted(files(found)), findings) == (all_of(folder), [])
    no_secret(found)


def test_a_login_does_not_follow_to_another_host(served):
    served.faults["*"] = {"auth": USER}
    with index.Index(served.folder) as other:
        served.faults["/simple/*"] = {"redirect": other.simple + "/flash-attn/"}
        found, _ = find({"index": served.named(USER)})
        assert found
        assert served.done()[0].authorization
        assert [one.authorization for one in other.done()] == [""]


def test_a_wrong_login_is_refused_without_being_shown(served):
    served.faults["*"] = {"auth": "somebody:else"}
    found, findings = find({"index": served.named(USER)}, {"page": served.flat})
    assert found == []
    assert ids(findings) == [("wheel-source-denied", "error")] * 2
    no_secret(findings)


@pytest.mark.parametrize("fault", [
    {"status": 500}, {"status": 404}, {"garbage": True}, {"cut_after": 10},
    {"links": ["..%2Fflash_attn-1-a-b-c.whl"]}])
def test_no_finding_shows_a_login(served, fault):
    served.faults["*"] = fault
    found, findings = find({"index": served.named(USER)}, {"page": served.named(USER, served.flat)},
                           {"file": served.named(USER, served.url + "/files/x")},
                           {"index": "http://%s@127.0.0.1:1/simple" % USER},
                           {"index": "http://%s@[/simple" % USER})
    assert findings
    no_secret(found, findings)


def test_a_login_of_pips_index_fetches_the_file_too(served, folder, tmp_path):
    served.faults["*"] = {"auth": USER}
    env = {"PIP_INDEX_URL": served.named(USER)}
    found, _ = find({"index": "pip"}, env=env)
    house = House(str(tmp_path / "house"))
    path = house.bring(found[0], env=env)
    assert sha256_of(path) == found[0]["sha256"]
    no_secret(pathlib.Path(house.manifest).read_text())
    with pytest.raises(HouseProblem) as refused:
        house.bring(found[1])
    no_secret(refused.value.findings, str(refused.value))


def test_proxies_of_the_host_are_used_and_forgotten(served, folder, monkeypatch):
    env = {"http_proxy": served.url, "no_proxy": ""}
    found, findings = find({"index": "http://index.example.org/simple"}, env=env)
    assert sorted(files(found)) == all_of(folder)
    assert ids(findings) == [("wheel-plain-http", "warning")]
    assert served.done()[0].proxied == "index.example.org"
    assert "http_proxy" not in os.environ


@pytest.mark.parametrize(("source", "more"), [
    ({"index": "http://index.example.org/simple"}, {}),
    ({"index": "pip"}, {"PIP_INDEX_URL": "http://%s@index.example.org/simple" % USER}),
    ({"page": "http://index.example.org/flat.html?token=s3cret"}, {}),
    ({"release": "o/n"}, {})])
def test_hashes_that_came_without_tls_are_told(served, source, more):
    env = {"http_proxy": served.url, "no_proxy": "", **more}
    found, findings = find(source, source, env=env, release_api="http://api.example.org")
    assert found
    # Once, however often it is asked.
    assert ids(findings) == [("wheel-plain-http", "warning")]
    assert ".example.org/" in findings[0]["found"]
    no_secret(findings)


def test_a_page_that_leads_from_tls_to_none_is_told():
    asked = asking._Asked("flash-attn", "", asking.RELEASE_API, False, None, ())
    asked.trusted("index x", "https://index.example.org/simple", "http://cdn.example.org/simple")
    assert "cdn.example.org" in asked.findings[0]["found"]
    asked.findings.clear()
    for url in ("https://index.example.org/", "http://127.0.0.1:8000/", "http://localhost/",
                "http://[::1]:80/"):
        asked.trusted("index x", url)
    assert asked.findings == []
    asked.trusted("index x", "http://127.example.org/")
    assert ids(asked.findings) == [("wheel-plain-http", "warning")]


def test_without_tls_and_without_files_the_run_is_not_stopped_for_tls(served):
    env = {"http_proxy": served.url, "no_proxy": ""}
    found, findings = asking.find("of-the-moon", "", [
        {"page": "http://index.example.org/flat.html"}], env=env)
    assert found == []
    assert ids(findings) == [("wheel-plain-http", "warning"), ("wheel-source-empty", "info")]


def test_the_user_of_a_source_is_asked_for_where_one_may_stand(served):
    """The role refuses one in `prebuilt_wheel_sources`."""
    served.faults["*"] = {"auth": USER}
    _, findings = find({"index": served.simple})
    assert "(`network_access_pip_indexes`)" in findings[0]["remedy"]
    assert "the source in" not in findings[0]["remedy"]


# The rig.


def test_the_rig_serves_as_a_process_of_its_own(folder, tmp_path, repository):
    log = tmp_path / "log"
    served = subprocess.Popen(
        [sys.executable, str(repository / "tests/rig/wheels/index.py"), str(folder), "--address",
         "0.0.0.0", "--log", str(log), "--faults", '{"/simple/*": {"status": 500, "times": 1}}',
         "--about", "{}"], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        url = served.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
        found, findings = find({"index": url + "/simple"}, {"release": "o/n"}, release_api=url)
        assert findings == []
        assert len(found) == 2 * len(all_of(folder))
        with urllib.request.urlopen(found[-1]["url"]) as answer:
            assert answer.headers["Content-Length"] == str(found[-1]["size"])
    finally:
        served.terminate()
        served.wait(10)
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [
        500, 200, 200, 200]
