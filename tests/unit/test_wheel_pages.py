# SPDX-License-Identifier: Apache-2.0
"""Pages of indexes tell their wheels, and nothing that a page may hold does any harm."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible.module_utils.firstlight.wheels import pages

URL = "https://index.example.org/simple/flash-attn/"
NAME = ("flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp312-cp312-linux_x86_64.whl")
QUOTED = NAME.replace("+", "%2B")
SHA = "ab" * 32


def of_html(text, url=URL, package="flash-attn"):
    return pages.from_html(text, url, package, "an index")


def of_json(files, version="1.1", url=URL, **more):
    return pages.from_json(json.dumps(
        {"meta": {"api-version": version}, "name": "flash-attn", "files": files, **more}),
        url, "flash-attn", "an index")


def only(page):
    found, = page.candidates
    return found


def test_a_link_of_pep_503_is_a_candidate():
    found = only(of_html(
        '<a href="../../files/%s#sha256=%s" data-requires-python="&gt;=3.9"'
        ' data-dist-info-metadata="sha256=00">%s</a>' % (QUOTED, SHA, NAME)))
    assert found == {
        "file": NAME, "url": "https://index.example.org/files/" + QUOTED, "path": "",
        "sha256": SHA, "size": None, "requires_python": ">=3.9", "yanked": "",
        "source": "an index", "built_for": {}}


@pytest.mark.parametrize("text", [
    "<A HREF='%s'>x</A>", "<a\n  class=x\n  href=%s\n>x", '<a href="  %s  "/>',
    '<a rel="internal" href="%s" data-yanked', "<!-- <a href='no.whl'> --><a href='%s'>",
    '<a title="2 > 1" href="%s">', '<a href="%s" href="https://evil.example.org/x-1-a-b-c.whl">'])
def test_html_is_read_as_browsers_read_it(text):
    assert only(of_html(text % QUOTED))["file"] == NAME


def test_what_is_commented_out_is_not_there():
    assert not of_html("<!-- <a href=%s> --> <!-- <a href=%s>" % (QUOTED, QUOTED)).candidates


@pytest.mark.parametrize(("attribute", "yanked"), [
    ("", ""), ("data-yanked", "yanked"), ('data-yanked=""', "yanked"),
    ('data-yanked="broken &amp; bad"', "broken & bad")])
def test_a_yanked_file_says_why(attribute, yanked):
    assert only(of_html('<a href="%s" %s>' % (QUOTED, attribute)))["yanked"] == yanked


@pytest.mark.parametrize(("base", "href", "url"), [
    ("", "/a/%s", "https://index.example.org/a/%s"),
    ("", "//cdn.example.org/%s", "https://cdn.example.org/%s"),
    ("", "https://cdn.example.org:8443/a/%s?X-Signature=a%%2Fb", None),
    ("https://cdn.example.org/w/", "%s", "https://cdn.example.org/w/%s"),
    ("/w/", "%s", "https://index.example.org/w/%s"),
    ("", "https://me:secret@cdn.example.org/%s", "https://cdn.example.org/%s"),
    ("", "../%s", "https://index.example.org/simple/%s"),
])
def test_links_lead_where_the_page_says(base, href, url):
    text = ('<base href="%s">' % base if base else "") + '<a href="%s">' % (href % QUOTED)
    assert only(of_html(text))["url"] == (url or href) % QUOTED


@pytest.mark.parametrize("href", [NAME, QUOTED, QUOTED.replace("_attn", "%5Fattn")])
def test_a_plus_is_quoted_in_addresses_and_is_none_in_names(href):
    found = only(of_html('<a href="%s">' % href))
    assert found["file"] == NAME
    assert found["url"].endswith("/" + QUOTED)


@pytest.mark.parametrize("href", [
    "..%2F..%2Fetc%2Fflash_attn-1-py3-none-any.whl", "flash_attn-1%00-py3-none-any.whl",
    "%2Fflash_attn-1-py3-none-any.whl", ".flash_attn-1-py3-none-any.whl",
    "flash_attn-1-py3-none-any%0A.whl", "flash_attn-1%1b[31m-py3-none-any.whl",
    "-rflash_attn-1-py3-none-any.whl", "flash_attn-1-" + "x" * 300 + ".whl",
    "flash_attn-1-p\u0443-none-any.whl",
    "file:///etc/flash_attn-1-py3-none-any.whl", "ftp://e.example.org/flash_attn-1-a-b-c.whl",
    "javascript:flash_attn-1-a-b-c.whl", "http://[/flash_attn-1-a-b-c.whl",
    "http:///flash_attn-1-a-b-c.whl", "http://a b/flash_attn-1-a-b-c.whl",
    "http://e.example.org:x/flash_attn-1-a-b-c.whl",
    "http://e.example.org\\@evil/flash_attn-1-a-b-c.whl"])
def test_names_and_addresses_that_cannot_be_are_left_out_and_told(href):
    page = of_html('<a href="%s"><a href="%s">' % (href, QUOTED))
    assert [one["file"] for one in page.candidates] == [NAME]
    assert len(page.bad) == 1
    assert page.bad[0].isprintable()
    assert page.links == 2


def test_only_a_page_of_the_disk_leads_to_the_disk():
    href = "../../files/%s#sha256=%s" % (QUOTED, SHA)
    found = only(of_html('<a href="%s">' % href, "file:///srv/simple/flash-attn/index.html"))
    assert (found["path"], found["url"]) == ("/srv/files/" + NAME, "")
    assert of_html('<a href="file:///srv/%s">' % QUOTED).bad


@pytest.mark.parametrize(("fragment", "sha256"), [
    ("#sha256=" + SHA, SHA), ("#sha256=" + SHA.upper(), SHA), ("#egg=x&sha256=" + SHA, SHA),
    ("#md5=00", ""), ("#sha256=abc", ""), ("#sha256=" + "g" * 64, ""), ("", ""),
    ("#" + "&".join("a%d=b" % number for number in range(100)), None)])
def test_a_hash_is_one_or_is_none(fragment, sha256):
    page = of_html('<a href="%s%s">' % (QUOTED, fragment))
    assert [one["sha256"] for one in page.candidates] == ([] if sha256 is None else [sha256])


def test_pep_691_tells_it_all():
    found = only(of_json([
        {"filename": NAME, "url": "../../files/" + QUOTED, "hashes": {"sha256": SHA},
         "requires-python": ">=3.9", "size": 123, "yanked": "no good"},
        {"filename": "torch-2.8.0-cp312-cp312-linux_x86_64.whl", "url": "x", "hashes": {}},
        {"filename": "flash_attn-2.8.3.exe", "url": "x", "hashes": {}}]))
    assert found == {
        "file": NAME, "url": "https://index.example.org/files/" + QUOTED, "path": "",
        "sha256": SHA, "size": 123, "requires_python": ">=3.9", "yanked": "no good",
        "source": "an index", "built_for": {}}


@pytest.mark.parametrize(("key", "value", "told", "is_now"), [
    ("size", "12", "size", None), ("size", -1, "size", None), ("size", True, "size", None),
    ("hashes", [], "sha256", ""), ("hashes", {"sha256": 5}, "sha256", ""),
    ("requires-python", None, "requires_python", ""), ("requires-python", 3, "requires_python", ""),
    ("requires-python", ">=3\x1b[2J\n", "requires_python", ">=3\\x1b[2J"),
    ("yanked", True, "yanked", "yanked"), ("yanked", False, "yanked", ""),
    ("yanked", None, "yanked", "")])
def test_what_is_told_wrongly_is_not_told(key, value, told, is_now):
    row = {"filename": NAME, "url": QUOTED, "hashes": {"sha256": SHA}, key: value}
    assert only(of_json([row]))[told] == is_now


def test_a_file_name_of_json_is_no_path():
    page = of_json([{"filename": "../../" + NAME, "url": QUOTED, "hashes": {}}])
    assert (page.candidates, page.bad) == ([], ["../../" + NAME])


@pytest.mark.parametrize("text", [
    "", "<html>", "[]", '{"files": []}', '{"meta": {"api-version": "2.0"}, "files": []}',
    '{"meta": {"api-version": "1.0"}}', '{"meta": {"api-version": "1.0"}, "files": {}}',
    '{"meta": {"api-version": "1.0"}, "files": [5]}', '{"meta": {"api-version": "1.0"}, "files": '
    '[{"filename": 5, "url": "x"}]}', '{"meta": 5}', "[" * 200_000, "\x00"])
def test_json_that_is_no_index_says_so(text):
    with pytest.raises(pages.BadPage):
        pages.from_json(text, URL, "flash-attn", "an index")


def test_the_assets_of_releases_are_candidates():
    told = {"tag_name": "v2.8.3", "draft": False, "assets": [
        {"name": NAME, "size": 9, "digest": "sha256:" + SHA,
         "browser_download_url": "https://github.com/o/n/releases/download/v2.8.3/" + QUOTED},
        {"name": "flash_attn-2.8.3.tar.gz", "size": 8, "digest": None,
         "browser_download_url": "https://github.com/o/n/releases/download/v2.8.3/"
                                 "flash_attn-2.8.3.tar.gz"},
        {"name": "notes.txt", "browser_download_url": "https://github.com/x"}]}
    page = pages.from_releases(told, "flash-attn", "release o/n")
    assert [(one["file"], one["sha256"], one["size"], one["source"]) for one in page.candidates] \
        == [(NAME, SHA, 9, "release o/n v2.8.3"),
            ("flash_attn-2.8.3.tar.gz", "", 8, "release o/n v2.8.3")]
    assert page.candidates[0]["url"].endswith("/v2.8.3/" + QUOTED)
    assert pages.from_releases([told, dict(told, draft=True)], "flash-attn", "release").links == 3


@pytest.mark.parametrize("told", [
    None, 5, [5], {}, {"assets": 5}, {"assets": [5]}, {"assets": [{"name": "x"}]},
    {"message": "Not Found"}])
def test_what_is_no_release_says_so(told):
    with pytest.raises(pages.BadPage):
        pages.from_releases(told, "flash-attn", "release")


@pytest.mark.parametrize(("file", "package"), [
    (NAME, "flash-attn"), ("Flash.Attn-1-py3-none-any.whl", "flash-attn"),
    ("flash_attn_3-3.0.0+cu130torch2.14git1-cp39-abi3-linux_x86_64.whl", "flash-attn-3"),
    ("flash-attn-2.8.3.post2.tar.gz", "flash-attn"), ("flash_attn-2.8.3.zip", "flash-attn"),
    ("flash-attn-3-1.0.tar.gz", "flash-attn-3"), ("flash_attn-2.8.3.egg", ""),
    ("nothing.tar.gz", "")])
def test_a_file_is_named_after_one_package(file, package):
    assert pages.package_of(file) == package


def test_too_many_links_are_no_page(monkeypatch):
    monkeypatch.setattr(pages, "MAX_LINKS", 10)
    assert of_html("<a href=x>" * 10).links == 10
    for text in ("<a href=x>" * 11, "<a >" * 11):
        with pytest.raises(pages.BadPage, match="more than 10 links"):
            of_html(text)
    with pytest.raises(pages.BadPage, match="more than 10 links"):
        of_json([{"filename": "x", "url": "x"}] * 11)


@pytest.mark.parametrize("piece", [
    "<a ", "<a x='", '<a x="', "<!--", "<a href", "<a x=", "<![", "<a " + "x " * 9,
    "<a href='x' " + " " * 50, "&#", "<base href=//[", "<a / / /"])
def test_a_page_made_to_take_forever_takes_no_longer_than_its_length(piece):
    """The time limit of the session is what fails: it is met by nothing that squares a length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "MAX_LINKS", 50_000)
        text = piece * (8 * 2**20 // len(piece))
        try:
            assert not of_html(text).candidates
        except pages.BadPage as problem:
            assert "links" in str(problem)


@given(st.text(max_size=300), st.text(max_size=60))
def test_any_text_is_some_page(text, href):
    page = of_html('<a href="%s">%s' % (href, text))
    for one in page.candidates:
        assert pages.is_plain(one["file"])
        assert one["url"].startswith(("http://", "https://"))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["meta", "api-version", "files", "filename", "url", "hashes", "assets",
                         "name", "browser_download_url", "digest", "size"]), inner, max_size=5)))
def test_any_json_is_a_page_or_says_that_it_is_none(told):
    for read in (lambda: pages.from_json(json.dumps(told), URL, "x", "s"),
                 lambda: pages.from_releases(told, "x", "s")):
        try:
            read()
        except pages.BadPage as problem:
            assert str(problem)


def test_bytes_at_random_hold_no_candidate():
    noise = random.Random(3).randbytes(200_000).decode("latin-1")
    assert not of_html(noise).candidates


@pytest.mark.parametrize(("url", "called"), [
    ("https://me:secret@h.example.org/a/?token=1#x", "https://h.example.org/a/"),
    ("https://h.example.org/\x1b[2J", "https://h.example.org/\\x1b[2J"), ("http://[", None)])
def test_an_address_for_people_has_no_secret(url, called):
    assert pages.called(url) == (called or "an address that is none")


def test_a_login_is_split_off():
    assert pages.split_login("https://me:s%40fe@h.example.org/a") == (
        "https://h.example.org/a", "Basic bWU6c0BmZQ==")
    assert pages.split_login("https://h.example.org/a@b") == ("https://h.example.org/a@b", "")
